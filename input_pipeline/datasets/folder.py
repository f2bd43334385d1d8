"""Anyone's own data: a folder of images, masks and class names.

::

    my_data/
      images/          street_01.jpg ...   or  images/train/ and images/val/
      masks/           street_01.png ...   or  masks/train/ and masks/val/
      classes.txt      one class name a line; raw value i is line i, from 0
      things.txt       optional: names of the classes whose objects can be counted
      train.txt        optional: stems of the split, one a line; likewise val.txt

What a split's folder holds in folders of its own is read too, and belongs to the mask
of the same path: ``images/train/a/b.jpg`` and ``masks/train/a/b.png``. Other names of
folders and other endings are a matter of configuration (`folder_files.FolderLayout`).

``classes.json`` may stand for ``classes.txt``. It maps each raw value to a name, or to
null or "ignore": ``{"0": "ignore", "7": "road", "8": "road", "11": "car"}``. Classes
are then numbered in order of raw value, and values with one name share a class. With
``classes.txt``, 255 in an 8-bit mask and 65535 in a 16-bit mask mean IGNORE unless they
are classes, and a line ``__ignore__`` is no class but ignored; with ``classes.json``,
exactly what it says holds.

Where its keys are colours, ``{"#000000": null, "#804080": "road"}``, the masks are read
as colours, and classes are numbered in the order of the file. ``labelmap.txt`` of CVAT
says the same in its own way.

A mask may be a file of Labelme (``data.mask_ending=.json``), whose labels are names of
classes; where nothing was drawn is the class "background" or "_background_" if there is
one, else IGNORE.

A mask is stored as its image is shown, that is after the image's EXIF rotation, unless
the images are read without it.
"""

import copy
import os
import pathlib
from collections.abc import Callable

from input_pipeline.datasets import label_schema
from input_pipeline.datasets.folder_files import (
    USUAL_LAYOUT,
    FolderLayout,
    find_files,
)
from input_pipeline.datasets.mask_labels import MaskLabels
from input_pipeline.files import images, labelme, mask_files, text
from input_pipeline.info import DataError, DatasetInfo, raise_fault
from mlseg_jax.errors import printable


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
      layout: where images and masks lie, and how their names end.
      options: how images are read.

    Raises:
      DataError: a file or folder is missing or contradicts another one.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "train",
        report: Callable[[DataError], None] = raise_fault,
        layout: FolderLayout = USUAL_LAYOUT,
        options: images.ReadOptions = images.USUAL,
    ):
        self._root = pathlib.Path(path).expanduser()
        if not self._root.is_dir():
            raise DataError(f"There is no data folder {self._root}; check the path.")
        classes = label_schema.read_classes(self._root)
        self._labels = MaskLabels(classes, options.max_pixels)
        self._options = options
        self.info = DatasetInfo(
            name=self._root.resolve().name,
            class_names=classes.names,
            is_thing=label_schema.read_things(self._root / "things.txt", classes.names),
            raw_values=classes.raw_values,
        )
        files = find_files(self._root, split, layout, report)
        self._stems = files.stems
        self._images, self._masks = files.image_of, files.mask_of
        self.unused_masks = files.unused_masks
        """Masks that no image belongs to."""

    def __len__(self) -> int:
        return len(self._stems)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all examples, in order."""
        return tuple(self._stems)

    def in_order_of_time(self) -> "Folder":
        """The same, frames of a folder side by side, numbers in names as numbers."""
        ordered = copy.copy(self)
        ordered._stems = sorted(self._stems, key=_folder_and_number)
        return ordered

    def __getitem__(self, index: int) -> dict:
        """Reads one example.

        Returns:
          ``image`` uint8 ``[H W 3]``, ``label_map`` int32 ``[H W]``, ``name`` str.

        Raises:
          DataError: a file cannot be read, the sizes of image and mask differ, or the
            mask holds a raw value that has no class.
        """
        stem = self._stems[index]
        image = images.read_image(self._images[stem], self._options)
        label_map = self._labels(self._masks[stem])
        if image.shape[:2] != label_map.shape:
            raise self._size_fault(stem, image.shape[:2], label_map.shape)
        name = printable(stem)
        return {"image": image, "label_map": label_map, "name": name}

    def _size_fault(self, stem, size, mask_size) -> DataError:
        turned = hint = ""
        if self._options.exif and size == mask_size[::-1]:
            turned = " once turned as its EXIF says"
            hint = ", or set data.exif=False if masks are of the pixels as stored"
        return DataError(
            f"Mask {self._masks[stem]} is {mask_size[1]}x{mask_size[0]} pixels but its "
            f"image {self._images[stem]} is {size[1]}x{size[0]}{turned}; save the mask "
            f"in the size of the image{hint}.",
            kind="size",
        )

    def remarks(self, index: int) -> list[DataError]:
        """What is odd about an example that can be read."""
        stem = self._stems[index]
        found = images.remarks(self._images[stem], self._options)
        fault = self._labels.odd_ignore(self._masks[stem])
        return found if fault is None else [*found, fault]

    def ignored_value(self, index: int) -> int | None:
        """The raw value of a mask that is ignored without being named, if one is."""
        return self._labels.ignored_value(self._masks[self._stems[index]])

    def palette(self, index: int) -> dict[int, tuple[int, ...]] | None:
        """Colours of the raw values in a palette mask; None for a grey one.

        Indices of a palette are the raw values. Where files give one index several
        colours, the colours were meant, and each file numbers them in its own way. None
        also where colours or labels are the raw values.
        """
        path = self._masks[self._stems[index]]
        if self._labels.classes.by_colour or labelme.is_labelme(path):
            return None
        return mask_files.palette_colours(path, self._options.max_pixels)


def _folder_and_number(stem: str) -> tuple[str, list]:
    folder, slash, name = stem.rpartition("/")
    return folder + slash, text.natural(name)
