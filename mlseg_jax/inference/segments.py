"""Segments: what panoptic and instance segmentation find in a picture."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from mlseg_jax.typing import Bool, Int


@dataclasses.dataclass(frozen=True)
class Segment:
    """A region of a picture that belongs together.

    Attributes:
      segment_id: number in the picture, from 1.
      class_id: which class.
      label: its name.
      score: how sure the model is, from 0 to 1.
      area: pixels.
      box: left, top, width and height in pixels.
      rank: place of its class in the selection.
      pixels: the segment map that it is part of, or COCO's run lengths of it alone.
      query: of a frame of a video, the object query that it is of in all frames.
    """

    segment_id: int
    class_id: int
    label: str
    score: float
    area: int
    box: tuple[int, int, int, int]
    rank: int
    pixels: Int[np.ndarray, "H W"] | Mapping = dataclasses.field(
        repr=False, compare=False
    )
    query: int | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """Which pixels belong to it, made when it is asked for."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels == self.segment_id
        size = tuple(self.pixels["size"])
        return coco_masks.decode(dict(self.pixels), size, f"Segment {self.segment_id}")

    @property
    def run_lengths(self) -> dict:
        """COCO's ``{"size": [H, W], "counts": bytes}``, compressed."""
        if isinstance(self.pixels, np.ndarray):
            return coco_mask.encode(np.asfortranarray(self.mask, np.uint8))
        return dict(self.pixels)


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """A picture divided into segments that do not overlap.

    Attributes:
      segment_map: segment id of every pixel, `VOID` where there is none.
      segments: in order of their ids.
    """

    segment_map: Int[np.ndarray, "H W"]
    segments: tuple[Segment, ...]

    @property
    def classes(self) -> dict[int, int]:
        """Class id by segment id."""
        return {s.segment_id: s.class_id for s in self.segments}
