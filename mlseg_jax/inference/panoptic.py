"""Panoptic segments from queries: each pixel goes to one query, or to none.

Rules and order are those of the releases of Mask2Former and MaskFormer (masks.md 3.3,
5.4; method.md 11.3).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from mlseg_jax.inference.mask_tiles import (
    Masks,
    MaskTile,
    mask_tiles,
    tile_size,
    upsampled_masks,
)
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.typing import VOID, Array, Bool, Float, Int


def panoptic_segments(
    picture: SegmentedRegions,
    class_names: Sequence[str],
    is_thing: Bool[np.ndarray, "C"],
    *,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    inside_mask: bool = True,
) -> Panoptic:
    """The segments of a picture.

    A query counts if its class is not no-object and more probable than
    ``object_threshold``; a pixel goes to the query with the largest product of this
    probability and its mask's. A query keeps what it won if that is at least
    ``overlap_threshold`` of its mask (probability from 0.5 on). Segments of one class
    of stuff are one, with the highest of their scores.

    Args:
      picture: seen through one window.
      class_names: name of each class.
      is_thing: whether each class is a thing.
      object_threshold, overlap_threshold: see above.
      inside_mask: whether a segment is only what it won inside its mask (Mask2Former),
        or all that it won (MaskFormer).
    """
    window = picture.only_window()
    probabilities = window.probabilities()
    best = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    no_object = probabilities.shape[1] - 1
    kept = np.flatnonzero((best != no_object) & (scores > object_threshold))
    if not kept.size:
        return Panoptic(np.full(picture.size, VOID, np.int32), ())
    ranks, scores = best[kept], scores[kept]
    segment_map, areas = _assign(picture, kept, scores)
    good = areas[:, 0] / np.maximum(areas[:, 1], 1) >= overlap_threshold
    good &= (areas[:, : 3 if inside_mask else 2] > 0).all(axis=1)
    class_ids = picture.class_ids[ranks]
    ids, leaders = _number(class_ids, good, is_thing)
    _renumber(segment_map, np.full_like(ids, VOID) if inside_mask else ids, ids)
    area_of = np.bincount(
        ids, weights=areas[:, 2 if inside_mask else 0], minlength=len(leaders) + 1
    ).astype(int)
    boxes = ndimage.find_objects(segment_map, len(leaders))
    segments = tuple(
        Segment(
            segment_id=i,
            class_id=int(class_ids[q]),
            label=str(class_names[class_ids[q]]),
            score=float(scores[ids == i].max()),
            area=int(area_of[i]),
            box=_box(*boxes[i - 1]),
            rank=int(ranks[q]),
            pixels=segment_map,
        )
        for i, q in enumerate(leaders, start=1)
    )
    return Panoptic(segment_map, segments)


def _renumber(
    winners: Int[np.ndarray, "H W"],
    outside: Int[np.ndarray, "n"],
    inside: Int[np.ndarray, "n"],
) -> None:
    """Puts segment ids, those outside and inside of masks, in place of winners."""
    table = np.r_[VOID, np.stack([outside, inside], axis=1).ravel()].astype(np.int32)
    for row in winners:  # row by row: a copy would be as large as the map
        row[:] = table[row]


def _number(
    class_ids: Int[np.ndarray, "n"],
    good: Bool[np.ndarray, "n"],
    is_thing: Bool[np.ndarray, "C"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "segments"]]:
    """Segment id of each query, in their order, and the first query of each segment.

    Those that are not good have none; those of one class of stuff have one.
    """
    ids = np.full(len(class_ids), VOID)
    leaders, stuff = [], {}
    for q in np.flatnonzero(good):
        class_id = class_ids[q]
        if not is_thing[class_id] and class_id in stuff:
            ids[q] = stuff[class_id]
            continue
        leaders.append(q)
        ids[q] = len(leaders)
        if not is_thing[class_id]:
            stuff[class_id] = ids[q]
    return ids, np.asarray(leaders, int)


def _assign(
    picture: SegmentedRegions,
    kept: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, "n 3"]]:
    """Who wins each pixel, and three areas of each query.

    A pixel holds 1 + 2 q if the q-th of the kept queries won it, one more inside its
    mask. The areas are what it won, its mask, and both.
    """
    window = picture.only_window()
    count = 8  # few sizes, for few compilations
    while count < len(kept):
        count *= 2
    masks = window.masks.take(np.resize(kept, count))
    # Those that only pad win nothing.
    weights = np.full(count, -1.0, np.float32)
    weights[: len(kept)] = scores
    winners = np.zeros(picture.size, np.int32)
    areas = np.zeros((len(kept), 3), np.int64)
    tile = tile_size(3 * count, picture.size)
    for y, x, piece in mask_tiles(window.rows, window.columns, tile):
        extent = y.stop - y.start, x.stop - x.start
        found, mask_areas = _winners(masks, piece, weights, extent)
        winners[y, x] = np.asarray(found)[: extent[0], : extent[1]]
        won = np.bincount(winners[y, x].ravel(), minlength=2 * len(kept) + 1)
        won = won[1:].reshape(-1, 2)
        areas[:, 0] += won.sum(axis=1)
        areas[:, 1] += np.asarray(mask_areas)[: len(kept)]
        areas[:, 2] += won[:, 1]
    return winners, areas


@jax.jit
def _winners(
    masks: Masks, tile: MaskTile, weights: Float[Array, "n"], extent
) -> tuple[Int[Array, "S T"], Int[Array, "n"]]:
    """Of each pixel of a tile the best query, see `_assign`; pixels of each mask."""
    logits = upsampled_masks(masks, tile)
    inside = logits >= 0.0  # a probability of at least 0.5
    values = jax.nn.sigmoid(logits) * weights[:, None, None]
    codes = 1 + 2 * jnp.arange(len(weights))[:, None, None] + inside
    is_best = values == jnp.max(values, axis=0, keepdims=True)
    best = jnp.min(jnp.where(is_best, codes, 2 * len(weights)), axis=0)
    real = jnp.arange(inside.shape[1]) < extent[0]
    real = real[:, None] & (jnp.arange(inside.shape[2]) < extent[1])[None]
    return best, jnp.sum(inside & real[None], axis=(1, 2), dtype=jnp.int32)


def _box(rows: slice, columns: slice) -> tuple[int, int, int, int]:
    """Left, top, width and height."""
    width, height = columns.stop - columns.start, rows.stop - rows.start
    return columns.start, rows.start, width, height
