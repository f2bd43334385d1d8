"""Segments of label and instance maps against a loop over pixels and pairs."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline import segments
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE

IS_THING = (False, True, False, True, True)
INFO = DatasetInfo("toy", tuple("abcde"), IS_THING)


def random_maps(seed, size=(13, 17)):
    """Maps with void, crowds and things without an instance, in blocks."""
    rng = np.random.default_rng(seed)
    label_map = rng.integers(IGNORE, 5, size).astype(np.int32)
    instance_map = rng.integers(IGNORE, 4, size).astype(np.int32)
    if seed % 3 == 1:  # Large ids, few pieces.
        label_map[: size[0] // 2] = 3
        instance_map[instance_map == 3] = 60_000
    if seed % 3 == 2:  # Stuff only.
        label_map[label_map % 2 == 1] = 2
        label_map[label_map == 4] = IGNORE
    return label_map, instance_map


def slow_segments(kind, label_map, instance_map):
    """(class, instance) -> pixels, bool [H W]; the instance of stuff is None."""
    found = {}
    for place in np.ndindex(label_map.shape):
        class_id, number = int(label_map[place]), int(instance_map[place])
        if class_id == IGNORE:
            continue
        is_thing = IS_THING[class_id] and kind != "classes"
        if kind == "instances" and not is_thing or is_thing and number == 0:
            continue
        key = class_id, number if is_thing else None
        found.setdefault(key, np.zeros(label_map.shape, bool))[place] = True
    return found


@pytest.mark.parametrize("kind", ["classes", "panoptic", "instances"])
@pytest.mark.parametrize("seed", range(6))
def test_parts_against_a_slow_version(kind, seed):
    label_map, instance_map = random_maps(seed)
    parts = segments.find_parts(kind, label_map, instance_map, np.asarray(IS_THING))
    expected = slow_segments(kind, label_map, instance_map)
    # By class, and in a class by instance, where a crowd (-1) comes first.
    keys = sorted(expected, key=lambda key: (key[0], key[1] or 0))
    assert parts.class_ids.tolist() == [class_id for class_id, _ in keys]
    assert parts.is_crowd.tolist() == [number == IGNORE for _, number in keys]
    assert parts.areas.tolist() == [expected[key].sum() for key in keys]
    numbers = parts.make_map(np.arange(len(keys)), IGNORE)
    assert numbers.dtype == np.int32
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(numbers == i, expected[key])
    thing = np.append(IS_THING, False)[label_map]
    unclaimed = (thing & (instance_map == 0)).sum() if kind != "classes" else 0
    assert parts.num_unclaimed == unclaimed


@pytest.mark.parametrize("kind", ["classes", "panoptic", "instances"])
def test_nothing_to_find(kind):
    nothing = np.full((3, 4), IGNORE, np.int32)
    zeros = np.zeros((3, 4), np.int32)
    for label_map in (nothing, nothing[:0]):
        instance_map = zeros[: len(label_map)]
        parts = segments.find_parts(kind, label_map, instance_map, np.asarray(IS_THING))
        assert len(parts.values) == 0 and parts.num_unclaimed == 0
        assert (parts.make_map(np.int64([]), 7) == 7).all()


def test_truth_for_panoptic_quality():
    label_map = np.int32([[0, 0, 1, 1], [1, 1, -1, 3]])
    instance_map = np.int32([[9, 0, 4, 4], [2, 0, 5, -1]])
    example = {"label_map": label_map, "instance_map": instance_map, "name": "a"}
    found = segments.with_truth("panoptic", example, INFO)
    np.testing.assert_array_equal(found["segment_map"], [[1, 1, 3, 3], [2, 0, 0, 4]])
    assert found["segment_map"].dtype == np.int32
    assert found["segments"] == (
        (1, 0, False, 2),
        (2, 1, False, 1),
        (3, 1, False, 2),
        (4, 3, True, 1),
    )
    # The file's own stay.
    own = example | {"segment_map": label_map, "segments": ()}
    assert segments.with_truth("panoptic", own, INFO) is own
    assert segments.with_truth("classes", example, INFO) is example
    assert segments.with_truth("none", example, INFO) is example
    assert segments.count("panoptic", example, INFO) == (3, 1)
    assert segments.count("classes", example, INFO) == (3, 0)


def test_truth_for_average_precision():
    label_map, instance_map = random_maps(0)
    example = {"label_map": label_map, "instance_map": instance_map, "name": "a"}
    found = segments.with_truth("instances", example, INFO)["instances"]
    expected = slow_segments("instances", label_map, instance_map)
    keys = sorted(expected)
    assert [(i.class_id, i.is_crowd) for i in found] == [
        (class_id, number == IGNORE) for class_id, number in keys
    ]
    for instance, key in zip(found, keys, strict=True):
        mask = np.asfortranarray(expected[key].astype(np.uint8))
        assert instance.run_lengths == coco_mask.encode(mask)
        assert instance.area is None
    # Those of a file are kept as they are, stuff aside.
    stuff, thing = segments.Instance(0, {}), segments.Instance(3, {}, True, 5.5)
    example["instances"] = (stuff, thing)
    assert segments.with_truth("instances", example, INFO)["instances"] == (thing,)
    assert segments.count("instances", example, INFO).num_segments == 0


def test_things_without_instances_are_told():
    example = {"label_map": np.zeros((2, 3), np.int32), "name": "street"}
    for kind in ("panoptic", "instances"):
        with pytest.raises(DataError, match=r"'toy' has no instances \(street") as e:
            segments.with_truth(kind, example, INFO)
        assert str(e.value).endswith("data.segments=classes.")
    # Where nothing is countable, nothing is missing.
    stuff = DatasetInfo("stuff", ("a", "b"), (False, False))
    found = segments.with_truth("panoptic", example, stuff)
    assert found["segments"] == ((1, 0, False, 6),)
