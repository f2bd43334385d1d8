"""From what a model said of windows to pictures: unions of labels, stitched grids."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mlseg_jax.inference.mask_tiles import Masks
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions, regions_of_views
from mlseg_jax.inference.views import View
from mlseg_jax.label_selection import UNSELECTED_LOGIT, Selection
from mlseg_jax.models.interfaces import RegionOutput
from mlseg_jax.typing import Array, Bool, Float, Int

NEVER = -1e4
"""Logit of places that only pad a union to a static size."""

Parts = Sequence[tuple[Selection, Array | np.ndarray | RegionOutput, int]]
"""Per batch of windows: what was selected, what came out (on the host, where there are
pixels to stitch), how many are real.
"""


def assemble_pixels(
    images: Sequence[np.ndarray],
    views: Sequence[Sequence[View]],
    owners: Int[np.ndarray, "windows"],
    parts: Parts,
    scores: Float[np.ndarray, "windows C"],
    num_classes: int,
) -> list[Segmented]:
    """Per picture: the union of its windows' labels, and its stitched grids.

    Args:
      images: pictures; views: of each; owners: the picture of each window.
      parts: logits over ranks [B h w K].
      scores: label scores of each window.
      num_classes: C.
    """
    sizes = {image.shape[:2] for image in images}
    if len(owners) == len(images) and len(sizes) == 1:
        return _whole_batches(*sizes, views[0][0], parts, scores)
    parts = [(jax.device_get(s), np.asarray(x), n) for s, x, n in parts]
    logits = [x[i] for _, x, count in parts for i in range(count)]
    class_ids, valid = _selected(parts)
    results = []
    for i, (image, picture_views) in enumerate(zip(images, views, strict=True)):
        mine = np.flatnonzero(owners == i)
        union, real, ranks = unite(
            class_ids[mine], None if valid is None else valid[mine], num_classes
        )
        grids = [
            take_ranks(logits[w], rank) for w, rank in zip(mine, ranks, strict=True)
        ]
        shapes = [(len(v.rows.starts), len(v.columns.starts)) for v in picture_views]
        results.append(
            Segmented(
                image.shape[:2],
                tuple(stitch(grids, shapes)),
                tuple(view.rows.matrix for view in picture_views),
                tuple(view.columns.matrix for view in picture_views),
                Selection(union[None], real[None], num_classes),
                scores[mine].max(axis=0, keepdims=True),
                1,
            )
        )
    return results


def assemble_regions(
    images: Sequence[np.ndarray],
    views: Sequence[Sequence[View]],
    owners: Int[np.ndarray, "windows"],
    parts: Parts,
    scores: Float[np.ndarray, "windows C"],
    num_classes: int,
) -> list[SegmentedRegions]:
    """Per picture: the union of its windows' labels, and their regions.

    Arguments are those of `assemble_pixels`, with a `RegionOutput` in each part. Its
    features stay on the device.
    """
    class_ids, valid = _selected([(jax.device_get(s), x, n) for s, x, n in parts])
    windows = []
    for _, output, count in parts:
        class_logits = np.asarray(output.class_logits)[:, -1]
        embeddings = np.asarray(output.regions.mask_embeddings)[:, -1]
        grid = output.regions.features.grid
        windows += [
            (class_logits[i], Masks(grid, embeddings[i], i)) for i in range(count)
        ]
    results = []
    for i, (image, picture_views) in enumerate(zip(images, views, strict=True)):
        mine = np.flatnonzero(owners == i)
        ids, real = class_ids[mine], None if valid is None else valid[mine]
        ranks = None
        if len(mine) > 1:
            union, known, ranks = unite(ids, real, num_classes)
            ids, real = union[None], known[None]
        results.append(
            regions_of_views(
                image.shape[:2],
                picture_views,
                [windows[w] for w in mine],
                Selection(ids, real, num_classes),
                scores[mine].max(axis=0, keepdims=True),
                ranks,
            )
        )
    return results


def _selected(
    parts: Parts,
) -> tuple[Int[np.ndarray, "windows K"], Bool[np.ndarray, "windows K"] | None]:
    """Selections of all windows, which are on the host."""
    class_ids = np.concatenate([s.class_ids[:count] for s, _, count in parts])
    if parts[0][0].valid is None:
        return class_ids, None
    return class_ids, np.concatenate([s.valid[:count] for s, _, count in parts])


def _whole_batches(size, view: View, parts, scores) -> list[Segmented]:
    """Pictures of one size and one window: nothing to stitch, logits stay on the
    device.
    """
    results, start = [], 0
    for selection, logits, count in parts:
        own = scores[start : start + count]
        start += count
        results.append(
            Segmented(
                size,
                (logits,),
                (view.rows.matrix,),
                (view.columns.matrix,),
                selection,
                own,
                count,
            )
        )
    return results


def unite(
    class_ids: Int[np.ndarray, "N K"],
    valid: np.ndarray | None,
    num_classes: int,
) -> tuple[Int[np.ndarray, "U"], Bool[np.ndarray, "U"], Int[np.ndarray, "N U"]]:
    """The union of several selections, padded to one of a few static sizes.

    Returns its class ids in class order, which of them are no padding, and for each
    selection the rank of each of them: ``K`` where it did not select that class, ``K +
    1`` where the union is padding.
    """
    num_windows, num_ranks = class_ids.shape
    table = np.full((num_windows, num_classes + 1), num_ranks)
    ranks = np.broadcast_to(np.arange(num_ranks), class_ids.shape)
    kept = class_ids if valid is None else np.where(valid, class_ids, num_classes)
    np.put_along_axis(table, kept, ranks, axis=1)
    union = np.flatnonzero((table[:, :-1] < num_ranks).any(axis=0))
    size = num_ranks
    while size < len(union):
        size *= 2
    size = min(size, max(num_classes, 1))
    padded = np.zeros(size, np.int32)
    padded[: len(union)] = union
    rank_of_union = np.full((num_windows, size), num_ranks + 1)
    rank_of_union[:, : len(union)] = table[:, union]
    return padded, np.arange(size) < len(union), rank_of_union


def take_ranks(
    logits: Float[np.ndarray, "h w K"], ranks: Int[np.ndarray, "U"]
) -> Float[np.ndarray, "h w U"]:
    """Logits over the union, filled where a window did not select."""
    fill = np.asarray([UNSELECTED_LOGIT, NEVER], logits.dtype)
    fill = np.broadcast_to(fill, (*logits.shape[:2], 2))
    return np.concatenate([logits, fill], axis=-1)[:, :, ranks]


def stitch(
    grids: list[Float[np.ndarray, "_ _ U"]], shapes: Sequence[tuple[int, int]]
) -> Iterator[Float[np.ndarray, "1 _ _ U"]]:
    """Per view, the grids of its windows side by side, in so many rows and columns."""
    start = 0
    for num_rows, num_columns in shapes:
        tiles = np.stack(grids[start : start + num_rows * num_columns])
        start += len(tiles)
        _, height, width, num_labels = tiles.shape
        tiles = tiles.reshape(num_rows, num_columns, height, width, num_labels)
        yield tiles.transpose(0, 2, 1, 3, 4).reshape(
            1, num_rows * height, num_columns * width, num_labels
        )
