"""Weights and offsets of classes in the pixel loss, from their number of pixels."""

import dataclasses

import numpy as np

from mlseg_jax.typing import Float, Int

MAX_CLASS_WEIGHT = 10.0
"""Largest weight of a class, where the mean over pixels is 1: a class of a handful of
pixels would otherwise decide a whole step."""


@dataclasses.dataclass(frozen=True)
class ClassPriors:
    """What the pixel loss knows about classes beforehand; None leaves it as it is.

    Attributes:
      weights: [C] factors of the loss of pixels of a class.
      offsets: [C] added to the logits of a class in training.
    """

    weights: Float[np.ndarray, "C"] | None = None
    offsets: Float[np.ndarray, "C"] | None = None


NO_PRIORS = ClassPriors()


def class_priors(
    class_pixels: Int[np.ndarray, "C"] | None, weighting: str, adjustment: float
) -> ClassPriors:
    """Weights and offsets from the pixels of each class in training.

    With p the share of labelled pixels (one pixel added to each class):

    * ``inverse_sqrt``: weights p**-0.5, scaled so that the mean over pixels is 1, so
      that the learning rate keeps its meaning; at most `MAX_CLASS_WEIGHT`.
    * adjustment tau: offsets ``tau * log(p)`` (Menon et al. 2021, logit adjustment as a
      loss): rare classes must win by more in training, and so win more often without
      the offsets, that is in evaluation.

    """
    if class_pixels is None:
        return ClassPriors()
    share = (class_pixels + 1.0) / np.sum(class_pixels + 1.0)
    weights = offsets = None
    if weighting == "inverse_sqrt":
        weights = share**-0.5 / np.sum(share**0.5)
        weights = np.minimum(weights, MAX_CLASS_WEIGHT).astype(np.float32)
    if adjustment:
        offsets = (adjustment * np.log(share)).astype(np.float32)
    return ClassPriors(weights, offsets)
