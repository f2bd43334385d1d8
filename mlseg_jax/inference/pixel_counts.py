"""Pixels of predictions and of truths, counted."""

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.label_selection import Selection, rank_of_class
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.typing import IGNORE, Int


@jax.jit
def _count_tile(prediction, selection: Selection, label_map) -> MeanIoU:
    ranks = rank_of_class(selection)
    flat = jnp.maximum(label_map.reshape(label_map.shape[0], -1), 0)
    selected = jnp.take_along_axis(ranks, flat, axis=1).reshape(label_map.shape)
    return MeanIoU.from_maps(
        prediction, label_map, selected != IGNORE, selection.num_classes
    )


def count_pixels(
    segmented: Segmented | SegmentedRegions, label_maps: Int[np.ndarray, "N H W"]
) -> MeanIoU:
    """Counts at the size of the pictures; predictions never leave the device."""
    total = None
    for y, x, prediction in segmented.label_tiles():
        truth = np.full(prediction.shape, IGNORE, np.int32)
        part = label_maps[:, y, x]
        truth[: len(part), : part.shape[1], : part.shape[2]] = part
        counts = _count_tile(prediction, segmented.selection, truth)
        total = counts if total is None else total.merge(counts)
    return total.to_host()


def pixel_histogram(label_maps: np.ndarray, num_classes: int) -> Int[np.ndarray, "N C"]:
    """Pixels of each class in each label map."""
    return np.stack(
        [
            np.bincount(labels.ravel() + 1, minlength=num_classes + 1)[1:]
            for labels in label_maps
        ]
    ).astype(np.int32)
