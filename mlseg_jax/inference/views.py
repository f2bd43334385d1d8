"""How a picture is looked at: scales, mirror images, windows.

A picture is seen through *views* (scales, mirrored or not), a view through *windows* of
one static size. Upsampling the grid of a window, laying overlapping windows side by
side and averaging them, resizing to the picture and mirroring back are all linear, and
separate for rows and columns: one matrix each takes the stitched grids to the pixels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import cv2
import ml_collections
import numpy as np

from input_pipeline.augmentation.transforms import resize_for_test
from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.typing import Float

LADDER = tuple(int(32 * 2 ** (step / 2)) // 16 * 16 for step in range(20))
"""Sides that canvases are padded to, so that few shapes are ever compiled."""


def round_up(length: int) -> int:
    """The next side of the ladder."""
    return next(side for side in LADDER if side >= length)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one axis of a view, and the way from their grids to the pixels.

    Attributes:
      length: pixels of the picture.
      view_length: pixels of the view.
      starts: first pixel of each window in the view.
      size: pixels of a window that are real.
      canvas: pixels of a window with padding.
      cells, canvas_cells: the same of a window's grid; where models see some of the
        padding, the cells of that count as real.
      flip: whether the view is a mirror image.
    """

    length: int
    view_length: int
    starts: tuple[int, ...]
    size: int
    canvas: int
    cells: int
    canvas_cells: int
    flip: bool

    @functools.cached_property
    def matrix(self) -> Float[np.ndarray, "pixels cells"]:
        """From the grids of all windows, one after the other, to the picture.

        Made when it is asked for: masks of regions go another way (``mask_tiles``).
        """
        upsample = bilinear_matrix(self.size, self.canvas_cells, size_in=self.cells)
        count = len(self.starts), self.canvas_cells
        stitched = np.zeros((self.view_length, *count), np.float32)
        covered = np.zeros((self.view_length, 1, 1), np.float32)
        for i, start in enumerate(self.starts):
            stitched[start : start + self.size, i] = upsample
            covered[start : start + self.size] += 1
        matrix = (stitched / covered).reshape(self.view_length, -1)
        if self.length != self.view_length:
            matrix = bilinear_matrix(self.length, self.view_length) @ matrix
        return matrix[::-1] if self.flip else matrix


@functools.lru_cache(maxsize=512)
def plan_axis(
    length: int,
    view_length: int,
    window: int,
    stride: int,
    canvas: int,
    cells: int,
    canvas_cells: int,
    flip: bool,
) -> Axis:
    """Windows every ``stride`` pixels, the last one moved inside; overlaps averaged.

    A window's grid has ``cells`` for its real pixels among ``canvas_cells``.
    """
    size = min(window, view_length)
    count = max(view_length - window + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride, view_length - size), 0) for i in range(count))
    return Axis(length, view_length, starts, size, canvas, cells, canvas_cells, flip)


@dataclasses.dataclass(frozen=True)
class View:
    """One look at a picture: an image and its windows."""

    image: np.ndarray
    rows: Axis
    columns: Axis

    def windows(self) -> Iterator[np.ndarray]:
        """Crops padded to the canvas, row by row."""
        for y in self.rows.starts:
            for x in self.columns.starts:
                crop = self.image[y : y + self.rows.size, x : x + self.columns.size]
                canvas = (self.rows.canvas, self.columns.canvas)
                if crop.shape[:2] != canvas:
                    padded = np.zeros((*canvas, 3), crop.dtype)
                    padded[: crop.shape[0], : crop.shape[1]] = crop
                    crop = padded
                yield crop

    @property
    def num_windows(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)


def make_views(
    image: np.ndarray,
    settings: ml_collections.ConfigDict,
    grid_length: Callable[[int], int],
    any_canvas: bool = True,
    multiple: int = 1,
) -> list[View]:
    """All views of a picture uint8 ``[H W 3]`` under ``eval`` settings.

    ``grid_length``: cells of the logits for so many pixels. ``settings`` also carries
    ``base_size`` of the data; (0, 0) keeps pictures as they are. Without ``any_canvas``
    windows have no padding, and there are as many shapes as sizes of pictures. The
    model sees sides that are padded to a ``multiple`` in any case.
    """
    views = []
    plan = functools.partial(_plan, settings, grid_length, any_canvas, multiple)
    for scale in settings.scales:
        picture = _at_scale(image, settings.base_size, scale)
        for flip in (False, True) if settings.flip else (False,):
            rows = plan(image, picture, axis=0, flip=False)
            columns = plan(image, picture, axis=1, flip=flip)
            seen = np.ascontiguousarray(picture[:, ::-1]) if flip else picture
            views.append(View(seen, rows, columns))
    return views


def _at_scale(image: np.ndarray, base_size, scale: float) -> np.ndarray:
    if max(base_size) > 0:
        return resize_for_test(image, tuple(int(side * scale) for side in base_size))
    if scale == 1:
        return image
    return cv2.resize(image, [max(1, round(s * scale)) for s in image.shape[1::-1]])


def _plan(
    settings, grid_length, any_canvas, multiple, image, picture, *, axis, flip
) -> Axis:
    length = picture.shape[axis]
    if settings.mode == "whole":
        window, stride, canvas = length, length, round_up(length)
    else:
        window, stride = settings.window[axis], settings.stride[axis]
        canvas = window
    if not any_canvas:
        canvas = min(window, length)
    seen, canvas = (-(-n // multiple) * multiple for n in (min(window, length), canvas))
    cells = grid_length(seen), grid_length(canvas)
    return plan_axis(image.shape[axis], length, window, stride, canvas, *cells, flip)
