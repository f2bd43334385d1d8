"""Why segments were missed: the part of label selection in it, and that of regions.

The same question as of wrong pixels (`mean_iou`): could a better ranking of labels have
saved them, or were they confused, or not found at all?
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from mlseg_jax.metrics.panoptic_quality import SegmentMatches, TrueSegments
from mlseg_jax.typing import Int

REASONS = ("not_selected", "confused", "not_found")
"""Its class was not selected; another class has a segment that overlaps it by an IoU
above 0.5; neither."""

Counts = Int[np.ndarray, "4"]
"""Segments to be found, and those that were missed for each of `REASONS`."""


def no_counts() -> Counts:
    return np.zeros(1 + len(REASONS), np.int64)


def missed_segments(
    truth: TrueSegments, matches: SegmentMatches, selected: Collection[int]
) -> Counts:
    """Counts of one picture.

    Args:
      truth: what was to be found.
      matches: what was (`panoptic_quality.match_segments`).
      selected: ids of the selected classes.
    """
    counts = no_counts()
    counts[0] = len(matches.matched) + len(matches.missed)
    for number in matches.missed:
        is_selected = truth.classes[number] in selected
        counts[1 + _reason(is_selected, number in matches.confused)] += 1
    return counts


def missed_instances(
    true: Iterable, found: Iterable, selected: Collection[int]
) -> Counts:
    """The same of instances: `instance_precision.TrueInstance`, `FoundInstance`.

    Those that were found are as many as can be matched, one to one, by class and IoU,
    whatever their scores.
    """
    true, found = [t for t in true if not t.is_crowd], list(found)
    counts = no_counts()
    counts[0] = len(true)
    if not true:
        return counts
    iou = np.zeros((len(found), len(true)))
    if found:
        runs = ([_as_bytes(x.run_lengths) for x in group] for group in (found, true))
        iou = coco_mask.iou(*runs, [0] * len(true))
    overlaps = iou > 0.5
    class_ids, true_ids = ([x.class_id for x in group] for group in (found, true))
    same = np.equal.outer(np.asarray(class_ids, int), true_ids)
    matches = linear_sum_assignment(overlaps & same, maximize=True)
    matched = matches[1][(overlaps & same)[matches]]
    confused = (overlaps & ~same).any(axis=0)
    for i in np.setdiff1d(np.arange(len(true)), matched):
        counts[1 + _reason(true_ids[i] in selected, bool(confused[i]))] += 1
    return counts


def shares(counts: Counts) -> dict[str, float]:
    """``missed_segments``, a share of all, and ``missed_*``, shares of these by reason:
    0 where none was missed, otherwise they add up to 1.
    """
    missed = int(counts[1:].sum())
    result = {"missed_segments": missed / counts[0] if counts[0] else float("nan")}
    for reason, count in zip(REASONS, counts[1:], strict=True):
        result[f"missed_{reason}"] = int(count) / max(missed, 1)
    return result


def _reason(is_selected: bool, overlaps: bool) -> int:
    if not is_selected:
        return 0
    return 1 if overlaps else 2


def _as_bytes(run_lengths: Mapping) -> dict:
    counts = run_lengths["counts"]
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return {"size": list(run_lengths["size"]), "counts": counts}
