"""Mean IoU of frequent, common and rare classes."""

import numpy as np

from mlseg_jax.typing import Bool, Float, Int

GROUPS = ("frequent", "common", "rare")


def frequency_groups(
    class_examples: Int[np.ndarray, "C"],
) -> dict[str, Bool[np.ndarray, "C"]]:
    """Terciles of the classes by the number of training images that hold them.

    Thirds rather than the thresholds of LVIS (over 100, 11-100, up to 10 images), which
    leave groups empty on most other data sets. Classes that no training image holds are
    rare, ties are broken by class id.
    """
    order = np.argsort(-class_examples, kind="stable")
    thirds = zip(GROUPS, np.array_split(order, 3), strict=True)
    everything = np.arange(len(class_examples))
    return {name: np.isin(everything, chosen) for name, chosen in thirds}


def mean_iou_by_group(
    iou: Float[np.ndarray, "C"], class_examples: Int[np.ndarray, "C"]
) -> dict[str, float]:
    """``mIoU_frequent``, ``mIoU_common``, ``mIoU_rare``: NaN classes do not count."""
    scores = {}
    for name, chosen in frequency_groups(class_examples).items():
        values = iou[chosen & ~np.isnan(iou)]
        scores[f"mIoU_{name}"] = float(values.mean()) if len(values) else float("nan")
    return scores
