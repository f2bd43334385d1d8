"""Whether data is still what it was when something was made of it and kept."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import ml_collections
from etils import epath

from input_pipeline.datasets.split_parts import split_part
from input_pipeline.files.local_copy import is_address, versions


def data_facts(
    data: ml_collections.ConfigDict, workdir: pathlib.Path, split: str = ""
) -> Iterator[bytes]:
    """What changes with the files of the data, whose content is not read: name, size
    and time of each, in order, and all that ``data.classes`` says.

    Args:
      data: the part of a configuration.
      workdir: of the run, which may lie among the data and is not part of it.
      split: whose pictures and label maps count where ``data.image_folder`` and
        ``mask_folder`` lie elsewhere; that of training where it is not given.

    Raises:
      DataError: the data is on an object store that cannot be read.
    """
    for line in sorted(_files(data, workdir, split or data.train_split)):
        yield line.encode(errors="surrogateescape")
    classes = epath.Path(data.classes).expanduser()
    if data.classes and classes.is_file():
        yield classes.read_bytes()


def _files(data, workdir: pathlib.Path, split: str) -> Iterator[str]:
    """Name, size and time of change of each file of the data, but not of the run."""
    if is_address(data.path):
        for name, (size, version) in versions(data.path).items():
            yield f"{name} {size} {version}\n"
    elif not data.path:  # Pictures are made, of this size.
        yield f"{tuple(data.crop_size)} {data.get('touching', 0.0)}\n"
    else:
        root, split = os.path.expanduser(data.path), split_part(split).name
        # They may lie elsewhere.
        folders = data.get("image_folder", ""), data.get("mask_folder", "")
        others = [os.path.join(root, x.replace("{split}", split)) for x in folders]
        for path in _walk((root, *others), workdir):
            with contextlib.suppress(OSError):  # A link to nowhere.
                facts, name = os.stat(path), os.path.relpath(path, root)
                yield f"{name} {facts.st_size} {facts.st_mtime_ns}\n"


def _walk(places: tuple[str, ...], without: pathlib.Path) -> Iterator[str]:
    """Files in folders and in all that these hold or link to, each folder once."""
    seen = {os.path.realpath(without)}
    for place in places:
        for folder, below, names in os.walk(place, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below.sort()
            yield from (os.path.join(folder, name) for name in names)
