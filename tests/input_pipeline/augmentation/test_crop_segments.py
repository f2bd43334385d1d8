"""Segments of crops against masks that are resized, cropped and mirrored one by one."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.augmentation.crop_segments import CropSegments
from input_pipeline.augmentation.views import View, resize_cv2
from input_pipeline.info import DatasetInfo
from input_pipeline.segments import Instance
from mlseg_jax.typing import IGNORE

INFO = DatasetInfo("toy", tuple("abcd"), (False, True, True, False))
CANVAS = (21, 19)


def blocks(rng, low, high, size):
    small = rng.integers(low, high, (5, 6)).astype(np.int32)
    return small.repeat(-(-size[0] // 5), 0).repeat(-(-size[1] // 6), 1)[
        : size[0], : size[1]
    ]


def make_example(seed, size=(23, 31)):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        "label_map": blocks(rng, IGNORE, 4, size),
        "instance_map": blocks(rng, IGNORE, 7, size),
        "name": "a",
    }


def make_view(image, seed):
    """Larger or smaller than the canvas, mirrored or not, odd sizes."""
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(7, 60, 2).tolist())
    view = View.whole(image).resized(size, resize_cv2)
    top, left = rng.integers(0, 1 + np.maximum(np.subtract(size, CANVAS), 0)).tolist()
    view = view.cropped(top, left, *CANVAS)
    return view.mirrored() if seed % 2 else view


def slow_take(values, view):
    """A map through a view, pixel by pixel, padded with IGNORE."""
    result = np.full(CANVAS, IGNORE, np.int32)
    for y, x in np.ndindex(view.size):
        result[y, x] = values[view.rows[y], view.columns[x]]
    return result


def slow_disjoint(kind, example, view, max_segments):
    label_map = slow_take(example["label_map"], view)
    instance_map = slow_take(example["instance_map"], view)
    found = {}
    for place in np.ndindex(CANVAS):
        class_id, number = int(label_map[place]), int(instance_map[place])
        is_thing = kind != "classes" and class_id != IGNORE and INFO.is_thing[class_id]
        if class_id == IGNORE or is_thing and number < 1:
            continue
        if kind == "instances" and not is_thing:
            continue
        key = class_id, number if is_thing else 0
        found.setdefault(key, []).append(place)
    largest = sorted(sorted(found), key=lambda key: -len(found[key]))[:max_segments]
    masks = np.full(CANVAS, IGNORE, np.int32)
    kept = sorted(largest)
    for i, key in enumerate(kept):
        for place in found[key]:
            masks[place] = i
    return masks, [class_id for class_id, _ in kept], len(found) - len(kept)


@pytest.mark.parametrize("kind", ["classes", "panoptic", "instances"])
@pytest.mark.parametrize("max_segments", [3, 40])
def test_disjoint_segments_against_a_slow_version(kind, max_segments):
    dropped = 0
    for seed in range(6):
        example = make_example(seed)
        view = make_view(example["image"], seed)
        make = CropSegments(kind, max_segments, INFO).make
        found = make(example, view, CANVAS)
        masks, classes, lost = slow_disjoint(kind, example, view, max_segments)
        np.testing.assert_array_equal(found["masks"], masks)
        assert found["masks"].dtype == np.int32
        padding = [IGNORE] * (max_segments - len(classes))
        assert found["segment_classes"].tolist() == classes + padding
        assert found["segment_classes"].dtype == np.int32
        assert found["dropped_segments"] == lost
        dropped += lost
    assert (dropped > 0) == (max_segments == 3)


def make_instances(seed, size=(23, 31)):
    """Boxes that overlap; a crowd, stuff, and one without a pixel."""
    rng = np.random.default_rng(seed)
    result, masks = [], []
    for i in range(8):
        mask = np.zeros(size, np.uint8)
        top, left = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
        height, width = (1, 1) if i == 4 else rng.integers(2, 20, 2)
        mask[top : top + height, left : left + width] = i != 6
        class_id = 3 if i == 5 else 1 + i % 2
        runs = coco_mask.encode(np.asfortranarray(mask))
        result.append(Instance(class_id, runs, is_crowd=i == 2))
        masks.append(mask)
    return tuple(result), masks


@pytest.mark.parametrize("max_segments", [2, 9])
def test_overlapping_segments_against_a_slow_version(max_segments):
    sums = np.zeros(2, int)
    for seed in range(10):
        instances, masks = make_instances(seed)
        example = make_example(seed) | {"instances": instances}
        view = make_view(example["image"], seed)
        found = CropSegments("instances", max_segments, INFO).make(
            example, view, CANVAS
        )
        crops = [slow_take(mask.astype(np.int32), view) == 1 for mask in masks]
        wanted = [
            i
            for i, instance in enumerate(instances)
            if not instance.is_crowd and instance.class_id != 3 and crops[i].any()
        ]
        largest = sorted(wanted, key=lambda i: -crops[i].sum())[:max_segments]
        kept = sorted(largest)
        expected = np.zeros((max_segments, *CANVAS), np.uint8)
        expected[: len(kept)] = np.asarray([crops[i] for i in kept]).reshape(
            -1, *CANVAS
        )
        np.testing.assert_array_equal(found["masks"], np.packbits(expected, axis=-1))
        assert found["masks"].shape == (max_segments, 21, 3)
        classes = [instances[i].class_id for i in kept]
        assert found["segment_classes"][: len(kept)].tolist() == classes
        assert (found["segment_classes"][len(kept) :] == IGNORE).all()
        assert found["dropped_segments"] == len(wanted) - len(kept)
        sums += len(wanted) - len(kept), expected.sum(0).max() > 1
    assert (sums[0] > 0) == (max_segments == 2) and sums[1] > 0


def test_a_crop_without_segments():
    example = make_example(0)
    example["label_map"][:] = IGNORE
    view = make_view(example["image"], 0)
    found = CropSegments("panoptic", 4, INFO).make(example, view, CANVAS)
    assert (found["masks"] == IGNORE).all() and found["masks"].shape == CANVAS
    assert (found["segment_classes"] == IGNORE).all()
    example["instances"] = ()
    found = CropSegments("instances", 4, INFO).make(example, view, CANVAS)
    assert not found["masks"].any() and found["dropped_segments"] == 0
