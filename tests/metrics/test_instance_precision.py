"""InstancePrecision equals pycocotools from JSON files, however it was fed."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlseg_jax.metrics.instance_precision import (
    FoundInstance,
    InstancePrecision,
    TrueInstance,
    true_instances,
)
from mlseg_jax.metrics.panoptic_quality import TrueSegments

SIZE = (150, 170)
NUM_CLASSES = 4  # class 3 has no true instance


def run_lengths(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def box(random, side):
    mask = np.zeros(SIZE, bool)
    y, x = random.integers(0, SIZE[0] - side), random.integers(0, SIZE[1] - side)
    mask[y : y + side, x : x + side - 1] = True
    return mask


def make_pictures():
    """Boxes of COCO's three sizes, found more or less well, twice, or not at all."""
    random = np.random.default_rng(0)
    pictures = {}
    for i in range(9):
        true, found = [], []
        for n in range(12 if i != 4 else 0):
            mask = box(random, int(random.choice([8, 25, 50, 110])))
            class_id, crowd = int(random.integers(3)), n == 3
            area = float(mask.sum()) - (n == 2)  # a polygon's, say
            true.append(TrueInstance(class_id, run_lengths(mask), crowd, area))
            for _ in range(int(random.integers(3))):
                moved = np.roll(mask, random.integers(-2, 3, 2), (0, 1))
                score = float(np.round(random.random(), 1))  # with ties
                found.append(FoundInstance(class_id, run_lengths(moved), score))
        for _ in range(130 if i == 2 else 3):  # more than a hundred of a class
            class_id = 1 if i == 2 else int(random.integers(NUM_CLASSES))
            found.append(FoundInstance(class_id, run_lengths(box(random, 30)), 0.2))
        pictures[f"{i}.jpg"] = (SIZE, tuple(true), tuple(found))
    pictures["nothing.jpg"] = (SIZE, (), ())
    return pictures


def coco_files(pictures, folder):
    def entry(instance, picture, number):
        counts = instance.run_lengths["counts"].decode()
        return {
            "id": number,
            "image_id": picture,
            "category_id": instance.class_id + 10,
            "segmentation": {"size": list(SIZE), "counts": counts},
        }

    images, annotations, results = [], [], []
    for number, (name, (size, true, found)) in enumerate(pictures.items(), start=1):
        facts = {"file_name": name, "height": size[0], "width": size[1]}
        images.append({"id": number} | facts)
        for x in true:
            rest = {"iscrowd": int(x.is_crowd), "area": x.area}
            annotations.append(entry(x, number, len(annotations) + 1) | rest)
        for x in found:
            results.append(entry(x, number, 0) | {"score": x.score})
    categories = [{"id": i + 10, "name": str(i)} for i in range(NUM_CLASSES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    paths = folder / "truth.json", folder / "results.json"
    for path, value in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(value))
    return paths


def coco_scores(paths):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(paths[0]))
        evaluator = COCOeval(truth, truth.loadRes(str(paths[1])), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def test_equals_pycocotools(tmp_path):
    pictures = make_pictures()
    evaluator = coco_scores(coco_files(pictures, tmp_path))
    states = [InstancePrecision.empty(NUM_CLASSES) for _ in range(3)]
    for i, (name, picture) in enumerate(pictures.items()):
        states[i % 3] = states[i % 3].update(name, *picture)
    state = states[2].merge(states[0]).merge(states[1]).to_host()
    assert "nothing.jpg" not in state.pictures
    scores = state.compute()
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    names += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
    assert list(scores) == names
    np.testing.assert_allclose(list(scores.values()), evaluator.stats, atol=1e-12)
    assert 0.1 < scores["AP"] < 0.9 and scores["AP50"] > scores["AP75"]
    per_class = state.per_class()["AP"]
    precision = evaluator.eval["precision"][:, :, :3, 0, -1]
    np.testing.assert_allclose(per_class[:3], precision.mean((0, 1)), atol=1e-12)
    assert np.isnan(per_class[3])


def test_areas_are_those_of_the_masks_by_default():
    mask = np.zeros(SIZE, bool)
    mask[:40, :40] = True
    true = (TrueInstance(0, run_lengths(mask)),)
    rle = run_lengths(mask)
    found = (FoundInstance(0, {**rle, "counts": rle["counts"].decode()}, 0.5),)
    scores = InstancePrecision.empty(1).update("a", SIZE, true, found).compute()
    for key in ("AP", "AP_medium", "AR1"):
        assert scores[key] == pytest.approx(1.0)
    assert np.isnan(scores["AP_small"]) and np.isnan(scores["AR_large"])


def test_nothing_and_mistakes():
    empty = InstancePrecision.empty(2)
    assert len(empty.compute()) == 12
    assert all(np.isnan(value) for value in empty.compute().values())
    true = (TrueInstance(1, run_lengths(np.ones(SIZE, bool))),)
    state = empty.update("a", SIZE, true, ())
    assert state.compute()["AP"] == 0.0
    with pytest.raises(ValueError, match="'a' was evaluated twice"):
        state.merge(state)
    with pytest.raises(ValueError, match="2 and 3 classes"):
        state.merge(InstancePrecision.empty(3))


def test_things_of_a_picture_as_instances():
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[2:9, 3:9], segment_map[4:6, 12:20], segment_map[10:] = 5, 7, 9
    truth = TrueSegments(segment_map, {5: 0, 7: 2, 9: 1}, {7})
    is_thing = np.asarray([True, False, True])
    first, second = true_instances(truth, is_thing)
    assert (first.class_id, second.class_id) == (0, 2)
    assert second.is_crowd and not first.is_crowd and first.area is None
    assert first.run_lengths == run_lengths(segment_map == 5)
    found = (FoundInstance(0, first.run_lengths, 0.5),)
    state = InstancePrecision.empty(3).update("a", (20, 30), (first, second), found)
    assert state.compute()["AP"] == pytest.approx(1.0)  # a crowd need not be found
    truth = TrueSegments(segment_map, truth.classes, {7}, {5: 41, 7: 16, 9: 300})
    assert true_instances(truth, is_thing)[0].area == 41.0
