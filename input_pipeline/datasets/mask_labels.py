"""From a mask's file to class ids, as a table of raw values says."""

import os

import cv2
import numpy as np

from input_pipeline.datasets.label_schema import (
    IGNORED_NAME,
    LABELME_IGNORED,
    ClassTable,
)
from input_pipeline.files import images, labelme, mask_files
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE

_NO_CLASS = -2
"""Marks raw values without a meaning in the tables raw value -> class id."""

_COLOURS = 2**24

_BACKGROUND = ("background", "_background_")
"""Classes of what nobody has drawn a shape around; the second is Labelme's own."""


class MaskLabels:
    """Reads masks whose raw values, colours or labels a table gives a meaning.

    Args:
      classes: the table.
      max_pixels: height times width of the largest mask that is read.
    """

    def __init__(self, classes: ClassTable, max_pixels: int = images.MAX_PIXELS):
        self.classes = classes
        self._max_pixels = max_pixels
        self._tables = {}

    def __reduce__(self):  # Tables are large, and made anew in each process.
        return MaskLabels, (self.classes, self._max_pixels)

    def __call__(self, path: str | os.PathLike) -> np.ndarray:
        """Reads a mask as int32 ``[H W]`` of class ids and IGNORE.

        Raises:
          DataError: it cannot be read, or holds a raw value that has no class.
        """
        return self.from_bytes(images.read_bytes(path), path)

    def from_bytes(self, data: bytes, path: str | os.PathLike) -> np.ndarray:
        """As a call, of a file's content; ``path`` is what errors call it."""
        if labelme.is_labelme(path):
            return self._of_shapes(data, path)
        if self.classes.by_colour:
            raw = mask_files.colours_from_bytes(data, path, self._max_pixels)
            label_map = self._table("colours", _COLOURS).take(raw).astype(np.int32)
        else:
            raw, depth = mask_files.mask_from_bytes(data, path, self._max_pixels)
            table = self._table(depth, 2**depth)
            # Equal, but cv2 is four times as fast where it can be used.
            label_map = cv2.LUT(raw, table) if depth == 8 else table.take(raw)
        if label_map.min() == _NO_CLASS:
            raise self._unmapped(raw, label_map == _NO_CLASS, path)
        return label_map

    def _of_shapes(self, data: bytes, path: str | os.PathLike) -> np.ndarray:
        """Where nothing was drawn is background if a class is called so, else IGNORE;
        labels are names of classes.
        """
        ids = {name: i for i, name in enumerate(self.classes.names)}
        empty = next((ids[name] for name in _BACKGROUND if name in ids), IGNORE)
        ids |= dict.fromkeys((IGNORED_NAME, LABELME_IGNORED), IGNORE)
        size, labels, shapes = labelme.shapes_from_bytes(data, path, self._max_pixels)
        unknown = sorted(set(labels).difference(ids))
        if unknown:
            raise DataError(
                f"{path} has the label {unknown[0]!r}, which {self.classes.path} does "
                f"not name; add the class, or correct the label.",
                kind="unmapped",
                path=str(path),
                values=tuple(unknown),
            )
        label_map = np.full(size, empty, np.int32)
        for label, mask in shapes:
            label_map[mask] = ids[label]
        return label_map

    def _table(self, kind: int | str, size: int) -> np.ndarray:
        """Class id by raw value, for masks of 8 or 16 bits or colours (32 MB)."""
        table = self._tables.get(kind)
        if table is None:
            is_small = size == _COLOURS and len(self.classes.names) < 2**15
            table = np.full(size, _NO_CLASS, np.int16 if is_small else np.int32)
            if self.classes.keeps_ignore:
                table[images.IGNORE_RAW[kind]] = IGNORE
            for raw, class_id in self.classes.class_of.items():
                if raw < size:
                    table[raw] = class_id
            self._tables[kind] = table  # Threads may make it twice, alike.
        return table

    def odd_ignore(self, path: str | os.PathLike) -> DataError | None:
        """A fault of kind "ignore_value" if a mask seems to mean void by a class."""
        most = images.IGNORE_RAW[8]
        class_id = self.classes.class_of.get(most, IGNORE)
        if not self.classes.keeps_ignore or class_id == IGNORE:
            return None
        if labelme.is_labelme(path):
            return None
        raw, depth = mask_files.decode_mask(path, self._max_pixels)
        count = np.count_nonzero(raw == most)
        if depth != 8 or not count:
            return None
        return DataError(
            f"Mask {path} has 8 bits and {count} pixels of the value {most}, which is "
            f"the class {self.classes.names[class_id]!r}.",
            kind="ignore_value",
        )

    def ignored_value(self, path: str | os.PathLike) -> int | None:
        """The raw value that this mask has for IGNORE though no table names it."""
        if not self.classes.keeps_ignore or labelme.is_labelme(path):
            return None
        _, depth = mask_files.decode_mask(path, self._max_pixels)
        value = images.IGNORE_RAW[depth]
        return None if value in self.classes.class_of else value

    def _unmapped(self, raw, unknown, path) -> DataError:
        values = np.unique(raw[unknown]).tolist()
        shown = f"#{values[0]:06x}" if self.classes.by_colour else values[0]
        what = "colour" if self.classes.by_colour else "value"
        return DataError(
            f"Mask {path} holds the {what} {shown} "
            f"({np.count_nonzero(unknown)} pixels have no class), which "
            f"{self.classes.path} does not name; add the class, ignore it with null in "
            "a classes.json, or correct the mask.",
            kind="unmapped",
            path=str(path),
            values=tuple(f"#{v:06x}" if self.classes.by_colour else v for v in values),
        )
