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
    counts = missed_segments(truth, matches, SELECTED)
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


def naive_counts(truth, segment_map, classes, selected):
    """By pixel sets: void is in no union, a crowd is not to be found."""
    void = truth.segment_map == 0
    counts = [0, 0, 0, 0]
    for number in set(truth.classes) - truth.crowds:
        inside, near = truth.segment_map == number, set()
        for i, class_id in classes.items():
            own = segment_map == i
            union = (inside | own & ~void).sum()
            if (inside & own).sum() / union > 0.5:
                near.add(class_id)
        own_class = truth.classes[number]
        counts[0] += 1
        if own_class in near:
            continue
        counts[1 if own_class not in selected else 2 if near else 3] += 1
    return counts


def test_reasons_equal_a_naive_version():
    """Noisy squares beside void, crowds and neighbours of their own class."""
    total = np.zeros(4, int)
    for seed in range(20):
        random = np.random.default_rng(seed)
        size = (16, 20)
        squares = random.permutation(21)[:20].reshape(4, 5).repeat(4, 0).repeat(4, 1)
        true_map = np.where(random.random(size) < 0.1, 0, squares).astype(np.int32)
        true_map[:, 12:15] *= random.integers(2)  # void beside what is there
        moved = np.roll(squares, random.integers(3), 1)
        moved = np.where(random.random(size) < 0.1, np.roll(moved, 4, 0), moved)
        classes = {i: int(random.integers(3)) for i in np.unique(true_map)[1:].tolist()}
        crowds = {i for i in classes if random.random() < 0.15}
        own = {
            i: classes.get(i, 0) if random.random() < 0.4 else int(random.integers(3))
            for i in np.unique(moved).tolist()
            if i
        }
        truth = TrueSegments(true_map, classes, crowds)
        matches = match_segments(truth, moved, own)
        counts = missed_segments(truth, matches, {0, 1})
        assert counts.tolist() == naive_counts(truth, moved, own, {0, 1})
        total += counts
    assert (total > 15).all(), total


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
