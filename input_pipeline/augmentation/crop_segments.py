"""The segments of a training crop, as many as fit in arrays of a fixed size."""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline import segments
from input_pipeline.augmentation.views import View, pad
from input_pipeline.files import coco_masks
from input_pipeline.info import DatasetInfo
from mlseg_jax.typing import IGNORE, Int, UInt8


@dataclasses.dataclass(frozen=True)
class CropSegments:
    """Makes the arrays of a crop's segments (masks.md sections 2.6 and 9).

    What the crop emptied is no segment, nor is a crowd. Of more than ``max_segments``
    the largest stay.

    Attributes:
      kind: of `segments.KINDS`, but not ``none``.
      max_segments: M.
      info: which classes are things.
    """

    kind: str
    max_segments: int
    info: DatasetInfo

    def make(
        self, example: dict, view: View, canvas: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Arrays for the batch.

        Args:
          example: as its source gave it.
          view: the crop.
          canvas: H, W, into whose upper left the crop is padded.

        Returns:
          ``masks``: where segments cannot overlap, int32 ``[H W]`` of their numbers
          0..M-1 and IGNORE; else bits, uint8 ``[M H ceil(W/8)]`` as of
          ``numpy.packbits``. ``segment_classes``: int32 ``[M]``, IGNORE where there is
          no segment. ``dropped_segments``: int32 ``[]``, those that did not fit.

        Raises:
          DataError: the data set has no instances, but they are wanted.
        """
        if self.kind == "instances" and "instances" in example:
            found, class_ids, dropped = self._overlapping(example, view, canvas)
        else:
            found, class_ids, dropped = self._disjoint(example, view, canvas)
        classes = np.full(self.max_segments, IGNORE, np.int32)
        classes[: len(class_ids)] = class_ids
        return {
            "masks": found,
            "segment_classes": classes,
            "dropped_segments": np.int32(dropped),
        }

    def _disjoint(self, example, view, canvas):
        crop = example | {"label_map": view.with_labels(example["label_map"]).labels}
        if "instance_map" in example:
            crop["instance_map"] = view.take(example["instance_map"])
        parts = segments.parts_of(self.kind, crop, self.info)
        areas = np.where(parts.is_crowd, 0, parts.areas)
        kept = largest(areas, self.max_segments)
        numbers = np.full(len(areas), IGNORE)
        numbers[kept] = np.arange(len(kept))
        found = pad(parts.make_map(numbers, IGNORE), canvas, IGNORE)
        return found, parts.class_ids[kept], np.count_nonzero(areas) - len(kept)

    def _overlapping(self, example, view, canvas):
        wanted = [
            instance
            for instance in segments.true_instances(example, self.info)
            if not instance.is_crowd
        ]
        places = [_Place.find(instance.run_lengths, view) for instance in wanted]
        areas = np.int64([place.area for place in places])
        kept = largest(areas, self.max_segments)
        octets = (canvas[1] + 7) // 8
        found = np.zeros((self.max_segments, canvas[0], octets), np.uint8)
        for number, i in enumerate(kept):
            places[i].paint(found[number])
        class_ids = [wanted[i].class_id for i in kept]
        return found, class_ids, np.count_nonzero(areas) - len(kept)


def largest(areas: Int[np.ndarray, "n"], count: int) -> Int[np.ndarray, "m"]:
    """Which have a pixel, at most ``count``; in their order, the first of equals."""
    order = np.argsort(-areas, kind="stable")[:count]
    return np.sort(order[areas[order] > 0])


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an instance lies in a crop; its bits only, as there may be hundreds.

    Attributes:
      top: first row.
      bits: of its rows, over the width of the crop.
      area: pixels.
    """

    top: int
    bits: UInt8[np.ndarray, "h octets"]
    area: int

    @classmethod
    def find(cls, run_lengths: dict, view: View) -> "_Place":
        """Samples only the rows and columns that its box covers."""
        x, y, width, height = coco_mask.toBbox(run_lengths).astype(int)
        rows = _inside(view.rows, y, y + height)
        columns = _inside(view.columns, x, x + width)
        if not (len(rows) and len(columns)):
            return cls(0, np.zeros((0, 0), np.uint8), 0)
        # Columns first: run lengths go down them.
        mask = coco_masks.draw(run_lengths).T[view.columns[columns]]
        pixels = np.zeros((len(rows), columns[-1] + 1), np.uint8)
        pixels[:, columns] = mask.take(view.rows[rows], axis=1).T
        area = np.count_nonzero(pixels)
        return cls(int(rows[0]), np.packbits(pixels, axis=1), area)

    def paint(self, mask: UInt8[np.ndarray, "H octets"]) -> None:
        """Writes its bits into an empty mask."""
        height, octets = self.bits.shape
        mask[self.top : self.top + height, :octets] = self.bits


def _inside(places: Int[np.ndarray, "n"], start: int, stop: int) -> np.ndarray:
    """Indices, without gaps, of the places from ``start`` to before ``stop``."""
    return np.flatnonzero((places >= start) & (places < stop))
