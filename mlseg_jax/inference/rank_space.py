"""Segmented pictures as logits over ranks, and the tiles of pixels made of them.

The logits of a picture are a small grid over the labels that were selected for it.
Pixels are made a tile at a time, and a rank becomes a class id once the argmax is
taken: nothing here has C channels.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.label_selection import Selection, ranks_to_labels
from mlseg_jax.typing import Array, Float, Int, UInt


def tile_bytes() -> int:
    """Upsampled logits that exist at a time: a CPU's cache full, or work for a GPU."""
    return 4 * 2**20 if jax.default_backend() == "cpu" else 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A batch of pictures of one size, ready to be turned into label maps.

    Attributes:
      size: height and width of the pictures.
      grids: per view, stitched logits over the labels of ``selection``.
      rows, columns: per view, matrices from the grid to the pixels.
      selection: the labels; with several windows, the union of theirs.
      scores: label scores of each picture, the highest of its windows'.
      count: how many pictures are real; the rest pads the batch.
    """

    size: tuple[int, int]
    grids: tuple[Float[Array | np.ndarray, "B _ _ K"], ...]
    rows: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    selection: Selection
    scores: Float[np.ndarray, "N C"]
    count: int

    def tiles(self) -> Iterator[tuple[slice, slice, tuple]]:
        """Slices of the picture, and per view what makes these pixels.

        That is grid, rows and columns for `upsampled_tile`, of few different shapes
        whatever the sizes of pictures.
        """
        batch, num_labels = self.selection.class_ids.shape
        height, width = self.size
        side = 128 if max(self.size) <= 128 else 512
        budget = tile_bytes() // (4 * batch * num_labels * side)
        tile_height = 2 ** int(np.clip(np.log2(max(budget, 1)), 3, np.log2(side)))
        views = list(zip(self.grids, self.rows, self.columns, strict=True))
        for y in range(0, height, tile_height):
            for x in range(0, width, side):
                pieces = tuple(
                    _needed(grid, _rows(rows, y, tile_height), _rows(columns, x, side))
                    for grid, rows, columns in views
                )
                end = min(y + tile_height, height), min(x + side, width)
                yield slice(y, end[0]), slice(x, end[1]), pieces

    def label_tiles(self) -> Iterator[tuple[slice, slice, Int[Array, "B S T"]]]:
        """Slices of the picture, and the class ids there.

        Tiles at the right and lower border reach over it.
        """
        for y, x, pieces in self.tiles():
            yield y, x, tile_labels(pieces, self.selection)

    def label_maps(self) -> UInt[np.ndarray, "N H W"]:
        """Class ids of every pixel, uint8 where that holds C of them, else uint16."""
        batch = self.selection.class_ids.shape[0]
        labels = np.zeros((batch, *self.size), self._dtype)
        for y, x, tile in self.label_tiles():
            inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
            labels[:, y, x] = np.asarray(tile)[inside]
        return labels[: self.count]

    def top_labels(
        self, count: int
    ) -> tuple[UInt[np.ndarray, "N n H W"], Float[np.ndarray, "N n H W"]]:
        """The likeliest ``count`` classes of every pixel and their probabilities.

        Compact: n small maps in place of C probabilities, the latter as float16.
        """
        batch, num_labels = self.selection.class_ids.shape
        count = min(count, num_labels)
        labels = np.zeros((batch, count, *self.size), self._dtype)
        probabilities = np.zeros((batch, count, *self.size), np.float16)
        for y, x, pieces in self.tiles():
            tile = tile_top_labels(pieces, self.selection, count)
            inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
            labels[..., y, x] = np.asarray(tile[0])[inside]
            probabilities[..., y, x] = np.asarray(tile[1])[inside]
        return labels[: self.count], probabilities[: self.count]

    @property
    def _dtype(self) -> np.dtype:
        """The smallest type that holds C class ids."""
        return np.dtype(np.uint8 if self.selection.num_classes <= 256 else np.uint16)


def _rows(matrix: np.ndarray, start: int, count: int) -> np.ndarray:
    """Some rows of a matrix, zeros where it has no more."""
    part = matrix[start : start + count]
    return np.pad(part, [(0, count - len(part)), (0, 0)])


def _needed(grid, rows: np.ndarray, columns: np.ndarray):
    """The cells of a stitched grid that a tile is made of, on a square of a static
    size.

    A grid that is still on the device is one window, whose size is static already.
    """
    if not isinstance(grid, np.ndarray):
        return grid, rows, columns
    used = [np.flatnonzero(matrix.any(axis=0)) for matrix in (rows, columns)]
    (top, bottom), (left, right) = ((cells[0], cells[-1] + 1) for cells in used)
    side = 32
    while side < max(bottom - top, right - left):
        side *= 2

    def fit(x: np.ndarray, axis: int) -> np.ndarray:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, side - x.shape[axis])
        return np.pad(x, padding)

    grid = fit(fit(grid[:, top:bottom, left:right], 1), 2)
    return grid, fit(rows[:, top:bottom], 1), fit(columns[:, left:right], 1)


def upsampled_tile(grid: Array, rows: Array, columns: Array) -> Float[Array, "B K S T"]:
    """Logits of a tile of pixels, labels before pixels so that sums over them are
    quick.
    """
    lines = jnp.einsum("Sh,bhwk->bkSw", rows, grid)
    return jnp.einsum("Tw,bkSw->bkST", columns, lines)


@jax.jit
def tile_labels(pieces, selection: Selection) -> Int[Array, "B S T"]:
    """Class ids of a tile: one argmax over the labels of ``selection``."""
    if len(pieces) == 1:  # the softmax of one view changes no argmax
        scores = upsampled_tile(*pieces[0])
    else:
        scores = tile_probabilities(pieces)
    return ranks_to_labels(best_rank(scores), selection)


@jax.jit
def best_rank(scores: Float[Array, "B K S T"]) -> Int[Array, "B S T"]:
    """``argmax`` over ranks, the first one on ties, in two quick reductions.

    XLA on CPU runs its own, of pairs, a value at a time.
    """
    num_ranks = scores.shape[1]
    is_best = scores == jnp.max(scores, axis=1, keepdims=True)
    ranks = jnp.arange(num_ranks)[None, :, None, None]
    return jnp.min(jnp.where(is_best, ranks, num_ranks - 1), axis=1)


@jax.jit
def tile_probabilities(pieces) -> Float[Array, "B K S T"]:
    """Softmax over the labels; several views are averaged, like the release does."""
    total = sum(jax.nn.softmax(upsampled_tile(*piece), axis=1) for piece in pieces)
    return total / len(pieces)


@functools.partial(jax.jit, static_argnames="count")
def tile_top_labels(
    pieces, selection: Selection, count: int
) -> tuple[Int[Array, "B count S T"], Float[Array, "B count S T"]]:
    """The ``count`` likeliest classes of every pixel of a tile, and how likely."""
    probabilities = jnp.moveaxis(tile_probabilities(pieces), 1, -1)
    best, ranks = jax.lax.top_k(probabilities, count)
    labels = ranks_to_labels(ranks, selection)
    return jnp.moveaxis(labels, -1, 1), jnp.moveaxis(best, -1, 1)
