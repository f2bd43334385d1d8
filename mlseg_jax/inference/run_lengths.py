"""COCO's run lengths of masks that are made a strip of columns at a time."""

import numpy as np
from pycocotools import mask as coco_mask

from mlseg_jax.typing import Bool


class RunLengths:
    """One mask, as the places where it changes down the columns.

    Args:
      height: rows of the picture.
    """

    def __init__(self, height: int):
        self._height = height
        self._width = 0
        self._last = False
        self._changes: list[np.ndarray] = []

    def add(self, strip: Bool[np.ndarray, "columns H"] | None, width: int) -> None:
        """The next ``width`` columns, column after column; None if nothing is set."""
        start = self._width * self._height
        self._width += width
        if strip is None:
            if self._last:
                self._changes.append(np.asarray([start]))
                self._last = False
            return
        flat = strip.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0] != self._last:
            changes = np.r_[0, changes]
        self._changes.append(changes + start)
        self._last = bool(flat[-1])

    def compressed(self) -> dict:
        """``{"size": [H, W], "counts": bytes}``, equal to what pycocotools encodes."""
        total = self._height * self._width
        counts = np.diff(np.concatenate([[0], *self._changes, [total]]).astype(int))
        size = [self._height, self._width]
        runs = {"size": size, "counts": counts.tolist()}
        return coco_mask.frPyObjects(runs, *size)
