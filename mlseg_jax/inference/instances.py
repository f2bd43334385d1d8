"""Instances from queries: masks that may overlap, best first.

Source: masks.md section 5.4 (instance mode of Mask2Former).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask

from mlseg_jax.inference.mask_tiles import (
    Masks,
    MaskTile,
    mask_tiles,
    tile_size,
    upsampled_masks,
)
from mlseg_jax.inference.regions import RegionWindow, SegmentedRegions
from mlseg_jax.inference.run_lengths import RunLengths
from mlseg_jax.inference.segments import Segment
from mlseg_jax.typing import Array, Bool, Float, Int

MAX_INSTANCES = 100

STRIP_BYTES = 2**25
"""What the masks of a strip of columns may take, before they are run lengths."""


def instance_segments(
    picture: SegmentedRegions,
    class_names: Sequence[str],
    is_thing: Bool[np.ndarray, "C"] | None = None,
    *,
    max_instances: int = MAX_INSTANCES,
    score_threshold: float = 0.0,
) -> tuple[Segment, ...]:
    """The best pairs of a query and a class.

    The score is the class's probability times the mean probability of the mask's pixels
    (those with a logit above 0). A query can stand for several classes.

    Args:
      picture: seen through one window.
      class_names: name of each class.
      is_thing: the classes to keep, after the best pairs were chosen; None for all.
      max_instances: pairs that are chosen by the class's probability.
      score_threshold: least score.

    Returns:
      Segments with a pixel, by falling score.
    """
    window = picture.only_window()
    probabilities = window.probabilities()
    selected = probabilities[:, picture.ranks]
    order = np.argsort(-selected.ravel(), kind="stable")[:max_instances]
    queries, columns = np.unravel_index(order, selected.shape)
    ranks = picture.ranks[columns]
    class_ids = picture.class_ids[ranks]
    if is_thing is not None:
        thing = is_thing[class_ids]
        queries, ranks, class_ids = queries[thing], ranks[thing], class_ids[thing]
    if not queries.size:
        return ()
    # Pairs of one query share its mask.
    needed, place = np.unique(queries, return_inverse=True)
    run_lengths, means = encode_masks(window, picture.size, needed)
    scores = probabilities[queries, ranks] * means[place]
    areas = [int(coco_mask.area(runs)) for runs in run_lengths]
    boxes = [tuple(int(v) for v in coco_mask.toBbox(runs)) for runs in run_lengths]
    chosen = [
        i
        for i in np.argsort(-scores, kind="stable")
        if areas[place[i]] and scores[i] >= score_threshold
    ]
    return tuple(
        Segment(
            segment_id=number,
            class_id=int(class_ids[i]),
            label=str(class_names[class_ids[i]]),
            score=float(scores[i]),
            area=areas[place[i]],
            box=boxes[place[i]],
            rank=int(ranks[i]),
            pixels=run_lengths[place[i]],
            query=None if picture.slots is None else int(picture.slots[queries[i]]),
        )
        for number, i in enumerate(chosen, start=1)
    )


def encode_masks(
    window: RegionWindow, size: tuple[int, int], queries: Int[np.ndarray, "n"]
) -> tuple[list[dict], Float[np.ndarray, "n"]]:
    """Run lengths of the masks of some queries, and the mean probability in each.

    Tile by tile down each strip of columns, as run lengths go down the columns.
    """
    height, width = size
    count = 8  # few sizes, for few compilations
    while count < len(queries):
        count *= 2
    masks = window.masks.take(np.resize(queries, count))
    rows, columns = tile_size(3 * count, size)
    while columns > 1 and columns * height * len(queries) > STRIP_BYTES:
        columns //= 2
    encoders = [RunLengths(height) for _ in queries]
    sums, areas = np.zeros(len(queries)), np.zeros(len(queries), np.int64)
    strip = np.zeros((len(queries), min(columns, width), height), bool)
    used = np.zeros(len(queries), bool)
    tiles = mask_tiles(window.rows, window.columns, (rows, columns), by_columns=True)
    for y, x, piece in tiles:
        extent = y.stop - y.start, x.stop - x.start
        bits, tile_sums, tile_areas = _mask_tile(masks, piece, extent)
        own = np.asarray(bits)[: len(queries), : extent[1], : extent[0]]
        strip[:, : extent[1], y] = own
        tile_areas = np.asarray(tile_areas)[: len(queries)]
        sums += np.asarray(tile_sums)[: len(queries)]
        areas += tile_areas
        used |= tile_areas > 0
        if y.stop == height:
            for i, encoder in enumerate(encoders):
                encoder.add(strip[i, : extent[1]] if used[i] else None, extent[1])
            used[:] = False
    means = (sums / (areas + 1e-6)).astype(np.float32)
    return [encoder.compressed() for encoder in encoders], means


@jax.jit
def _mask_tile(
    masks: Masks, tile: MaskTile, extent
) -> tuple[Bool[Array, "n T S"], Float[Array, "n"], Int[Array, "n"]]:
    """Masks of a tile, column after column; sums of probability in them, and pixels."""
    logits = jnp.swapaxes(upsampled_masks(masks, tile), 1, 2)
    real = (jnp.arange(logits.shape[1]) < extent[1])[:, None]
    real = real & (jnp.arange(logits.shape[2]) < extent[0])[None]
    inside = (logits > 0) & real[None]
    sums = jnp.sum(jnp.where(inside, jax.nn.sigmoid(logits), 0.0), axis=(1, 2))
    return inside, sums, jnp.sum(inside, axis=(1, 2), dtype=jnp.int32)
