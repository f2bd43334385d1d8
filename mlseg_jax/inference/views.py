"""How a picture is looked at: scales, mirror images, windows.

A picture is seen through *views* (scales, mirrored or not), a view through *windows* of
one static size. Upsampling the grid of a window, laying overlapping windows side by
side and averaging them, resizing to the picture and mirroring back are all linear, and
separate for rows and columns: one matrix each takes the stitched grids to the pixels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import cv2
import ml_collections
import numpy as np

from input_pipeline.augmentation.transforms import resize_for_test
from input_pipeline.augmentation.views import fitted_size
from mlseg_jax.models.layers.resize import bilinear_matrix, bilinear_taps
from mlseg_jax.typing import Float, Int

KEPT_BYTES = 2**20
"""Of the largest matrix that is kept for the next picture of its size; those of large
pictures take a hundred times that, and little of the time such a picture takes."""


@functools.lru_cache(maxsize=512)
def round_up(length: int) -> int:
    """The next side of a ladder, so that few shapes of canvases are ever compiled."""
    sides = (int(32 * 2 ** (step / 2)) // 16 * 16 for step in itertools.count())
    return next(side for side in sides if side >= length)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one axis of a view, and the way from their grids to the pixels.

    Attributes:
      length: pixels of the picture.
      view_length: pixels of the view.
      starts: first pixel of each window in the view.
      size: pixels of a window that are real.
      canvas: pixels of a window with padding.
      cells, canvas_cells: of the grid, those of what is seen and of the canvas.
      flip: whether the view is a mirror image.
      seen: pixels of a window that its grid is of: real ones and padding that the model
        sees.
    """

    length: int
    view_length: int
    starts: tuple[int, ...]
    size: int
    canvas: int
    cells: int
    canvas_cells: int
    flip: bool
    seen: int

    @property
    def matrix(self) -> Float[np.ndarray, "pixels cells"]:
        """From the grids of all windows, one after the other, to the picture.

        Made when it is asked for: masks of regions go another way (``mask_tiles``).
        """
        size = 4 * self.length * len(self.starts) * self.canvas_cells
        return _kept_matrix(self) if size <= KEPT_BYTES else self._matrix()

    def _matrix(self) -> Float[np.ndarray, "pixels cells"]:
        matrix = self._from_windows(range(len(self.starts)), 0, self.view_length)
        if self.length != self.view_length:
            matrix = self._resampled(slice(0, self.length), matrix, 0)
        return matrix[::-1] if self.flip else matrix

    def reaching(self, pixels: slice) -> list[int]:
        """Which windows some pixels of the picture are made of; none mirrored."""
        first, last = self._span(pixels)
        starts = enumerate(self.starts)
        return [i for i, x in starts if x < last and x + self.size > first]

    def part(self, pixels: slice) -> Float[np.ndarray, "pixels cells"]:
        """Rows of `matrix`, of the columns of windows `reaching` there alone."""
        first, last = self._span(pixels)
        matrix = self._from_windows(self.reaching(pixels), first, last)
        if self.length == self.view_length:
            return matrix
        return self._resampled(pixels, matrix, first)

    def _from_windows(
        self, windows: Sequence[int], first: int, last: int
    ) -> Float[np.ndarray, "view_pixels cells"]:
        """From the grids of some windows to some pixels of the view."""
        upsample = bilinear_matrix(self.size, self.canvas_cells, size_in=self.cells)
        count = len(windows), self.canvas_cells
        stitched = np.zeros((last - first, *count), np.float32)
        covered = np.zeros((last - first, 1, 1), np.float32)
        for i, window in enumerate(windows):
            start = self.starts[window]
            low, high = max(start, first), min(start + self.size, last)
            stitched[low - first : high - first, i] = upsample[
                low - start : high - start
            ]
            covered[low - first : high - first] += 1
        stitched /= covered
        return stitched.reshape(last - first, -1)

    def _span(self, pixels: slice) -> tuple[int, int]:
        """First pixel of the view that pixels of the picture need, and after the
        last.
        """
        if self.length == self.view_length:
            return pixels.start, pixels.stop
        low, high, _ = self._taps
        return int(low[pixels].min()), int(high[pixels].max()) + 1

    def _resampled(self, pixels: slice, matrix: np.ndarray, first: int) -> np.ndarray:
        """Pixels of the picture out of the view's from ``first`` on."""
        low, high, fraction = (x[pixels] for x in self._taps)
        fraction = fraction[:, None]
        result = matrix[low - first] * (1 - fraction)
        result += matrix[high - first] * fraction
        return result

    @functools.cached_property
    def _taps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return bilinear_taps(self.length, self.length, self.view_length)


@functools.lru_cache(maxsize=64)
def _kept_matrix(axis: Axis) -> Float[np.ndarray, "pixels cells"]:
    return axis._matrix()


@functools.lru_cache(maxsize=64)
def plan_axis(
    length: int,
    view_length: int,
    window: int,
    stride: int,
    canvas: int,
    cells: int,
    canvas_cells: int,
    flip: bool,
    seen: int | None = None,
) -> Axis:
    """Windows every ``stride`` pixels, the last one moved inside; overlaps averaged.

    A window's grid has ``cells`` for what is ``seen`` of it among ``canvas_cells``.
    """
    size = min(window, view_length)
    count = max(view_length - window + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride, view_length - size), 0) for i in range(count))
    return Axis(
        *(length, view_length, starts, size, canvas, cells, canvas_cells, flip),
        seen=size if seen is None else seen,
    )


@dataclasses.dataclass(frozen=True)
class View:
    """One look at a picture: an image and its windows."""

    image: np.ndarray
    rows: Axis
    columns: Axis

    def windows(self, rows: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Crops padded to the canvas, row by row; of some ``rows`` of windows or
        all.
        """
        rows = range(len(self.rows.starts)) if rows is None else rows
        for y in (self.rows.starts[row] for row in rows):
            for x in self.columns.starts:
                crop = self.image[y : y + self.rows.size, x : x + self.columns.size]
                canvas = (self.rows.canvas, self.columns.canvas)
                if crop.shape[:2] != canvas:
                    padded = np.zeros((*canvas, 3), crop.dtype)
                    padded[: crop.shape[0], : crop.shape[1]] = crop
                    crop = padded
                yield crop

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of a window without its padding."""
        return self.rows.size, self.columns.size

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
            views.append(View(picture[:, ::-1] if flip else picture, rows, columns))
    return views


def label_maps_of_views(
    label_map: Int[np.ndarray, "H W"], settings: ml_collections.ConfigDict
) -> list[Int[np.ndarray, "_ _"]]:
    """The true labels as each of `make_views` has them, but never mirrored.

    Resized as the release does it, by OpenCV's nearest neighbour: what is small can
    vanish.
    """
    maps = []
    for scale in settings.scales:
        size = _size_at_scale(label_map.shape, settings.base_size, scale)
        seen = cv2.resize(label_map, size[::-1], interpolation=cv2.INTER_NEAREST)
        maps += [seen] * (2 if settings.flip else 1)
    return maps


def _size_at_scale(size, base_size, scale: float) -> tuple[int, int]:
    if max(base_size) > 0:
        return fitted_size(size, tuple(int(side * scale) for side in base_size))
    return tuple(max(1, round(side * scale)) for side in size)


def _at_scale(image: np.ndarray, base_size, scale: float) -> np.ndarray:
    if max(base_size) > 0:
        return resize_for_test(image, tuple(int(side * scale) for side in base_size))
    if scale == 1:
        return image
    return cv2.resize(image, _size_at_scale(image.shape[:2], base_size, scale)[::-1])


def _plan(
    settings, grid_length, any_canvas, multiple, image, picture, *, axis, flip
) -> Axis:
    length = picture.shape[axis]
    if settings.mode == "whole":
        # The recipe's own sides are rungs, too: 640 is not enlarged to 720.
        own = [side for side in settings.window if side >= length]
        window, stride, canvas = length, length, min([round_up(length), *own])
    else:
        window, stride = settings.window[axis], settings.stride[axis]
        canvas = window
    if not any_canvas:
        canvas = min(window, length)
    seen, canvas = (-(-n // multiple) * multiple for n in (min(window, length), canvas))
    cells = grid_length(seen), grid_length(canvas)
    return plan_axis(
        *(image.shape[axis], length, window, stride, canvas, *cells, flip), seen
    )
