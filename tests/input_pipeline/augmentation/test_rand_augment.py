"""Augmentation of whole pictures, against slow versions of the operations."""

import numpy as np
import pytest
from tiny import tiny_config

from input_pipeline.augmentation import rand_augment as ops
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.augmentation.views import resize_pillow
from input_pipeline.info import DataError, DatasetInfo

INFO = DatasetInfo("five", tuple("abcde"), (False,) * 5)
IMAGE = np.random.default_rng(5).integers(0, 256, (19, 23, 3), dtype=np.uint8)
NAMES = [
    *("invert", "cutout", "sharpness", "autocontrast", "posterize", "shear_x"),
    *("translate_x", "translate_y", "shear_y", "rotate", "equalize", "contrast"),
    *("color", "solarize", "brightness"),
]


class Signs:
    """A generator whose signs and positions are known."""

    def __init__(self, positive, position=3):
        self.positive, self.position = positive, position

    def random(self):
        return 0.1 if self.positive else 0.9

    def integers(self, _):
        return self.position


def apply(name, magnitude, positive=True, image=IMAGE):
    operation = ops.OPERATIONS[NAMES.index(name)]
    picture = ops.Image.fromarray(image)
    return np.asarray(operation(picture, magnitude / 9, Signs(positive)))


def grey_level(image):
    """Pillow's integer luma."""
    red, green, blue = np.moveaxis(image.astype(np.int64), -1, 0)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(image, other, factor):
    """Pillow's: in float32, cut to 0..255 and truncated."""
    image, other = image.astype(np.float32), other.astype(np.float32)
    return np.clip(other + np.float32(factor) * (image - other), 0, 255).astype(int)


def test_operations_of_single_pixels():
    image = IMAGE.astype(int)
    np.testing.assert_array_equal(apply("invert", 4), 255 - image)
    for magnitude, bits in zip(range(1, 10), (8, 7, 7, 6, 6, 5, 5, 4, 4), strict=True):
        mask = 256 - 2 ** (8 - bits)
        np.testing.assert_array_equal(apply("posterize", magnitude), image & mask)
        bound = 256 * (1 - magnitude / 9)
        expected = np.where(image < bound, image, 255 - image)
        np.testing.assert_array_equal(apply("solarize", magnitude), expected)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("magnitude", [1, 9])
def test_enhancements(magnitude, positive):
    factor = 1 + 0.1 * magnitude * (1 if positive else -1)
    level = grey_level(IMAGE)
    others = {
        "brightness": np.zeros_like(IMAGE),
        "color": np.repeat(level[..., None], 3, axis=2),
        "contrast": np.full_like(IMAGE, int(level.mean() + 0.5)),
    }
    for name, other in others.items():
        found = apply(name, magnitude, positive).astype(int)
        assert np.abs(found - blend(IMAGE, other, factor)).max() <= 1, name


def test_the_histogram_is_stretched_and_flattened():
    image = IMAGE // 2 + 40
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    expected = (image - low[None, None]) * (255.0 / (high - low)[None, None])
    found = apply("autocontrast", 3, image=image)
    assert np.abs(found - expected).max() <= 1
    flat = apply("equalize", 3, image=image)
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        levels = np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)
        np.testing.assert_array_equal(flat[..., channel], levels[image[..., channel]])


def test_moves_and_what_comes_in():
    for positive in (True, False):
        shift = int(np.floor(150 / 331 * IMAGE.shape[1] + 0.5)) * (
            1 if positive else -1
        )
        expected = np.full_like(IMAGE, 128)
        columns = np.arange(IMAGE.shape[1])
        inside = (columns + shift >= 0) & (columns + shift < IMAGE.shape[1])
        expected[:, inside] = IMAGE[:, (columns + shift)[inside]]
        np.testing.assert_array_equal(apply("translate_x", 9, positive), expected)
        swapped = apply("translate_y", 9, positive, np.swapaxes(IMAGE, 0, 1).copy())
        np.testing.assert_array_equal(np.swapaxes(swapped, 0, 1), expected)
    # A shear moves each row by its distance from the top: ones of a vertical edge.
    edge = np.zeros((20, 40, 3), np.uint8)
    edge[:, 20:] = 255
    counts = (apply("shear_x", 9, True, edge)[..., 0] > 128).sum(axis=1)
    np.testing.assert_allclose(counts, 20 + 0.3 * np.arange(20), atol=7)
    np.testing.assert_array_equal(
        apply("shear_y", 5, False, np.swapaxes(edge, 0, 1).copy()),
        np.swapaxes(apply("shear_x", 5, False, edge), 0, 1),
    )
    turned = apply("rotate", 9, image=np.full((41, 41, 3), 200, np.uint8))
    assert tuple(turned[0, 0]) == ops.GREY and turned[20, 20, 0] == 200


def test_the_small_hole():
    for magnitude, half in zip(range(1, 10), (1, 2, 3, 4, 5, 6, 8, 9, 10), strict=True):
        expected = IMAGE.copy()
        expected[max(0, 3 - half) : 3 + half, max(0, 3 - half) : 3 + half] = (
            ops.CUTOUT_COLOUR
        )
        np.testing.assert_array_equal(apply("cutout", magnitude), expected)


def test_the_large_hole():
    areas = []
    for seed in range(200):
        found = ops.cutout(IMAGE, np.random.default_rng(seed), 0.5)
        changed = (found != IMAGE).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        hole = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert len(np.unique(hole.reshape(-1, 3), axis=0)) == 1
        areas.append(hole.shape[:2])
    assert np.max(areas) == 9 and np.min(areas) >= 4  # half of 19, cut at the border


def test_each_half_of_the_pair_is_applied_half_of_the_time():
    unchanged = [
        np.array_equal(ops.rand_augment(IMAGE, np.random.default_rng(seed)), IMAGE)
        for seed in range(400)
    ]
    # A quarter, and a few whose operation does nothing (posterizing to 8 bits).
    assert 0.2 < np.mean(unchanged) < 0.35
    again = ops.rand_augment(IMAGE, np.random.default_rng(8))
    np.testing.assert_array_equal(
        again, ops.rand_augment(IMAGE, np.random.default_rng(8))
    )


def test_whole_pictures_and_the_classes_of_the_full_label_map():
    label_map = np.full((19, 23), -1, np.int32)
    label_map[5, 7], label_map[:2] = 3, 1
    config = tiny_config({"data.augmentation": "whole", "data.crop_size": (8, 8)})
    augment = make_augment(config.data, None, INFO)
    example = {"image": IMAGE, "label_map": label_map, "name": "a"}
    found = augment(example, np.random.default_rng(0))
    assert found["image"].shape == (8, 8, 3) and found["image"].dtype == np.uint8
    assert "label_map" not in found and found["name"] == "a"
    np.testing.assert_array_equal(found["presence"], [False, True, False, True, False])
    config.data.update(rand_augment=False, cutout=0.0)
    plain = make_augment(config.data, None, INFO)(example, None)["image"]
    # Smoothed when shrinking: the mean stays.
    assert abs(plain.mean() - IMAGE.mean()) < 3
    assert resize_pillow(IMAGE, (19, 23)) is IMAGE
    config.data.augmentation = "half"
    with pytest.raises(DataError, match="choose one of crop, whole"):
        make_augment(config.data)
