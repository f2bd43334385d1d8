"""A picture that is resized, cropped and mirrored, and where its pixels came from.

Labels are only ever indexed, never computed with: a `View` knows for each of its rows
and columns which of the original it shows, so every map of the example (classes,
instances, masks) is sampled at exactly the same points as all others.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from mlseg_jax.typing import Int, UInt8

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""uint8 [H W 3] and (height, width) to uint8 [height width 3]."""


def resize_cv2(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, from four neighbours also when it shrinks, as in mmsegmentation."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, smoothed when it shrinks, as in detectron2."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


@dataclasses.dataclass(frozen=True)
class View:
    """Part of a picture, resized; see the module docstring.

    Attributes:
      image: the picture as it is seen.
      rows, columns: the row and column of the original that each of its own shows;
        they fall where the picture is mirrored.
      labels: what it shows of the label map, once somebody has asked (`with_labels`).
    """

    image: UInt8[np.ndarray, "h w 3"]
    rows: Int[np.ndarray, "h"]
    columns: Int[np.ndarray, "w"]
    labels: Int[np.ndarray, "h w"] | None = None

    @classmethod
    def whole(cls, image: UInt8[np.ndarray, "H W 3"]) -> "View":
        """All of a picture, as it is."""
        height, width = image.shape[:2]
        return cls(image, np.arange(height), np.arange(width))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[:2]

    def resized(self, size: tuple[int, int], resize: Resize) -> "View":
        """The view at another (height, width)."""
        rows = self.rows[nearest_indices(len(self.rows), size[0])]
        columns = self.columns[nearest_indices(len(self.columns), size[1])]
        return View(resize(self.image, size), rows, columns)

    def cropped(self, top: int, left: int, height: int, width: int) -> "View":
        """A window of the view; what of it lies outside is left away."""
        y, x = slice(top, top + height), slice(left, left + width)
        return View(self.image[y, x], self.rows[y], self.columns[x])

    def mirrored(self) -> "View":
        """Left and right exchanged."""
        labels = None if self.labels is None else cv2.flip(self.labels, 1)
        return View(cv2.flip(self.image, 1), self.rows, self.columns[::-1], labels)

    def with_labels(self, label_map: Int[np.ndarray, "H W"]) -> "View":
        """The view with what it shows of the example's label map, sampled only once:
        crops are chosen by their labels, which the batch then holds as well.
        """
        if self.labels is not None:
            return self
        return dataclasses.replace(self, labels=self.take(label_map))

    def take(self, values: np.ndarray) -> np.ndarray:
        """What the view shows of a map [H W] of the original; [h w]."""
        return values[self.rows].take(self.columns, axis=1)


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Returns, for each of `new` pixels, which of `old` holds its centre."""
    # cv2's INTER_NEAREST drops the half pixel and would shift labels against the image.
    # Whole numbers, as floats may fall short of a centre that lies on an edge.
    return (2 * np.arange(new) + 1) * old // (2 * new)


def fitted_size(size: tuple[int, int], base_size) -> tuple[int, int]:
    """Returns (height, width) of `size` fitted into (long side, short side)."""
    factor = min(max(base_size) / max(size), min(base_size) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def short_side_size(
    size: tuple[int, int], short_side: int, max_side: int | None = None
) -> tuple[int, int]:
    """Returns (height, width) of `size` with a short side of ``short_side``, or less
    so that the long one is at most ``max_side``; rounded as detectron2 does.
    """
    factor = short_side / min(size)
    sides = [float(short_side if side == min(size) else side * factor) for side in size]
    if max_side is not None and max(sides) > max_side:
        factor = max_side / max(sides)
        sides = [side * factor for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    return height, width


def pad(values: np.ndarray, size: tuple[int, int], value) -> np.ndarray:
    """Returns the array in the upper left of one of (height, width) `size`."""
    height, width = values.shape[:2]
    padded = np.empty((*size, *values.shape[2:]), values.dtype)
    padded[:height, :width] = values
    padded[:height, width:] = value
    padded[height:] = value
    return padded
