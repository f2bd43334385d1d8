"""What a region model says of a picture, and its label map.

A window of a picture comes out of the network as class logits of N queries over K
ranks and no-object, and as their masks. A pixel's score for a label is the sum over
queries of the label's probability times the mask's (method.md 11.3); windows, scales
and mirror images are averaged over the union of the labels that they selected. Scores
exist a tile at a time, and a rank becomes a class id last: nothing here has C channels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.inference.mask_tiles import (
    MaskAxis,
    Masks,
    MaskTile,
    mask_axes,
    mask_tiles,
    tile_size,
    upsampled_masks,
)
from mlseg_jax.inference.rank_space import best_rank
from mlseg_jax.inference.views import View
from mlseg_jax.label_selection import Selection, ranks_to_labels
from mlseg_jax.typing import Array, Float, Int, UInt

AnyArray = Array | np.ndarray

TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class RegionWindow:
    """One window of a picture, as the network saw it.

    Attributes:
      class_logits: over the ranks of this window; no-object is the last column.
      masks: of the same queries.
      rows, columns: from the masks to the picture.
      ranks: rank of each label of the picture's union, K or more where this window did
        not select it; None if its ranks are those of the picture.
    """

    class_logits: Float[AnyArray, "N _"]
    masks: Masks
    rows: MaskAxis
    columns: MaskAxis
    ranks: Int[np.ndarray, "U"] | None = None

    def probabilities(self) -> Float[np.ndarray, "N _"]:
        """Softmax over the ranks of this window and no-object, which is last."""
        logits = np.asarray(self.class_logits, np.float32)
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        return values / values.sum(axis=1, keepdims=True)

    def label_probabilities(self) -> Float[np.ndarray, "N U"]:
        """Of each label of the picture; 0 where it was not selected here.

        The release gives such labels the logit -100, which comes to the same.
        """
        probabilities = self.probabilities()
        if self.ranks is None:
            return probabilities[:, :-1]
        probabilities[:, -1] = 0.0
        return probabilities[:, np.minimum(self.ranks, probabilities.shape[1] - 1)]


@dataclasses.dataclass(frozen=True)
class SegmentedRegions:
    """A picture, ready to be turned into a label map, segments or instances.

    As label maps are concerned it is used like `rank_space.Segmented`, with a batch of
    one.

    Attributes:
      size: height and width of the picture.
      windows: what was seen of it; segments and instances need exactly one.
      selection: the labels; with several windows, the union of theirs.
      scores: label scores of the picture, the highest of its windows'.
      slots: of a frame of a video, what each query is called in all of it.
    """

    size: tuple[int, int]
    windows: tuple[RegionWindow, ...]
    selection: Selection
    scores: Float[np.ndarray, "1 C"]
    slots: Int[np.ndarray, "N"] | None = None

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return 1

    @property
    def class_ids(self) -> Int[np.ndarray, "U"]:
        """Class of each rank of the picture."""
        return np.asarray(self.selection.class_ids)[0]

    @property
    def ranks(self) -> Int[np.ndarray, "n"]:
        """The ranks that are a selected label, and no padding."""
        if self.selection.valid is None:
            return np.arange(len(self.class_ids))
        return np.flatnonzero(np.asarray(self.selection.valid)[0])

    @property
    def selected_class_ids(self) -> set[int]:
        """Classes that something could be found to be."""
        return set(self.class_ids[self.ranks].tolist())

    def score_tiles(self) -> Iterator[tuple[slice, slice, Float[Array, "U S T"]]]:
        """Slices of the picture, and the scores of the labels there.

        Tiles at the right and lower border reach over it.
        """
        queries = max(window.masks.num_queries for window in self.windows)
        tile = tile_size(2 * (queries + len(self.class_ids)), self.size)
        probabilities = [
            jnp.asarray(window.label_probabilities()) for window in self.windows
        ]
        masks = [window.masks.on_device() for window in self.windows]
        streams = [mask_tiles(w.rows, w.columns, tile) for w in self.windows]
        if len(self.windows) == 1:
            for y, x, piece in streams[0]:
                yield y, x, _score_tile(probabilities[0], masks[0], piece)
            return
        for pieces in zip(*streams, strict=True):
            y, x, _ = pieces[0]
            total = jnp.zeros((len(self.class_ids), *tile), jnp.float32)
            for window, labels, own, (*_, piece) in zip(
                self.windows, probabilities, masks, pieces, strict=True
            ):
                shares = [
                    np.pad(axis.share[part], (0, length - (part.stop - part.start)))
                    for axis, part, length in zip(
                        (window.rows, window.columns), (y, x), tile, strict=True
                    )
                ]
                if all(share.any() for share in shares):
                    total = _add_scores(total, labels, own, piece, *shares)
            yield y, x, total

    def label_tiles(self) -> Iterator[tuple[slice, slice, Int[Array, "1 S T"]]]:
        """Slices of the picture, and the class ids there; see `score_tiles`."""
        for y, x, scores in self.score_tiles():
            yield y, x, ranks_to_labels(best_rank(scores[None]), self.selection)

    def label_maps(self) -> UInt[np.ndarray, "1 H W"]:
        """Class ids of every pixel, uint8 where that holds C of them, else uint16."""
        labels = np.zeros((1, *self.size), self._dtype)
        for y, x, tile in self.label_tiles():
            inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
            labels[:, y, x] = np.asarray(tile)[inside]
        return labels

    def top_labels(
        self, count: int
    ) -> tuple[UInt[np.ndarray, "1 n H W"], Float[np.ndarray, "1 n H W"]]:
        """The best ``count`` classes of every pixel and their scores, as float16.

        Scores are divided by their sum over the labels, as probabilities would be.
        """
        count = min(count, len(self.class_ids))
        labels = np.zeros((1, count, *self.size), self._dtype)
        shares = np.zeros((1, count, *self.size), np.float16)
        for y, x, scores in self.score_tiles():
            inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
            best, ranks = (np.asarray(part) for part in _top_ranks(scores, count))
            labels[0, :, y, x] = self.class_ids[ranks[inside]]
            shares[0, :, y, x] = best[inside]
        return labels, shares

    def only_window(self) -> RegionWindow:
        """The one window that segments can be made of.

        Raises:
          ValueError: there are several; queries of two windows mean different objects.
        """
        if len(self.windows) != 1:
            raise ValueError(
                f"Segments are made of one window, not of {len(self.windows)}; set "
                "eval.mode to whole, eval.flip to False and one scale."
            )
        return self.windows[0]

    @property
    def _dtype(self) -> np.dtype:
        """The smallest type that holds C class ids."""
        return np.dtype(np.uint8 if self.selection.num_classes <= 256 else np.uint16)


def regions_of_views(
    size: tuple[int, int],
    views: Sequence[View],
    windows: Sequence[tuple[Float[AnyArray, "N _"], Masks]],
    selection: Selection,
    scores: Float[np.ndarray, "1 C"],
    ranks: Int[np.ndarray, "windows U"] | None = None,
) -> SegmentedRegions:
    """A picture out of what the network gave for each window of its views.

    Args:
      size: height and width of the picture.
      views: its scales and mirror images, which have equal weight; where windows
        overlap they are averaged.
      windows: class logits and masks of each window, view by view, row by row.
      selection, scores: see `SegmentedRegions`.
      ranks: see `RegionWindow`; None where each window's ranks are the picture's.
    """
    results = []
    for view in views:
        rows, columns = (
            mask_axes(
                axis.length,
                axis.view_length,
                axis.starts,
                axis.size,
                axis.seen,
                axis.cells,
                num_cells=axis.canvas_cells,
                flip=axis.flip,
            )
            for axis in (view.rows, view.columns)
        )
        for row, column in itertools.product(rows, columns):
            row = dataclasses.replace(row, share=row.share / len(views))
            own = None if ranks is None else ranks[len(results)]
            logits, masks = windows[len(results)]
            results.append(RegionWindow(logits, masks, row, column, own))
    return SegmentedRegions(size, tuple(results), selection, scores)


def _class_scores(
    probabilities: Float[Array, "N U"], masks: Masks, tile: MaskTile
) -> Float[Array, "U S T"]:
    """Sum over queries of the label's probability times the mask's."""
    inside = jax.nn.sigmoid(upsampled_masks(masks, tile))
    return jnp.einsum(
        "nu,nST->uST", probabilities, inside, precision=jax.lax.Precision.HIGHEST
    )


_score_tile = jax.jit(_class_scores)


@functools.partial(jax.jit, donate_argnums=0)
def _add_scores(total, probabilities, masks, tile, row_share, column_share):
    """Adds a window's part to the scores of a tile."""
    share = (row_share[:, None] * column_share[None])[None]
    return total + share * _class_scores(probabilities, masks, tile)


@functools.partial(jax.jit, static_argnames="count")
def _top_ranks(
    scores: Float[Array, "U S T"], count: int
) -> tuple[Float[Array, "count S T"], Int[Array, "count S T"]]:
    # Where every mask underflows no label has a share.
    total = jnp.maximum(jnp.sum(scores, axis=0, keepdims=True), TINY)
    values = jnp.moveaxis(scores / total, 0, -1)
    best, ranks = jax.lax.top_k(values, count)
    return jnp.moveaxis(best, -1, 0), jnp.moveaxis(ranks, -1, 0)
