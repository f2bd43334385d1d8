"""Anyone's own data: a folder of images, masks and class names.

::

    my_data/
      images/          street_01.jpg ...   or  images/train/ and images/val/
      masks/           street_01.png ...   or  masks/train/ and masks/val/
      classes.txt      one class name a line; raw value i is line i, from 0
      things.txt       optional: names of the classes whose objects can be counted
      train.txt        optional: stems of the split, one a line; likewise val.txt

``classes.json`` may stand for ``classes.txt``. It maps each raw value to a name, or to
null or "ignore": ``{"0": "ignore", "7": "road", "8": "road", "11": "car"}``. Classes
are then numbered in order of raw value, and values with one name share a class. With
``classes.txt``, 255 in an 8-bit mask and 65535 in a 16-bit mask mean IGNORE unless they
are classes; with ``classes.json``, exactly what it says holds.

A mask is stored as its image is shown, that is after the image's EXIF rotation.
"""

import json
import os
import pathlib
import zlib

import numpy as np

from input_pipeline import images
from input_pipeline.datasets.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE

# Marks raw values without a meaning in the tables raw value -> class id.
_NO_CLASS = -2
# Of 10 parts, how many the hash of a stem sends to the split "val".
_HASH_PARTS = 10


class Folder:
    """A split of a folder of the layout in this module's docstring.

    The split is the sub-folder ``images/<split>`` where ``images`` has sub-folders,
    else the list ``<split>.txt`` where ``train.txt`` or ``val.txt`` is there, else
    about nine in ten images for "train" and the others for "val", chosen by a hash of
    the stem. Images are opened only when they are read.

    Args:
      path: the folder.
      split: "train", "val", or any other that has a sub-folder or a list.

    Raises:
      DataError: a file or folder is missing or contradicts another one.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train"):
        self._root = pathlib.Path(path)
        if not self._root.is_dir():
            raise DataError(f"There is no data folder {self._root}; check the path.")
        names, self._tables = _read_classes(self._root)
        self.info = DatasetInfo(
            name=self._root.resolve().name,
            class_names=names,
            is_thing=_read_things(self._root / "things.txt", names),
        )
        self._images, self._masks, self._stems = _find_examples(self._root, split)

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> dict:
        """Reads one example.

        Returns:
          ``image`` uint8 ``[H W 3]``, ``label_map`` int32 ``[H W]``, ``name`` str.

        Raises:
          DataError: a file cannot be read, the sizes of image and mask differ, or the
            mask holds a raw value that has no class.
        """
        stem = self._stems[index]
        image = images.read_image(self._images[stem])
        raw, depth = images.decode_mask(self._masks[stem])
        if image.shape[:2] != raw.shape:
            turned = image.shape[:2] == raw.shape[::-1]
            raise DataError(
                f"Mask {self._masks[stem]} is {raw.shape[1]}x{raw.shape[0]} pixels but "
                f"its image {self._images[stem]} is {image.shape[1]}x{image.shape[0]}"
                f"{' once turned as its EXIF says' if turned else ''}; save the mask "
                "in the size of the image."
            )
        label_map = self._tables[depth].take(raw)
        if label_map.min() == _NO_CLASS:
            unknown = label_map == _NO_CLASS
            raise DataError(
                f"Mask {self._masks[stem]} holds the value {raw[unknown][0]} "
                f"({np.count_nonzero(unknown)} pixels have no class), which "
                "classes.txt (or classes.json) does not name; add the class or correct "
                "the mask."
            )
        return {"image": image, "label_map": label_map, "name": stem}


def _read_classes(
    root: pathlib.Path,
) -> tuple[tuple[str, ...], dict[int, np.ndarray]]:
    """Returns the class names and, by bit depth, the table raw value -> class id."""
    text, table = root / "classes.txt", root / "classes.json"
    if text.is_file() and table.is_file():
        raise DataError(
            f"Folder {root} has both classes.txt and classes.json; remove one."
        )
    if text.is_file():
        names = _read_class_lines(text)
        class_of = dict(enumerate(range(len(names))))
        ignored = images.IGNORE_RAW
    elif table.is_file():
        names, class_of = _read_class_table(table)
        ignored = {}
    else:
        raise DataError(
            f"Folder {root} has no classes.txt; write one with a class name a line, "
            "the first line being mask value 0."
        )
    tables = {}
    for depth in images.IGNORE_RAW:
        ids = np.full(2**depth, _NO_CLASS, np.int32)
        if depth in ignored:
            ids[ignored[depth]] = IGNORE
        for raw, class_id in class_of.items():
            if raw < len(ids):
                ids[raw] = class_id
        tables[depth] = ids
    return names, tables


def _read_class_lines(path: pathlib.Path) -> tuple[str, ...]:
    lines = [line.strip() for line in _read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise DataError(f"{path} is empty; write one class name a line.")
    if len(lines) > images.MAX_CLASSES:
        raise DataError(
            f"{path} has {len(lines)} lines, but a 16-bit mask holds at most "
            f"{images.MAX_CLASSES} classes; use fewer."
        )
    line_of = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise DataError(
                f"Line {number} of {path} is empty, but each line is a class; write a "
                "name there or remove the line."
            )
        if name in line_of:
            raise DataError(
                f"Lines {line_of[name]} and {number} of {path} both say {name!r}; give "
                "each class its own name, or use classes.json to join raw values."
            )
        line_of[name] = number
    return tuple(lines)


def _read_class_table(path: pathlib.Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Returns the class names and raw value -> class id or IGNORE."""
    example = 'like {"0": "ignore", "1": "road"}'
    try:
        # Pairs, because a dict would hide a raw value that is given twice.
        pairs = json.loads(_read_text(path), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); correct it, {example}."
        ) from error
    if not isinstance(pairs, list) or not all(isinstance(p, tuple) for p in pairs):
        raise DataError(f"{path} must map raw values to names, {example}; rewrite it.")
    name_of = {}
    for key, name in pairs:
        if not (key.isascii() and key.isdigit() and int(key) < 2**16):
            raise DataError(
                f"{path} has the raw value {key!r}, but masks hold whole numbers from "
                "0 to 65535; correct it."
            )
        if int(key) in name_of:
            raise DataError(f"{path} names the raw value {key} twice; keep one.")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise DataError(
                f"{path} gives the raw value {key} the name {name!r}; write a text, or "
                "null for pixels to ignore."
            )
        name_of[int(key)] = None if name is None else name.strip()
    ids, class_of = {}, {}
    for raw in sorted(name_of):
        name = name_of[raw]
        if name is None or name == "ignore":
            class_of[raw] = IGNORE
        else:
            class_of[raw] = ids.setdefault(name, len(ids))
    if not 0 < len(ids) <= images.MAX_CLASSES:
        raise DataError(
            f"{path} names {len(ids)} classes; name 1 to {images.MAX_CLASSES}."
        )
    return tuple(ids), class_of


def _read_things(path: pathlib.Path, names: tuple[str, ...]) -> tuple[bool, ...]:
    if not path.is_file():
        return (False,) * len(names)
    things = {line.strip() for line in _read_text(path).splitlines()} - {""}
    for name in sorted(things.difference(names)):
        raise DataError(
            f"{path} names {name!r}, which is no class; correct it or add the class."
        )
    return tuple(name in things for name in names)


def _find_examples(
    root: pathlib.Path, split: str
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Returns stem -> image file, stem -> mask file, and the sorted stems."""
    image_dir, mask_dir = root / "images", root / "masks"
    image_of, folders = _scan(image_dir, images.IMAGE_SUFFIXES)
    if folders:
        if image_of:
            raise DataError(
                f"{image_dir} holds both images and the folders {', '.join(folders)}; "
                "move the images into the folder of their split."
            )
        if split not in folders:
            raise DataError(
                f"{image_dir} has no folder for the split {split!r}, only "
                f"{', '.join(folders)}; add it or choose one of these."
            )
        image_dir, mask_dir = image_dir / split, mask_dir / split
        image_of, _ = _scan(image_dir, images.IMAGE_SUFFIXES)
    if not image_of:
        raise DataError(
            f"{image_dir} holds no images; put files ending in "
            f"{', '.join(images.IMAGE_SUFFIXES)} there."
        )
    mask_of, _ = _scan(mask_dir, (".png",))
    stems = sorted(image_of) if folders else _choose_stems(root, split, image_of)
    missing = [stem for stem in stems if stem not in mask_of]
    if missing:
        raise DataError(
            f"Image {image_of[missing[0]]} has no mask {mask_dir / missing[0]}.png"
            f"{f', nor have {len(missing) - 1} others' if missing[1:] else ''}; add "
            "the mask or remove the image."
        )
    return image_of, mask_of, stems


def _choose_stems(
    root: pathlib.Path, split: str, image_of: dict[str, str]
) -> list[str]:
    """Returns the stems of a split that has no folder, by its list or by hash."""
    path = root / f"{split}.txt"
    if any((root / name).is_file() for name in ("train.txt", "val.txt")):
        if not path.is_file():
            raise DataError(
                f"There is no list {path} of the split {split!r}, though there is one "
                "of another split; write it, one file stem a line."
            )
        stems = [line for line in map(str.strip, _read_text(path).splitlines()) if line]
        if not stems:
            raise DataError(f"List {path} is empty; write one file stem a line.")
        seen = set()
        for stem in stems:
            if stem not in image_of:
                raise DataError(
                    f"List {path} names {stem!r}, but {root / 'images'} has no such "
                    "image; correct the line (file names without their ending)."
                )
            if stem in seen:
                raise DataError(f"List {path} names {stem!r} twice; remove one line.")
            seen.add(stem)
        return stems
    if split not in ("train", "val"):
        raise DataError(
            f"Folder {root} has no split {split!r}; write the list {path}, one file "
            'stem a line, or choose "train" or "val".'
        )
    order = sorted(image_of, key=lambda stem: (zlib.crc32(stem.encode()), stem))
    # A stem keeps its split when files are added, but "val" always has at least one.
    val = {s for s in order if zlib.crc32(s.encode()) % _HASH_PARTS == 0}
    val = val or {order[0]}
    stems = sorted(val if split == "val" else set(order) - val)
    if not stems:
        raise DataError(
            f"Folder {root} has too few images to hold out some; write train.txt and "
            "val.txt, one file stem a line."
        )
    return stems


def _scan(
    folder: pathlib.Path, suffixes: tuple[str, ...]
) -> tuple[dict[str, str], list[str]]:
    """Returns stem -> path of the files with these endings, and the folder names."""
    path_of, folders = {}, []
    try:
        # scandir knows files from folders without a further call for each entry.
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if entry.name.startswith("."):
                    continue  # Left by file managers.
                if entry.is_dir():
                    folders.append(entry.name)
                elif suffix.lower() in suffixes:
                    if stem in path_of:
                        raise DataError(
                            f"{entry.path} and {path_of[stem]} share the stem "
                            f"{stem!r}, so a mask cannot tell them apart; rename one."
                        )
                    path_of[stem] = entry.path
    except OSError as error:
        raise DataError(
            f"Folder {folder} cannot be listed ({error.strerror}); it must be there "
            "and hold the files of images or masks."
        ) from error
    return path_of, sorted(folders)


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}); save it as UTF-8."
        ) from error
