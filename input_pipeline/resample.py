"""Repeat-factor sampling: examples with rare classes stand in an epoch several times.

As for LVIS (Gupta et al. 2019, section 5): a class in a share f of the examples has the
factor max(1, sqrt(t / f)), and an example the largest factor of its classes.
"""

import numpy as np

from input_pipeline.preparation.class_statistics import Presence


def repeat_factors(presence: Presence, threshold: float) -> np.ndarray:
    """float64 [N]: how often each example should stand in an epoch, 1 or more.

    Args:
      presence: of N examples.
      threshold: t; classes in a smaller share of the examples are repeated.
    """
    count = len(presence.offsets) - 1
    class_ids = presence.class_ids.astype(np.int64)
    share = np.bincount(class_ids) / max(count, 1)
    factor_of_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))
    factors = np.ones(count)
    example = np.repeat(np.arange(count), np.diff(presence.offsets))
    np.maximum.at(factors, example, factor_of_class[class_ids])
    return factors


def repeated_indices(factors: np.ndarray, seed: int) -> np.ndarray:
    """int64: indices of examples, each ``factors`` times, rounded up or down.

    Fractions are settled by one random offset of the seed (systematic sampling), so
    that the sum is exact to one example and every epoch has the same ones.
    """
    offset = np.random.default_rng(seed).random()
    ends = np.floor(np.cumsum(factors) + offset).astype(np.int64)
    return np.repeat(np.arange(len(factors)), np.diff(ends, prepend=0))


class Resampled:
    """A source that has the examples of another one in a given order."""

    def __init__(self, source, indices: np.ndarray):
        self.info = source.info
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return self._source[int(self._indices[index])]
