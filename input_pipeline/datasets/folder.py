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

import os
import pathlib
import zlib
from collections.abc import Callable

import cv2
import numpy as np

from input_pipeline.datasets import label_schema
from input_pipeline.files import images, mask_files
from input_pipeline.info import DataError, DatasetInfo, raise_fault

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
      report: called with each file that is missing or contradicts another one; if it
        returns, the examples it concerns are left out. By default it raises.

    Raises:
      DataError: a file or folder is missing or contradicts another one.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "train",
        report: Callable[[DataError], None] = raise_fault,
    ):
        self._root = pathlib.Path(path)
        if not self._root.is_dir():
            raise DataError(f"There is no data folder {self._root}; check the path.")
        names, self._tables = label_schema.read_classes(self._root)
        self.info = DatasetInfo(
            name=self._root.resolve().name,
            class_names=names,
            is_thing=label_schema.read_things(self._root / "things.txt", names),
        )
        self._images, self._masks, self._stems = _find_examples(
            self._root, split, report
        )
        self.unused_masks = tuple(
            path for stem, path in self._masks.items() if stem not in self._images
        )
        """Masks that no image belongs to."""

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
        raw, depth = mask_files.decode_mask(self._masks[stem])
        if image.shape[:2] != raw.shape:
            turned = image.shape[:2] == raw.shape[::-1]
            raise DataError(
                f"Mask {self._masks[stem]} is {raw.shape[1]}x{raw.shape[0]} pixels but "
                f"its image {self._images[stem]} is {image.shape[1]}x{image.shape[0]}"
                f"{' once turned as its EXIF says' if turned else ''}; save the mask "
                "in the size of the image.",
                kind="size",
            )
        table = self._tables[depth]
        # Equal, but cv2 is four times as fast where it can be used.
        label_map = cv2.LUT(raw, table) if depth == 8 else table.take(raw)
        if label_map.min() == label_schema.NO_CLASS:
            unknown = label_map == label_schema.NO_CLASS
            raise DataError(
                f"Mask {self._masks[stem]} holds the value {raw[unknown][0]} "
                f"({np.count_nonzero(unknown)} pixels have no class), which "
                "classes.txt (or classes.json) does not name; add the class or correct "
                "the mask.",
                kind="unmapped",
                values=tuple(np.unique(raw[unknown]).tolist()),
            )
        return {"image": image, "label_map": label_map, "name": stem}

    def palette(self, index: int) -> dict[int, tuple[int, ...]] | None:
        """Colours of the raw values in a palette mask; None for a grey one.

        Indices of a palette are the raw values. Where files give one index several
        colours, the colours were meant, and each file numbers them in its own way.
        """
        return mask_files.palette_colours(self._masks[self._stems[index]])


def _find_examples(
    root: pathlib.Path, split: str, report: Callable[[DataError], None]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Returns stem -> image file, stem -> mask file, and the sorted stems."""
    image_dir, mask_dir = root / "images", root / "masks"
    image_of, folders = _scan(image_dir, images.IMAGE_SUFFIXES, report)
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
        image_of, _ = _scan(image_dir, images.IMAGE_SUFFIXES, report)
    if not image_of:
        raise DataError(
            f"{image_dir} holds no images; put files ending in "
            f"{', '.join(images.IMAGE_SUFFIXES)} there."
        )
    mask_of, _ = _scan(mask_dir, (".png",), report)
    if folders:
        stems = sorted(image_of)
    else:
        stems = _choose_stems(root, split, image_of, report)
    missing = [stem for stem in stems if stem not in mask_of]
    for i, stem in enumerate(missing):
        others = (
            f", nor have {len(missing) - 1} others" if missing[1:] and i == 0 else ""
        )
        report(
            DataError(
                f"Image {image_of[stem]} has no mask {mask_dir / stem}.png{others}; "
                "add the mask or remove the image.",
                kind="no_mask",
            )
        )
    return image_of, mask_of, [stem for stem in stems if stem in mask_of]


def _choose_stems(
    root: pathlib.Path,
    split: str,
    image_of: dict[str, str],
    report: Callable[[DataError], None],
) -> list[str]:
    """Returns the stems of a split that has no folder, by its list or by hash."""
    path = root / f"{split}.txt"
    if any((root / name).is_file() for name in ("train.txt", "val.txt")):
        if not path.is_file():
            raise DataError(
                f"There is no list {path} of the split {split!r}, though there is one "
                "of another split; write it, one file stem a line."
            )
        stems = [
            line
            for line in map(str.strip, label_schema.read_text(path).splitlines())
            if line
        ]
        if not stems:
            raise DataError(f"List {path} is empty; write one file stem a line.")
        seen = {}
        for stem in stems:
            if stem not in image_of:
                fault = (
                    f"List {path} names {stem!r}, but {root / 'images'} has no such "
                    "image; correct the line (file names without their ending)."
                )
                report(DataError(fault, kind="listing"))
            elif stem in seen:
                fault = f"List {path} names {stem!r} twice; remove one line."
                report(DataError(fault, kind="listing"))
            else:
                seen[stem] = True
        return list(seen)
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
    folder: pathlib.Path,
    suffixes: tuple[str, ...],
    report: Callable[[DataError], None],
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
                        fault = (
                            f"{entry.path} and {path_of[stem]} share the stem "
                            f"{stem!r}, so a mask cannot tell them apart; rename one."
                        )
                        report(DataError(fault, kind="listing"))
                    path_of[stem] = entry.path
    except OSError as error:
        raise DataError(
            f"Folder {folder} cannot be listed ({error.strerror}); it must be there "
            "and hold the files of images or masks."
        ) from error
    return path_of, sorted(folders)
