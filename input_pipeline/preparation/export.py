"""Writes any source as a folder that `Folder` reads."""

import os
import pathlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from input_pipeline.files import images, text
from input_pipeline.info import DataError, DatasetInfo

_JPEG_QUALITY = 95


def print_progress(split: str, done: int, total: int) -> None:
    """Prints a line after every 500 examples and after the last one."""
    if done % 500 == 0 or done == total:
        print(f"{split}: wrote {done} of {total} examples", flush=True)


def export_folder(
    sources: Mapping[str, object],
    path: str | os.PathLike,
    image_format: str = "jpg",
    progress: Callable[[str, int, int], None] = print_progress,
) -> None:
    """Writes sources as the splits of one folder of the layout of `Folder`.

    Args:
      sources: source by name of split, such as ``{"train": ..., "val": ...}``; all with
        the same classes.
      path: folder to write; it must be empty or not exist.
      image_format: "jpg" (small, quality 95) or "png" (exact).
      progress: called after each example with the split, the number written and the
        number to write.

    Raises:
      DataError: the folder is not empty, the sources disagree about their classes, a
        class or example has a name that the layout cannot hold.
      ValueError: another image format, or no sources.
    """
    if image_format not in ("jpg", "png"):
        raise ValueError(f'Image format is {image_format!r}; choose "jpg" or "png".')
    root = pathlib.Path(path)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"Target {root} is not an empty folder; choose another path.")
    info = _common_info(sources)
    for split, source in sources.items():
        image_dir, mask_dir = root / "images" / split, root / "masks" / split
        image_dir.mkdir(parents=True)
        mask_dir.mkdir(parents=True)
        for index in range(len(source)):
            example = source[index]
            # Some sources name an example by its path, such as video/frame.
            stem = example["name"].replace("/", "_").replace("\\", "_")
            image_path = image_dir / f"{stem}.{image_format}"
            if not stem or stem.startswith(".") or image_path.exists():
                raise DataError(
                    f"Example {index} of split {split!r} has the name "
                    f"{example['name']!r}, which is hidden or already taken as a file "
                    "name; give each example its own name."
                )
            image_path.write_bytes(_encode(example["image"], image_format))
            images.write_label_map(
                mask_dir / f"{stem}.png", example["label_map"], info.num_classes
            )
            progress(split, index + 1, len(source))
    _write_lines(root / "classes.txt", info.class_names)
    things = [
        name
        for name, thing in zip(info.class_names, info.is_thing, strict=True)
        if thing
    ]
    if things:
        _write_lines(root / "things.txt", things)


def _encode(image: np.ndarray, image_format: str) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, data = cv2.imencode(
        f".{image_format}", bgr, quality if image_format == "jpg" else []
    )
    return data.tobytes()


def _common_info(sources: Mapping[str, object]) -> DatasetInfo:
    """Returns what all sources say, after checking that `Folder` can read it."""
    if not sources:
        raise ValueError("There are no sources to export; pass at least one split.")
    infos = {split: source.info for split, source in sources.items()}
    first, info = next(iter(infos.items()))
    for split, other in infos.items():
        if (other.class_names, other.is_thing) != (info.class_names, info.is_thing):
            raise DataError(
                f"Splits {first!r} and {split!r} have different classes, but a folder "
                "has one list; export them to two folders."
            )
    seen = set()
    for name in info.class_names:
        text.check_name(name, f"Data set {info.name!r}")
        if name in seen or not name or name != name.strip():
            raise DataError(
                f"Data set {info.name!r} has a class named {name!r}, which is twice "
                "there or does not fit on a line of classes.txt; rename it."
            )
        seen.add(name)
    return info


def _write_lines(path: pathlib.Path, lines) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
