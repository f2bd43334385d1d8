"""Pixels of predictions and of truths, counted."""

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.label_selection import Selection, rank_of_class
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.typing import IGNORE, Array, Bool, Int


@jax.jit
def _count_tile(prediction, selection: Selection, label_map, present) -> MeanIoU:
    def of_class(values: Bool[Array, "B C"], ids: Int[Array, "B H W"]):
        flat = jnp.maximum(ids.reshape(ids.shape[0], -1), 0)
        return jnp.take_along_axis(values, flat, axis=1).reshape(ids.shape)

    return MeanIoU.from_maps(
        prediction,
        label_map,
        of_class(rank_of_class(selection) != IGNORE, label_map),
        selection.num_classes,
        of_class(present, prediction),
    )


def count_pixels(
    segmented: Segmented | SegmentedRegions, label_maps: Int[np.ndarray, "N H W"]
) -> MeanIoU:
    """Counts at the size of the pictures; predictions never leave the device."""
    total, num_classes = None, segmented.selection.num_classes
    present = pixel_histogram(label_maps, num_classes) > 0
    for y, x, prediction in segmented.label_tiles():
        truth = np.full(prediction.shape, IGNORE, np.int32)
        part = label_maps[:, y, x]
        truth[: len(part), : part.shape[1], : part.shape[2]] = part
        padded = np.resize(present, (len(prediction), num_classes))
        counts = _count_tile(prediction, segmented.selection, truth, padded)
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
