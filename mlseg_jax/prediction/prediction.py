"""What a picture was segmented into: labels, a map of them, and a drawing."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction import visualise
from mlseg_jax.prediction.draw_segments import draw_segments
from mlseg_jax.prediction.legend import Drawing
from mlseg_jax.typing import Float, Int, UInt, UInt8

LEAST_DRAWN_SCORE = 0.5
"""Of instances where none were left out; most of them are unlikely ones."""


@dataclasses.dataclass(frozen=True)
class Label:
    """A selected label of a picture.

    Attributes:
      name, class_id: which class.
      score: probability that it is in the picture.
      rank: its place by score, from 0.
      share: share of the picture's pixels that have it.
    """

    name: str
    class_id: int
    score: float
    rank: int
    share: float


def make_labels(
    class_names: Sequence[str],
    label_map: UInt[np.ndarray, "H W"],
    class_ids: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "C"],
) -> tuple[Label, ...]:
    """The selected labels of a picture by falling score (before the sigmoid)."""
    counts = visualise.count_labels(label_map, len(class_names))
    order = class_ids[np.argsort(-scores[class_ids], kind="stable")]
    return tuple(
        Label(
            name=class_names[class_id],
            class_id=int(class_id),
            score=float(1.0 / (1.0 + np.exp(-scores[class_id]))),
            rank=rank,
            share=float(counts[class_id] / label_map.size),
        )
        for rank, class_id in enumerate(order)
    )


NO_SCORE = 0.5
"""Of all labels where the model has no label scores: the sigmoid of 0."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a picture was segmented into.

    Attributes:
      image: the picture.
      label_map: class id of every pixel, uint8 or uint16.
      labels: the selected labels by falling score.
      top_class_ids, top_probabilities: the likeliest classes of every pixel, where they
        were asked for; at most as many as there are labels.
      found: what panoptic or instance segmentation found; None for other tasks.
      object_threshold: least score of what was ``found``.
      font: letters that `overlay` writes names with (``eval.font``).
      clip: of a frame of a video whose labels are selected per clip, the clip's number.
      tracks: of a frame of a video, the number that each of ``segments`` has in all
        frames; None for segments of a low score, which are not followed.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label_map: UInt[np.ndarray, "H W"]
    labels: tuple[Label, ...]
    class_names: tuple[str, ...]
    top_class_ids: UInt[np.ndarray, "n H W"] | None = None
    top_probabilities: Float[np.ndarray, "n H W"] | None = None
    found: Panoptic | tuple[Segment, ...] | None = None
    object_threshold: float = 0.0
    font: str = ""
    clip: int | None = None
    tracks: tuple[int | None, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What was found: panoptic segments, or instances by falling score."""
        if isinstance(self.found, Panoptic):
            return self.found.segments
        return self.found or ()

    @property
    def segment_map(self) -> Int[np.ndarray, "H W"] | None:
        """Of panoptic segmentation: the segment of each pixel, 0 for none."""
        return self.found.segment_map if isinstance(self.found, Panoptic) else None

    def overlay(self) -> UInt8[np.ndarray, "H2 W2 3"]:
        """The picture under its labels, or its segments with their outlines and
        numbers, and a legend of those that are present.
        """
        return self.draw().whole()

    def draw(self) -> Drawing:
        """As `overlay`, for a file that is written a band of rows at a time."""
        if self.found is not None:
            found, if_none = self.found, "no segments"
            if not isinstance(found, Panoptic):
                least = self.object_threshold or LEAST_DRAWN_SCORE
                found = [s for s in found if s.score >= least]
                if self.found:
                    if_none = f"{len(self.found)}, all below {least:.0%}"
            return draw_segments(
                self.image, found, self.class_names, font=self.font, if_none=if_none
            )
        scores = {label.class_id: label.score for label in self.labels}
        if set(scores.values()) == {NO_SCORE}:
            scores = None
        return visualise.draw_overlay(
            self.image, self.label_map, self.class_names, scores, font=self.font
        )
