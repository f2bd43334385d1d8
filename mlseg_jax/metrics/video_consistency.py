"""Video consistency: of the pixels whose truth stands still, how many stand still in
the prediction (VSPW; masks.md 6.3).
"""

import flax
import numpy as np
from clu import metrics

from mlseg_jax.typing import Int, UInt

LENGTHS = (8, 16)
"""Frames of the windows: VC8 and VC16."""


@flax.struct.dataclass
class VideoConsistency(metrics.Metric):
    """Sums over all windows of all videos, for windows of each of `LENGTHS`.

    Of a window, G are the pixels whose true label is the same in all of its frames, and
    S those whose prediction is: its consistency is |S and G| / |G|, whether predictions
    are right or not. Windows without G count nowhere, and long videos count more. As in
    the authors' script, the last window of a video is left out.

    Attributes:
      sums: of the windows' consistencies.
      counts: of windows.
    """

    # As for MeanIoU: leaves may be anything while JAX transforms the state.
    __no_type_check__ = True

    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls) -> "VideoConsistency":
        """No videos yet."""
        return cls(np.zeros(len(LENGTHS)), np.zeros(len(LENGTHS), np.int64))

    def to_host(self) -> "VideoConsistency":
        """Itself: it is on the host already."""
        return self

    def merge(self, other: "VideoConsistency") -> "VideoConsistency":
        """The windows of both."""
        return VideoConsistency(self.sums + other.sums, self.counts + other.counts)

    def compute(self) -> dict[str, float]:
        """``VC8``, ``VC16``; and ``VC16_as_scripted``.

        The last is what some published scripts print as VC16: they go on with the list
        of VC8's windows, so it is the mean over the windows of both lengths.
        """
        sums = [*self.sums, self.sums.sum()]
        counts = [*self.counts, self.counts.sum()]
        names = [*(f"VC{n}" for n in LENGTHS), f"VC{LENGTHS[-1]}_as_scripted"]
        return {
            name: float(total / count) if count else float("nan")
            for name, total, count in zip(names, sums, counts, strict=True)
        }


class ConsistencyOfVideo:
    """The frames of one video in turn, in memory that does not grow with them.

    Of each pixel it is known for how many frames truth and prediction have stood still;
    a window counts once a frame after it is there.
    """

    def __init__(self):
        self._last = None
        self._runs = None

    def add(
        self,
        prediction: Int[np.ndarray, "H W"] | UInt[np.ndarray, "H W"],
        label_map: Int[np.ndarray, "H W"],
    ) -> VideoConsistency:
        """The next frame; returns the window that ends with the frame before it.

        Pixels without a class stand still like others, as in the authors' script, which
        compares raw values (and so tells its two kinds of them apart).
        """
        counted = VideoConsistency.empty()
        if self._runs is not None:
            counted = self._window()
        frames = prediction.astype(np.int32), label_map.astype(np.int32)
        if self._last is None:
            self._runs = tuple(np.ones(frame.shape, np.int32) for frame in frames)
        else:
            self._runs = tuple(
                np.where(frame == last, run + 1, 1)
                for frame, last, run in zip(frames, self._last, self._runs, strict=True)
            )
        self._last = frames
        return counted

    def _window(self) -> VideoConsistency:
        predicted, true = self._runs
        sums, counts = np.zeros(len(LENGTHS)), np.zeros(len(LENGTHS), np.int64)
        for i, length in enumerate(LENGTHS):
            still = true >= length
            if total := np.count_nonzero(still):
                same = np.count_nonzero(still & (predicted >= length))
                sums[i], counts[i] = same / total, 1
        return VideoConsistency(sums, counts)
