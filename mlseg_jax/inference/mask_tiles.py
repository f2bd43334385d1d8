"""Masks of object queries at the size of a picture, a tile of pixels at a time.

The network makes masks at stride 4 of its padded input; they are enlarged to that
input, cropped to the picture in it and resized to the picture (method.md 11.3), two
bilinear resizes in a row. Both are linear and separate for rows and columns: a pixel is
a sum of at most 4 x 4 cells, so a tile is two small products, whatever the picture's
size.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.models.layers.resize import bilinear_taps
from mlseg_jax.typing import Array, Float, Int

AnyArray = Array | np.ndarray

SPAN_STEP = 8
"""Cells under a tile are rounded up to this, so that few shapes are compiled."""


def tile_bytes() -> int:
    """What the values of one tile may take, all queries and labels together."""
    return 2**24 if jax.default_backend() == "cpu" else 2**27


def tile_size(values_per_pixel: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of tiles, powers of two, for so many float32 per pixel."""

    def power(pixels: int, side: int, most: int) -> int:
        low, high = 8, max(8, min(side + side - 1, most))  # no larger than needed
        return 2 ** int(np.log2(np.clip(pixels, low, high)))

    pixels = tile_bytes() // (4 * values_per_pixel)
    width = power(pixels // 8, size[1], 128)
    return power(pixels // width, size[0], 512), width


@dataclasses.dataclass(frozen=True)
class MaskAxis:
    """From the cells of a mask to the pixels of the picture, along one axis.

    Attributes:
      cells, weights: the cells that each pixel is a sum of, and their weights.
      share: how much of each pixel this window says; over all windows it sums up to 1.
      num_cells: length of the masks.
    """

    cells: Int[np.ndarray, "pixels 4"]
    weights: Float[np.ndarray, "pixels 4"]
    share: Float[np.ndarray, "pixels"]
    num_cells: int

    def span(self, length: int) -> int:
        """Cells that suffice for any tile of so many pixels."""
        starts = np.arange(0, len(self.cells), length)
        last = np.maximum.reduceat(self.cells.max(axis=1), starts)
        first = np.minimum.reduceat(self.cells.min(axis=1), starts)
        span = int((last - first).max()) + 1
        return min(-(-span // SPAN_STEP) * SPAN_STEP, self.num_cells)

    def tile(
        self, start: int, length: int, span: int
    ) -> tuple[int, Float[np.ndarray, "length span"]]:
        """First cell and matrix of the pixels from ``start`` on, zeros beyond the
        last.
        """
        cells = self.cells[start : start + length]
        first = min(int(cells.min()), self.num_cells - span)
        matrix = np.zeros((length, span), np.float32)
        rows = np.arange(len(cells))[:, None]
        np.add.at(matrix, (rows, cells - first), self.weights[start : start + length])
        return first, matrix


def mask_axes(
    length: int,
    view_length: int,
    starts: Sequence[int],
    size: int,
    padded: int,
    cells: int,
    *,
    num_cells: int | None = None,
    flip: bool = False,
) -> tuple[MaskAxis, ...]:
    """The way from the masks of each window of a view to the picture.

    Args:
      length: pixels of the picture.
      view_length: pixels of the view, which is the picture at another scale.
      starts: first pixel of each window in the view; (0,) for the whole.
      size: pixels of a window that are real.
      padded: pixels of the network's input, of which the masks have ``cells``.
      num_cells: length of the masks where they are longer than ``cells``.
      flip: whether the view is a mirror image.
    """
    num_cells = cells if num_cells is None else num_cells
    low, high, fraction = bilinear_taps(length, length, view_length)
    pixels = np.stack([low, high], 1)
    of_pixels = np.stack([1 - fraction, fraction], 1)
    low, high, fraction = bilinear_taps(padded, padded, cells)
    cells_of = np.stack([low, high], 1)[:size]
    of_cells = np.stack([1 - fraction, fraction], 1)[:size]
    axes, covered = [], np.zeros(length, np.float32)
    for start in starts:
        inside = (pixels >= start) & (pixels < start + size)
        weights = np.where(inside, of_pixels, np.float32(0.0))
        share = weights.sum(axis=1)
        covered += share
        # At its border a window has only some of a pixel's samples: they are all.
        weights /= np.where(share == 0.0, np.float32(1.0), share)[:, None]
        local = np.clip(pixels - start, 0, size - 1)
        weights = weights[:, :, None] * of_cells[local]
        axes.append((cells_of[local].reshape(length, 4), weights, share))
    step = -1 if flip else 1
    return tuple(
        MaskAxis(
            index[::step],
            weights.reshape(length, 4)[::step],
            (share / covered)[::step],
            num_cells,
        )
        for index, weights, share in axes
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masks:
    """Mask logits as the product of queries and cells, of which only parts are made.

    Attributes:
      features: embedding of each cell of a batch of windows, which is as the network
        gives it: one window's would be a copy. Where ``embeddings`` is None, the mask
        logits themselves, one for each query.
      embeddings: mask embedding of each query of this window.
      row: the window's place in the batch.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    features: Float[AnyArray, "B h w E"]
    embeddings: Float[AnyArray, "N E"] | None = None
    row: int = 0

    @property
    def num_queries(self) -> int:
        if self.embeddings is None:
            return self.features.shape[-1]
        return len(self.embeddings)

    def on_device(self) -> "Masks":
        """The same, sent to the device once and not with every tile."""
        return jax.tree.map(jnp.asarray, self)

    def take(self, query_ids: Int[np.ndarray, "n"]) -> "Masks":
        """The masks of some queries, on the device."""
        masks = self.on_device()
        if masks.embeddings is None:
            return Masks(masks.features[self.row][:, :, query_ids][None])
        return Masks(masks.features, masks.embeddings[query_ids], self.row)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskTile:
    """What the masks of a tile are made of; see `upsampled_masks`.

    Attributes:
      corner: first row and column of cells.
      rows, columns: from these cells to the pixels.
    """

    __no_type_check__ = True

    corner: tuple[int, int]
    rows: Float[AnyArray, "S _"]
    columns: Float[AnyArray, "T _"]


def mask_tiles(
    rows: MaskAxis, columns: MaskAxis, tile: tuple[int, int], by_columns: bool = False
) -> Iterator[tuple[slice, slice, MaskTile]]:
    """Slices of the picture, and what makes these pixels; all of one static shape.

    Rows of tiles from left to right, or with ``by_columns`` columns from the top.
    """
    size = len(rows.cells), len(columns.cells)
    spans = rows.span(tile[0]), columns.span(tile[1])
    tops, lefts = range(0, size[0], tile[0]), range(0, size[1], tile[1])
    corners = [(y, x) for x in lefts for y in tops]
    for y, x in corners if by_columns else sorted(corners):
        top, row_matrix = rows.tile(y, tile[0], spans[0])
        left, column_matrix = columns.tile(x, tile[1], spans[1])
        end = min(y + tile[0], size[0]), min(x + tile[1], size[1])
        piece = MaskTile((top, left), row_matrix, column_matrix)
        yield slice(y, end[0]), slice(x, end[1]), piece


def upsampled_masks(masks: Masks, tile: MaskTile) -> Float[Array, "N S T"]:
    """Mask logits of a tile of pixels.

    In full float32: a threshold follows, and neighbouring cells differ by much. Rows
    first: on CPU five times as quick as columns first, or as queries last.
    """
    span = tile.rows.shape[1], tile.columns.shape[1]
    shape = (1, *span, masks.features.shape[3])
    corner = (masks.row, *tile.corner, 0)
    cells = jax.lax.dynamic_slice(masks.features, corner, shape)[0]
    cells = cells.astype(jnp.float32)
    exact = {"precision": jax.lax.Precision.HIGHEST}
    if masks.embeddings is None:
        cells = jnp.transpose(cells, (2, 0, 1))
    else:
        embeddings = masks.embeddings.astype(jnp.float32)
        cells = jnp.einsum("hwe,ne->nhw", cells, embeddings, **exact)
    lines = jnp.einsum("Sh,nhw->nSw", tile.rows, cells, **exact)
    return jnp.einsum("Tw,nSw->nST", tile.columns, lines, **exact)
