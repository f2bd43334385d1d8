"""PanopticQuality against panopticapi's own figures and against plain loops."""

import pathlib

import numpy as np
import pytest

from mlseg_jax.metrics.panoptic_quality import (
    PanopticQuality,
    TrueSegments,
    match_segments,
)
from mlseg_jax.typing import IGNORE

GOLDEN = pathlib.Path(__file__).parents[1] / "parity" / "golden" / "panoptic.npz"
FIELDS = ("iou_sum", "true_positives", "false_positives", "false_negatives")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_pictures(golden):
    for i in range(sum(key.startswith("truth_") for key in golden)):
        rows = golden[f"true_segments_{i}"].tolist()
        truth = TrueSegments(
            golden[f"truth_{i}"],
            {row[0]: row[1] for row in rows},
            {row[0] for row in rows if row[2]},
            {row[0]: row[3] for row in rows},
        )
        classes = dict(golden[f"segments_{i}"].tolist())
        yield truth, golden[f"prediction_{i}"], classes


def loop_matches(truth, prediction, classes):
    """Segment by segment, pixel sets in place of histograms."""
    pixels = lambda ids, i: set(np.flatnonzero(ids.ravel() == i).tolist())  # noqa: E731
    true = {i: pixels(truth.segment_map, i) for i in truth.classes}
    own = {i: pixels(prediction, i) for i in classes}
    void = pixels(truth.segment_map, 0)
    area = truth.areas or {i: len(p) for i, p in true.items()}
    matched, crowd_of = [], {}
    for i, class_id in truth.classes.items():
        if i in truth.crowds:
            crowd_of[class_id] = i
            continue
        for j, found in own.items():
            inter = len(true[i] & found)
            union = len(found) + area[i] - inter - len(void & found)
            if classes[j] == class_id and inter and inter / union > 0.5:
                matched.append((i, j, inter / union))
    hit, used = {i for i, _, _ in matched}, {j for _, j, _ in matched}
    missed = [i for i in truth.classes if i not in hit and i not in truth.crowds]
    false, ignored = [], []
    for j, found in own.items():
        if j not in used:
            crowd = true.get(crowd_of.get(classes[j]), set())
            lost = len(found & void) + len(found & crowd)
            (ignored if lost / len(found) > 0.5 else false).append(j)
    return sorted(matched), sorted(missed), sorted(false), sorted(ignored)


def random_picture(seed, size, count, num_classes):
    random = np.random.default_rng(seed)
    side = max(1, round(np.sqrt(np.prod(size) / count)))
    rows, columns = np.indices(size) // side
    truth = (rows * 100 + columns).astype(np.int32)  # touching squares; 0 is void
    prediction = np.where(random.random(size) < 0.2, np.roll(truth, 1, 1), truth)
    prediction = np.where(random.random(size) < 0.05, 0, prediction).astype(np.int32)
    draw = lambda ids: {  # noqa: E731
        int(i): int(random.integers(num_classes)) for i in ids if i > 0
    }
    classes = draw(np.unique(truth))
    crowds = {i for i in classes if random.random() < 0.2}
    own = draw(np.unique(prediction))
    own = {i: classes[i] if random.random() < 0.8 else c for i, c in own.items()}
    return TrueSegments(truth, classes, crowds), prediction, own


def test_equals_panopticapi(golden):
    is_thing = np.arange(9) < golden["num_things"]
    whole, halves = (
        PanopticQuality.empty(is_thing),
        [PanopticQuality.empty(is_thing)] * 2,
    )
    for i, (truth, prediction, classes) in enumerate(golden_pictures(golden)):
        whole, _ = whole.update(truth, prediction, classes)
        halves[i % 2], _ = halves[i % 2].update(truth, prediction, classes)
    for state in (whole, halves[0].merge(halves[1]).to_host()):
        own = np.stack([getattr(state, field) for field in FIELDS], 1)
        np.testing.assert_allclose(own, golden["per_class"], atol=1e-9)
        scores = state.compute()
        own = [
            [scores[key + group] for key in ("PQ", "SQ", "RQ")]
            for group in ("", "_things", "_stuff")
        ]
        np.testing.assert_allclose(own, golden["scores"], atol=1e-9)
    assert whole.true_positives.sum() > 50
    assert np.isnan(whole.per_class()["PQ"][8])


def test_equals_loops(golden):
    cases = [*golden_pictures(golden)]
    cases += [random_picture(seed, (17, 23), 20, 4) for seed in range(6)]
    cases += [random_picture(7, (60, 60), 300, 6)]
    kinds = np.zeros(4, int)
    for case in cases:
        found = match_segments(*case)
        matched, missed, false, ignored = loop_matches(*case)
        np.testing.assert_allclose(
            np.reshape(sorted(found.matched), (-1, 3)),
            np.reshape(matched, (-1, 3)),
            atol=1e-12,
        )
        for own, expected in zip(
            (found.missed, found.false, found.ignored),
            (missed, false, ignored),
            strict=True,
        ):
            assert sorted(own) == expected
        kinds += [len(x) for x in (matched, missed, false, ignored)]
    assert (kinds > 5).all(), kinds


@pytest.mark.parametrize("area", [-1, 0, 1, 50, 99, 100, 150, 10**30])
def test_areas_of_a_file_that_are_wrong(area):
    """No IoU is above 1, and no segment has two matches; a larger area counts."""
    truth = np.ones((10, 10), np.int32)
    said = TrueSegments(truth, {1: 0}, areas={1: area})
    (match,) = match_segments(said, truth, {1: 0}).matched or [(1, 1, 0.0)]
    assert match[2] == pytest.approx(1 / max(area / 100, 1) if area < 200 else 0)
    halves = np.where(np.indices(truth.shape)[0] < 6, 1, 2)
    found = match_segments(said, halves, {1: 0, 2: 0})
    assert [i for _, i, _ in found.matched] == ([1] if area <= 100 else [])


def test_segments_of_maps():
    label_map = np.int32([[0, 0, 0, 1], [2, 2, IGNORE, 1], [0, 0, 2, 1]])
    instance_map = np.int32([[1, 0, 2, 0], [IGNORE, IGNORE, 0, 5], [1, 1, 1, 0]])
    is_thing = np.asarray([True, False, True])
    truth = TrueSegments.from_maps(label_map, instance_map, is_thing)
    ids = truth.segment_map
    assert ids.dtype == np.int32 and (ids == 0).sum() == 2  # void: ignored, no instance
    assert ids[0, 1] == ids[1, 2] == 0
    assert len({ids[0, 0], ids[0, 2], ids[0, 3], ids[1, 0], ids[2, 2]}) == 5
    assert ids[0, 0] == ids[2, 0] and (ids[:, 3] == ids[0, 3]).all()
    assert truth.classes == {
        ids[0, 0]: 0, ids[0, 2]: 0, ids[0, 3]: 1, ids[1, 0]: 2, ids[2, 2]: 2
    }  # fmt: skip
    assert truth.crowds == {ids[1, 0]}
    nothing = TrueSegments.from_maps(
        np.full((2, 2), IGNORE, np.int32), np.zeros((2, 2), np.int32), is_thing
    )
    assert not nothing.classes and not nothing.segment_map.any()
    # The truth as its own prediction, the crowd left out.
    found = match_segments(
        truth, ids, {i: c for i, c in truth.classes.items() if i not in truth.crowds}
        | {int(ids[1, 0]): 2},
    )  # fmt: skip
    assert [iou for *_, iou in found.matched] == [1.0] * 4
    assert found.ignored == (ids[1, 0],) and not found.missed + found.false


def test_nothing_and_mistakes():
    is_thing = np.asarray([True, False])
    empty = PanopticQuality.empty(is_thing)
    assert all(np.isnan(value) for value in empty.compute().values())
    ids = np.int32([[0, 3], [3, 3]])
    truth = TrueSegments(ids, {3: 1})
    state, matches = empty.update(truth, np.zeros((2, 2), np.int32), {})
    assert matches.missed == (3,) and state.compute()["PQ"] == 0.0
    assert np.isnan(state.compute()["PQ_things"])
    with pytest.raises(ValueError, match="segment 3 has pixels but no class"):
        match_segments(truth, ids, {4: 0})
    with pytest.raises(ValueError, match="segment 9 has a class but no pixel"):
        match_segments(truth, ids, {3: 0, 9: 0})
    with pytest.raises(ValueError, match="one size"):
        match_segments(truth, np.zeros((2, 3), np.int32), {})
    with pytest.raises(ValueError, match="different classes"):
        empty.merge(PanopticQuality.empty(~is_thing))
