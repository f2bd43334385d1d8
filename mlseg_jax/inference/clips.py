"""Which frames of a video are one clip, and the scores that a clip's labels are
selected by.

A selection for each frame alone flickers: labels near rank K come and go. Here the
frames of a clip share one selection, from the scores of all of them. A clip ends where
the scores change (a cut, a turn of the camera), and after a number of frames, so that
memory is bounded. Not in the paper, which selects for each picture.
"""

import ml_collections
import numpy as np

from mlseg_jax.typing import Float


class Clips:
    """Divides the frames of one video, which come in order, into clips.

    Args:
      k: how many labels are selected.
      settings: ``clip_length`` (most frames of a clip), ``clip_scores``: the
        ``maximum`` or the ``mean`` over the clip, or the ``running`` mean of its frames
        so far, which needs no later frame; ``clip_change`` (see `change`).
      read_ahead: frames that `shared` is given at a time; ``clip_length`` if not said.
        A clip goes on in the next call only where it is ``running`` and this is less.
      first: number of the first clip.

    Attributes:
      numbers: clip of each frame that `shared` was last given.
      read_ahead: as above.
    """

    def __init__(
        self,
        k: int,
        settings: ml_collections.ConfigDict,
        read_ahead: int | None = None,
        first: int = 0,
    ):
        self._k, self._length = k, settings.clip_length
        self._scores, self._threshold = settings.clip_scores, settings.clip_change
        self.read_ahead = read_ahead or self._length
        self._goes_on = self._scores == "running" and self.read_ahead < self._length
        self._next = first
        self._count, self._total = 0, None
        self.numbers: list[int] = []

    def shared(self, scores: Float[np.ndarray, "T C"]) -> Float[np.ndarray, "T C"]:
        """Per frame, the scores before the sigmoid that its labels are selected by."""
        if not self._goes_on:
            self._count = 0
        probabilities = 1.0 / (1.0 + np.exp(-scores.astype(np.float64)))
        self.numbers, running = [], np.empty_like(probabilities)
        for frame, row in enumerate(probabilities):
            if self._begins(row):
                self._next += 1
                self._count, self._total = 0, np.zeros_like(row)
            self._count += 1
            self._total += row
            running[frame] = self._total / self._count
            self.numbers.append(self._next - 1)
        if self._scores == "running":
            return _logits(running)
        result = np.empty_like(scores)
        numbers = np.asarray(self.numbers)
        for number in np.unique(numbers):
            own = numbers == number
            if self._scores == "maximum":
                result[own] = scores[own].max(axis=0)
            else:
                result[own] = _logits(running[own][-1])
        return result

    def _begins(self, row: Float[np.ndarray, "C"]) -> bool:
        """Whether a clip begins with a frame of these probabilities."""
        if self._count in (0, self._length):
            return True
        return change(self._total / self._count, row, self._k) > self._threshold


def change(
    before: Float[np.ndarray, "C"], now: Float[np.ndarray, "C"], k: int
) -> float:
    """How much of the best labels' probability is not shared, from 0 to 1.

    One minus the sum of the smaller over the sum of the larger of both, over labels
    that are among the best ``k`` of either; so thousands of unlikely ones do not count.
    """
    k = min(k, len(now))
    best = np.union1d(np.argsort(-before)[:k], np.argsort(-now)[:k])
    larger = np.maximum(before[best], now[best]).sum()
    return float(1.0 - np.minimum(before[best], now[best]).sum() / max(larger, 1e-12))


def _logits(probabilities: np.ndarray) -> Float[np.ndarray, "*shape"]:
    """Of 0 it is minus infinity, as labels have that are not allowed."""
    with np.errstate(divide="ignore"):
        high = np.minimum(probabilities, 1.0 - 1e-12)
        return (np.log(high) - np.log1p(-high)).astype(np.float32)
