"""Why segments were missed, and the pictures that a report shows of it."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.metrics.instance_precision import FoundInstance, TrueInstance
from mlseg_jax.metrics.missed_segments import (
    missed_instances,
    missed_segments,
    no_counts,
    shares,
)
from mlseg_jax.metrics.panoptic_quality import TrueSegments, match_segments
from mlseg_jax.tasks.segment_pictures import SegmentPictures
from mlseg_jax.tasks.selection_evaluation import PictureLabels

INFO = DatasetInfo("", tuple("abcde"), (True,) * 5)
TRUE = np.int32([[1, 1, 2, 2, 3, 3, 4, 4]] * 4)
FOUND = np.int32([[1, 1, 2, 2, 0, 3, 0, 0]] * 4)
SELECTED = {0, 1, 2}
LABELS = PictureLabels(np.zeros(5, np.float32), np.arange(3))


def segments(segment_map, class_ids):
    return tuple(
        Segment(i, c, INFO.class_names[c], 0.9, int((segment_map == i).sum()),
                (0, 0, 1, 1), 0, segment_map)
        for i, c in enumerate(class_ids, start=1)
    )  # fmt: skip


def test_reasons_of_segments():
    """1 is found; 2 another class's; 3 is half covered; 4 was not selected."""
    truth = TrueSegments(TRUE, {1: 0, 2: 1, 3: 2, 4: 3})
    found = Panoptic(FOUND, segments(FOUND, (0, 2, 2)))
    matches = match_segments(truth, FOUND, found.classes)
    counts = missed_segments(truth, matches, FOUND, found.classes, SELECTED)
    assert counts.tolist() == [4, 1, 1, 1]
    assert shares(counts)["missed_segments"] == 0.75
    third = pytest.approx(1 / 3)
    assert shares(counts)["missed_confused"] == third
    pictures = SegmentPictures(INFO)
    example = {"image": np.zeros((4, 8, 3), np.uint8)}
    pictures.add_panoptic(example, truth, found, matches, LABELS)
    (_, _, arrays, _) = pictures.first[0]
    assert arrays["true_segments"].tolist() == [
        [1, 0, 0], [2, 1, 1], [3, 2, 1], [4, 3, 1],
    ]  # fmt: skip
    assert arrays["found_segments"][:, 2].tolist() == [0, 1, 1]


def test_reasons_of_instances():
    def runs(segment_map, i):
        return coco_mask.encode(np.asfortranarray(segment_map == i, np.uint8))

    true = [TrueInstance(c, runs(TRUE, c + 1)) for c in range(4)]
    true.append(TrueInstance(4, runs(TRUE, 1), is_crowd=True))
    found = [
        FoundInstance(c, runs(FOUND, i), 0.9) for i, c in enumerate((0, 2, 2), start=1)
    ]
    counts = missed_instances(true, found, SELECTED)
    assert counts.tolist() == [4, 1, 1, 1]
    # Of two that one segment fits it is one; the other is not confused with its own.
    assert missed_instances([*true, true[0]], found, SELECTED).tolist() == [5, 1, 1, 2]
    twice = [*found, found[0]]
    assert missed_instances([*true, true[0]], twice, SELECTED).tolist() == [5, 1, 1, 1]
    assert missed_instances(true, [], SELECTED).tolist() == [4, 1, 0, 3]
    assert missed_instances([], found, SELECTED).tolist() == [0] * 4
    assert np.isnan(shares(no_counts())["missed_segments"])
    pictures = SegmentPictures(INFO)
    example = {"image": np.zeros((4, 8, 3), np.uint8)}
    pictures.add_instances(example, true, segments(FOUND, (0, 2, 2)), LABELS)
    (_, _, arrays, _) = pictures.first[0]
    assert arrays["true_segments"][:, 2].tolist() == [0, 1, 1, 1, 2]
    assert arrays["found_segments"][:, 2].tolist() == [0, 1, 1]
