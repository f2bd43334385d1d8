"""Images that a JSON file of the COCO family names: their places and their keys."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from input_pipeline.info import DataError
from input_pipeline.preparation.prepared import RawExample
from mlseg_jax.errors import printable


def short_keys(raws: list[RawExample]) -> list[RawExample]:
    """Examples whose keys are names of files, named without the ending where only one
    of them is left with that name.
    """
    stems = [str(pathlib.PurePosixPath(raw.key).with_suffix("")) for raw in raws]
    counts = collections.Counter(stems)
    return [
        dataclasses.replace(raw, key=printable(stem if counts[stem] == 1 else raw.key))
        for raw, stem in zip(raws, stems, strict=True)
    ]


def image_places(
    image: dict, folders: Sequence[pathlib.Path], path: pathlib.Path
) -> tuple[str, list[pathlib.Path]]:
    """The name of an image, and where it may be, the likeliest place first.

    LVIS v1 has an address in place of a name; v0.5 has the name of 2014 beside the
    address of 2017, under which the image lies today.

    Args:
      image: entry of the JSON file.
      folders: where images may lie.
      path: the JSON file, for errors.

    Raises:
      DataError: it has neither, or they lead out of the folders.
    """
    address = lvis_image_name(image)
    name = image.get("file_name") or address
    places = [image_file(folder, name, path) for folder in folders]
    if address is not None:
        folder, _, last = address.rpartition("/")
        if last and ".." not in address and ":" not in address:
            around = [*folders, folders[0].parent]
            places += [f / p for f in around for p in (address, last)]
    return name, list(dict.fromkeys(places))


def image_file(root: pathlib.Path, name, path: pathlib.Path) -> pathlib.Path:
    """The image that a JSON file names, inside its folder.

    Args:
      root: folder of the images.
      name: what the JSON file says.
      path: the JSON file, for errors.

    Raises:
      DataError: it is no relative path, or leaves the folder.
    """
    # Windows tools write backslashes.
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else []
    bad = not parts or not parts[-1] or ".." in parts or "\0" in name
    if bad or not parts[0] or ":" in parts[0]:
        raise DataError(
            f"{path} names the image {name!r}, which is no path inside {root}; correct "
            "the name.",
            kind="listing",
        )
    return root.joinpath(*parts)


def lvis_image_name(image: dict) -> str | None:
    """Folder and name of an LVIS image: it has an address in place of a file name."""
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
