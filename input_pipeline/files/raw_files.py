"""Finding files of published data sets."""

import os
import pathlib

import numpy as np

from input_pipeline.files import images, text
from input_pipeline.info import DataError


def find_root(manual_dir: pathlib.Path, inside: str, *folders: str) -> pathlib.Path:
    """The directory that holds ``inside``: ``manual_dir`` or one of its ``folders``."""
    for root in (manual_dir, *(manual_dir / folder for folder in folders)):
        if (root / inside).exists():
            return root
    also = f" (or {', '.join(folders)} in it)" if folders else ""
    raise DataError(
        f"Directory {manual_dir}{also} holds no {inside}; see docs/datasets.md for the "
        "layout, and correct --manual_dir."
    )


def list_files(
    folder: pathlib.Path, suffixes: tuple[str, ...], *, recursive: bool = False
) -> dict[str, pathlib.Path]:
    """Path by file stem (by relative path without ending if recursive), sorted.

    Raises:
      DataError: there is no such folder, or two files differ in their ending alone.
    """
    if not folder.is_dir():
        raise DataError(f"There is no directory {folder}; see docs/datasets.md.")
    files = {}
    for parent, folders, found in os.walk(folder):
        if not recursive:
            folders.clear()
        for name in found:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes and not name.startswith("."):
                path = pathlib.Path(parent, name)
                key = path.relative_to(folder).with_name(stem).as_posix()
                if key in files:
                    raise DataError(
                        f"{path} and {files[key]} have one name but for the ending; "
                        "remove one."
                    )
                files[key] = path
    return dict(sorted(files.items()))


def pair(
    image_dir: pathlib.Path,
    mask_dir: pathlib.Path,
    mask_suffix: str,
    *,
    mask_ending: str = "",
    other_ending: str | None = None,
) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """Stem, image and mask of each image or mask of two folders, by stem.

    Where one of the two is missing, the path is that of the file which should be there,
    so that reading it says so and `on_bad_example` decides.

    Args:
      image_dir: folder of images.
      mask_dir: folder of masks.
      mask_suffix: such as ".png".
      mask_ending: what the stem of a mask has more than that of its image.
      other_ending: ending of the stems of masks to leave aside.

    Raises:
      DataError: a folder is missing.
    """
    image_of = list_files(image_dir, images.IMAGE_SUFFIXES)
    mask_of = {
        stem.removesuffix(mask_ending): path
        for stem, path in list_files(mask_dir, (mask_suffix,)).items()
        if stem.endswith(mask_ending)
        and not (other_ending and stem.endswith(other_ending))
    }
    return [
        (
            stem,
            image_of.get(stem, image_dir / f"{stem}.jpg"),
            mask_of.get(stem, mask_dir / f"{stem}{mask_ending}{mask_suffix}"),
        )
        for stem in sorted(image_of.keys() | mask_of.keys())
    ]


def read_lines(path: pathlib.Path) -> list[str]:
    """Lines of a list of files, without empty ones.

    Raises:
      DataError: it is missing or no text.
    """
    if not path.is_file():
        raise DataError(f"There is no list {path}; see docs/datasets.md.")
    return text.read_lines(path)


def read_pixels(path: str | os.PathLike, modes: tuple[str, ...]) -> np.ndarray:
    """Reads the values of a mask that is no grey PNG, such as a TIFF or a colour PNG.

    Args:
      path: file of any lossless format.
      modes: Pillow's names of the kinds of pixels it may have.

    Raises:
      DataError: it is missing, damaged, too large, of a lossy format or another kind.
    """
    with images.open_picture(images.read_bytes(path), path) as picture:
        if picture.mode not in modes or picture.format not in ("PNG", "TIFF"):
            raise DataError(
                f"Mask {path} is a {picture.format} of mode {picture.mode}, not a PNG "
                f"or TIFF of mode {modes[0]}; get it again."
            )
        return images.load_pixels(picture, path)
