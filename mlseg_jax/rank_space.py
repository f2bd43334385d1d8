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

TILE_BYTES = 16 * 2**20
"""Upsampled logits that exist at a time."""


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

    def tiles(self) -> Iterator[tuple[slice, slice, tuple, tuple]]:
        """Slices of the picture, with the matrices that make these pixels."""
        batch, num_labels = self.selection.class_ids.shape
        height, width = self.size
        tile_width = 128 if width <= 128 else 512
        budget = TILE_BYTES // (4 * batch * num_labels * tile_width)
        tile_height = 2 ** int(np.clip(np.log2(max(budget, 1)), 3, 9))
        tile_height = min(tile_height, 128 if height <= 128 else 512)
        for y in range(0, height, tile_height):
            rows = tuple(_rows(matrix, y, tile_height) for matrix in self.rows)
            for x in range(0, width, tile_width):
                columns = tuple(_rows(matrix, x, tile_width) for matrix in self.columns)
                end = min(y + tile_height, height), min(x + tile_width, width)
                yield slice(y, end[0]), slice(x, end[1]), rows, columns

    def label_maps(self) -> UInt[np.ndarray, "N H W"]:
        """Class ids of every pixel, uint8 where that holds C of them, else uint16."""
        batch = self.selection.class_ids.shape[0]
        labels = np.zeros((batch, *self.size), self._dtype)
        for y, x, rows, columns in self.tiles():
            tile = np.asarray(tile_labels(self.grids, rows, columns, self.selection))
            labels[:, y, x] = tile[:, : y.stop - y.start, : x.stop - x.start]
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
        for y, x, rows, columns in self.tiles():
            tile = tile_top_labels(self.grids, rows, columns, self.selection, count)
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


def upsampled_tile(grid: Array, rows: Array, columns: Array) -> Float[Array, "B K S T"]:
    """Logits of a tile of pixels, labels before pixels so that sums over them are
    quick.
    """
    lines = jnp.einsum("Sh,bhwk->bkSw", rows, grid)
    return jnp.einsum("Tw,bkSw->bkST", columns, lines)


@jax.jit
def tile_labels(grids, rows, columns, selection: Selection) -> Int[Array, "B S T"]:
    """Class ids of a tile: one argmax over the labels of ``selection``."""
    if len(grids) == 1:  # the softmax of one view changes no argmax
        scores = upsampled_tile(grids[0], rows[0], columns[0])
    else:
        scores = tile_probabilities(grids, rows, columns)
    return ranks_to_labels(jnp.argmax(scores, axis=1), selection)


@jax.jit
def tile_probabilities(grids, rows, columns) -> Float[Array, "B K S T"]:
    """Softmax over the labels; several views are averaged, like the release does."""
    total = sum(
        jax.nn.softmax(upsampled_tile(*view), axis=1)
        for view in zip(grids, rows, columns, strict=True)
    )
    return total / len(grids)


@functools.partial(jax.jit, static_argnames="count")
def tile_top_labels(
    grids, rows, columns, selection: Selection, count: int
) -> tuple[Int[Array, "B count S T"], Float[Array, "B count S T"]]:
    """The ``count`` likeliest classes of every pixel of a tile, and how likely."""
    probabilities = jnp.moveaxis(tile_probabilities(grids, rows, columns), 1, -1)
    best, ranks = jax.lax.top_k(probabilities, count)
    labels = ranks_to_labels(ranks, selection)
    return jnp.moveaxis(labels, -1, 1), jnp.moveaxis(best, -1, 1)
