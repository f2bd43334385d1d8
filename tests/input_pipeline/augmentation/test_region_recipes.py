"""MaskFormer's and Mask2Former's geometry, redone step by step with the same draws."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from input_pipeline.augmentation import region_recipes
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.augmentation.views import View, resize_pillow, short_side_size
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE

INFO = DatasetInfo("toy", tuple("abc"), (False, True, True))


def make_example(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    label_map = (np.arange(height)[:, None] * width + np.arange(width)).astype(np.int32)
    return {"image": image, "label_map": label_map, "name": "a"}


class Slow:
    """A picture and a map that are changed one step after the other."""

    def __init__(self, example):
        self.image, self.labels = example["image"], example["label_map"]

    def resize(self, height, width):
        bilinear = Image.Resampling.BILINEAR
        image = Image.fromarray(self.image).resize((width, height), bilinear)
        rows, columns = (
            [int(Fraction(2 * i + 1, 2) * old / new) for i in range(new)]
            for old, new in zip(self.labels.shape, (height, width), strict=True)
        )
        self.image, self.labels = np.asarray(image), self.labels[rows][:, columns]

    def resize_short(self, side, longest):
        height, width = self.labels.shape
        scale = side / min(height, width)
        new = [side, scale * width] if height < width else [scale * height, side]
        if max(new) > longest:
            scale = longest / max(new)
            new = [new[0] * scale, new[1] * scale]
        self.resize(*(int(value + 0.5) for value in new))

    def crop(self, top, left, height, width):
        window = slice(top, top + height), slice(left, left + width)
        self.image, self.labels = self.image[window], self.labels[window]

    def flip(self):
        self.image, self.labels = self.image[:, ::-1], self.labels[:, ::-1]

    def check(self, view, example):
        np.testing.assert_array_equal(view.image, self.image)
        np.testing.assert_array_equal(view.take(example["label_map"]), self.labels)


SIZES = [(37, 53), (61, 20), (32, 32)]


@pytest.mark.parametrize("size", SIZES)
def test_short_side(size):
    sides, crop = (16, 25, 44), (30, 27)
    seen = set()
    for seed in range(12):
        example = make_example(*size, seed)
        view = region_recipes.short_side(
            example,
            np.random.default_rng(seed),
            crop_size=crop,
            short_sides=sides,
            max_side=70,
        )
        slow, rng = Slow(example), np.random.default_rng(seed)
        slow.resize_short(sides[rng.integers(3)], 70)
        height, width = (min(p) for p in zip(crop, slow.labels.shape, strict=True))
        top = rng.integers(slow.labels.shape[0] - height + 1)
        left = rng.integers(slow.labels.shape[1] - width + 1)
        slow.crop(top, left, height, width)
        mirrored = rng.random() < 0.5
        if mirrored:
            slow.flip()
        slow.check(view, example)
        seen.add(mirrored)
    assert len(seen) == 2


def test_one_class_may_fill_a_crop_or_not():
    example = make_example(40, 40)
    example["label_map"] = np.full((40, 40), 2, np.int32)
    example["label_map"][:4, :4] = 1

    def share(max_class_share):
        views = [
            region_recipes.short_side(
                example,
                np.random.default_rng(seed),
                crop_size=(10, 10),
                short_sides=(40,),
                max_side=40,
                max_class_share=max_class_share,
            )
            for seed in range(100)
        ]
        return np.mean([(v.take(example["label_map"]) == 1).any() for v in views])

    # 16 places of 31 x 31 show it; ten draws where it must be seen.
    assert share(1.0) < 0.1 < share(0.999)


@pytest.mark.parametrize("size", SIZES)
def test_large_scale_jitter(size):
    crop, seen = (32, 28), set()
    for seed in range(12):
        example = make_example(*size, seed)
        view = region_recipes.large_scale_jitter(
            example, np.random.default_rng(seed), crop_size=crop
        )
        slow, rng = Slow(example), np.random.default_rng(seed)
        if rng.random() < 0.5:
            slow.flip()
        scale = rng.uniform(0.1, 2.0)
        factor = min(crop[0] * scale / size[0], crop[1] * scale / size[1])
        slow.resize(*(max(1, round(side * factor)) for side in size))
        room = [max(0, a - b) for a, b in zip(slow.labels.shape, crop, strict=True)]
        where = rng.random()
        slow.crop(round(room[0] * where), round(room[1] * where), *crop)
        slow.check(view, example)
        seen.add((scale > 1, max(room) > 0))
    assert len(seen) >= 2


@pytest.mark.parametrize("size", SIZES)
def test_detr(size):
    seen = set()
    for seed in range(12):
        example = make_example(*size, seed)
        view = region_recipes.detr(
            example,
            np.random.default_rng(seed),
            short_sides=(30, 41),
            max_side=60,
            first_short_sides=(20, 35),
            crop_sides=(19, 30),
        )
        slow, rng = Slow(example), np.random.default_rng(seed)
        if rng.random() < 0.5:
            slow.flip()
        cropped = rng.random() < 0.5
        if cropped:
            slow.resize_short((20, 35)[rng.integers(2)], 10**6)
            old = slow.labels.shape
            new = [rng.integers(min(s, 19), min(s, 30) + 1) for s in old]
            top = rng.integers(old[0] - new[0] + 1)
            left = rng.integers(old[1] - new[1] + 1)
            slow.crop(top, left, *new)
        slow.resize_short((30, 41)[rng.integers(2)], 60)
        slow.check(view, example)
        assert max(view.size) <= 60
        seen.add(cropped)
    assert len(seen) == 2


def test_sizes_of_short_sides():
    assert short_side_size((480, 640), 800, 1333) == (800, 1067)
    assert short_side_size((427, 640), 1280, 2560) == (1280, 1919)
    assert short_side_size((640, 426), 800, 1333) == (1202, 800)
    assert short_side_size((100, 640), 800, 1333) == (208, 1333)
    assert short_side_size((2, 3000), 320, 640) == (1, 640)


def test_views_of_views():
    image = make_example(9, 11)["image"]
    view = View.whole(image).mirrored().resized((18, 22), resize_pillow)
    view = view.cropped(4, 6, 100, 8).mirrored()
    assert view.size == (14, 8)
    values = np.arange(99).reshape(9, 11)
    expected = values[:, ::-1].repeat(2, 0).repeat(2, 1)[4:, 6:14][:, ::-1]
    np.testing.assert_array_equal(view.take(values), expected)


@pytest.mark.parametrize(
    ("name", "pad"),
    [("short_side", 128), ("large_scale_jitter", 128), ("detr", None), ("crop", None)],
)
def test_augmentations_of_a_configuration(name, pad):
    data = tiny_config(
        {
            "data.augmentation": name,
            "data.segments": "panoptic",
            "data.max_segments": 6,
            "data.short_sides": (12, 20),
            "data.max_side": 32,
            "data.scale_range": (0.3, 0.9),
            "data.photometric": True,
        }
    ).data
    example = make_example(40, 20)
    example["label_map"] = example["label_map"] // 37 % 3
    example["instance_map"] = np.ones((40, 20), np.int32)
    augment = make_augment(data, None, INFO)
    before = {key: np.copy(value) for key, value in example.items()}
    found = augment(example, np.random.default_rng(3))
    again = augment(example, np.random.default_rng(3))
    for key in found:
        np.testing.assert_array_equal(found[key], again[key])
    for key, value in before.items():
        np.testing.assert_array_equal(example[key], value)
    assert found["image"].shape == (32, 32, 3)
    height, width = found["image_size"]
    assert (found["label_map"][:height, :width] != IGNORE).all()
    assert width < 32 and (found["label_map"][:, width:] == IGNORE).all()
    assert (found["masks"][:, width:] == IGNORE).all()
    colour = [pad] * 3 if pad else [round(value) for value in data.pixel_mean]
    assert (found["image"][:, width:] == colour).all()
    classes = found["segment_classes"]
    np.testing.assert_array_equal(classes[found["masks"]], found["label_map"])


def test_keys_that_do_not_go_together():
    def message(**keys):
        data = tiny_config({f"data.{k}": v for k, v in keys.items()}).data
        with pytest.raises(DataError) as error:
            make_augment(data, None, INFO)
        return str(error.value)

    assert "data.max_side is 2560" in message(augmentation="detr")
    assert "data.augmentation=crop alone" in message(
        augmentation="short_side", rare_crop_rate=0.5
    )
    assert "choose one of none, classes" in message(segments="things")
