"""What a picture was segmented into: labels, a map of them, and a drawing."""

import dataclasses

import numpy as np

from mlseg_jax.prediction import visualise
from mlseg_jax.prediction.legend import Drawing
from mlseg_jax.typing import Float, UInt, UInt8


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


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a picture was segmented into.

    Attributes:
      image: the picture.
      label_map: class id of every pixel, uint8 or uint16.
      labels: the selected labels by falling score.
      top_class_ids, top_probabilities: the likeliest classes of every pixel, where they
        were asked for.
      font: letters that `overlay` writes names with (``eval.font``).
    """

    image: UInt8[np.ndarray, "H W 3"]
    label_map: UInt[np.ndarray, "H W"]
    labels: tuple[Label, ...]
    class_names: tuple[str, ...]
    top_class_ids: UInt[np.ndarray, "n H W"] | None = None
    top_probabilities: Float[np.ndarray, "n H W"] | None = None
    font: str = ""

    def overlay(self) -> UInt8[np.ndarray, "H2 W2 3"]:
        """The picture under its labels, with a legend of those that are present."""
        return self.draw().whole()

    def draw(self) -> Drawing:
        """As `overlay`, for a file that is written a band of rows at a time."""
        scores = np.zeros(len(self.class_names))
        for label in self.labels:
            scores[label.class_id] = label.score
        return visualise.draw_overlay(
            self.image, self.label_map, self.class_names, scores, font=self.font
        )
