"""Geometry against an image that encodes its own label map, and exact label ids."""

import collections
import functools

import cv2
import numpy as np
import pytest

from input_pipeline.augmentation import transforms
from input_pipeline.augmentation.views import View, pad
from mlseg_jax.typing import IGNORE, MAX_CLASSES

PAD = (1, 2, 3)


def _crop(example, seed=0, **overrides):
    arguments = {
        "crop_size": (64, 64),
        "base_size": (256, 96),
        "max_class_share": 1.0,
    } | overrides
    return _padded_crop(example, np.random.default_rng(seed), **arguments)


def _padded_crop(example, rng, crop_size, distortion=None, **arguments):
    """As the configuration's augmentation puts it together (augment.py)."""
    view = transforms.random_resize_crop_flip(
        example, rng, crop_size=crop_size, **arguments
    )
    image = view.image if distortion is None else distortion(view.image, rng)
    label_map = pad(view.with_labels(example["label_map"]).labels, crop_size, IGNORE)
    return example | {"image": pad(image, crop_size, PAD), "label_map": label_map}


def _gradient(height, width, red=1, green=1):
    """An example whose label is its row and column, and so say red and green."""
    y, x = np.mgrid[:height, :width].astype(np.int32)
    image = np.stack([red * y, green * x, np.full_like(x, 9)], axis=-1)
    ids = y * 256 + x
    return {"image": image.astype(np.uint8), "label_map": ids, "name": "gradient"}


def _big_ids(height=90, width=120):
    """Random ids that 8 and 16 bits would break, with ignored pixels."""
    rng = np.random.default_rng(1)
    values = np.array([IGNORE, 0, 254, 255, 256, 32767, 32768, 60_000, 65_534])
    ids = values[rng.integers(len(values), size=(height, width))].astype(np.int32)
    return {"image": np.zeros((height, width, 3), np.uint8), "label_map": ids}


@pytest.mark.parametrize("seed", range(30))
def test_image_and_labels_agree(seed):
    example = _gradient(50, 70, red=5, green=3)
    result = _crop(example, seed=seed)
    image, ids = result["image"].astype(float), result["label_map"]
    assert result["image"].shape == (64, 64, 3) and result["image"].dtype == np.uint8
    assert ids.shape == (64, 64) and ids.dtype == np.int32
    assert result["name"] == "gradient"
    valid = ids != IGNORE
    # A label lies within half a source pixel of the point that the image is sampled
    # at, which the image tells to half a grey level; a shift would exceed this.
    row_error = np.abs(image[..., 0] / 5 - ids // 256)[valid]
    column_error = np.abs(image[..., 1] / 3 - ids % 256)[valid]
    assert row_error.max() <= 0.5 + 0.5 / 5 + 0.01
    assert column_error.max() <= 0.5 + 0.5 / 3 + 0.01
    assert (result["image"][~valid] == PAD).all()


@pytest.mark.parametrize("size", [(150, 200), (200, 150), (33, 333)])
@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.61, 2.0])
def test_equals_resize_then_crop(size, scale):
    example = _gradient(*size)
    example["image"] = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), (0, 0), 2
    )
    result = _crop(example, scale_range=(scale, scale), flip_rate=0.0)
    base = int(256 * scale), int(96 * scale)
    resized = transforms.resize_for_test(example["image"], base)
    factor = min(base[0] / max(size), base[1] / min(size))
    assert resized.shape[:2] == tuple(int(side * factor + 0.5) for side in size)
    # Find the crop by what its first label says of the source, then compare all pixels.
    rng = np.random.default_rng(0)
    rng.uniform()
    height, width = (min(64, side) for side in resized.shape[:2])
    top = rng.integers(resized.shape[0] - height + 1)
    left = rng.integers(resized.shape[1] - width + 1)
    expected = resized[top : top + height, left : left + width].astype(int)
    difference = np.abs(result["image"][:height, :width] - expected)
    assert difference.max() <= 3 and difference.mean() < 0.5
    labels = cv2.resize(
        example["label_map"].astype(np.float32),
        resized.shape[1::-1],
        interpolation=cv2.INTER_NEAREST_EXACT,
    )[top : top + height, left : left + width]
    agree = labels == result["label_map"][:height, :width]
    assert agree.mean() > 0.95  # They may round a centre on an edge differently.


def test_flip_mirrors_image_and_labels_before_padding():
    example = _gradient(40, 100)
    plain = _crop(example, scale_range=(0.5, 0.5), flip_rate=0.0)
    flipped = _crop(example, scale_range=(0.5, 0.5), flip_rate=1.0)
    height = np.count_nonzero((plain["label_map"] != IGNORE).any(axis=1))
    assert height == 48
    for key in ("image", "label_map"):
        expected = plain[key].astype(int)
        expected[:height] = expected[:height, ::-1]
        difference = np.abs(flipped[key].astype(int) - expected)
        assert difference.max() <= (1 if key == "image" else 0)


def test_pads_right_and_below():
    result = _crop(_gradient(40, 50), crop_size=(70, 90), base_size=(50, 40), seed=3)
    valid = result["label_map"] != IGNORE
    height, width = valid.any(axis=1).sum(), valid.any(axis=0).sum()
    assert valid[:height, :width].all()
    assert (height, width) != (70, 90)
    assert (result["image"][~valid] == PAD).all()


@pytest.mark.parametrize("seed", range(5))
def test_ids_stay_exact(seed):
    example = _big_ids()
    result = _crop(example, seed=seed, crop_size=(128, 128))
    assert result["label_map"].dtype == np.int32
    assert set(np.unique(result["label_map"])) <= set(np.unique(example["label_map"]))
    assert {IGNORE, 255, 256, 60_000, 65_534} <= set(np.unique(result["label_map"]))


def test_original_size_keeps_labels_and_image():
    example = _big_ids()
    example["image"] = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    result = _crop(
        example,
        crop_size=(90, 120),
        base_size=(120, 90),
        scale_range=(1.0, 1.0),
        flip_rate=0.0,
    )
    np.testing.assert_array_equal(result["label_map"], example["label_map"])
    np.testing.assert_array_equal(result["image"], example["image"])


def _mostly_one_class():
    """Class 7 nearly everywhere; a corner with other classes that a crop may hit."""
    ids = np.full((200, 200), 7, np.int32)
    ids[:60, :60] = np.arange(60)
    return {"image": np.zeros((200, 200, 3), np.uint8), "label_map": ids}


def test_crop_avoids_one_class():
    def share_of_varied(num_retries):
        varied = 0
        for seed in range(200):
            ids = _crop(
                _mostly_one_class(),
                seed=seed,
                base_size=(200, 200),
                scale_range=(1.0, 1.0),
                max_class_share=0.75,
                num_retries=num_retries,
            )["label_map"]
            varied += (ids == 7).mean() < 0.75
        return varied / 200

    once, retried = share_of_varied(0), share_of_varied(10)
    assert 0.0 < once < 0.1
    # The last of the eleven is taken unchecked, so some still fail.
    assert abs(retried - (1 - (1 - once) ** 11)) < 0.12


def test_labels_of_a_crop_are_sampled_once(monkeypatch):
    """Those that made it acceptable go into the batch, mirrored with it."""
    taken = []

    def counted(view, values):
        taken.append(view.size)
        return values[view.rows].take(view.columns, axis=1)

    monkeypatch.setattr(View, "take", counted)
    for flip_rate in (0.0, 1.0):
        taken.clear()
        result = _crop(_gradient(99, 80), max_class_share=0.75, flip_rate=flip_rate)
        falls = np.diff(result["label_map"][0, :60]).min() < 0
        assert len(taken) == 1 and falls == bool(flip_rate)


def test_ignored_pixels_are_not_a_class():
    ids = np.full((64, 64), IGNORE, np.int32)
    assert not transforms._is_varied(ids, 0.75)
    ids[0, 0] = 4
    assert not transforms._is_varied(ids, 0.75)
    ids[0, 1] = MAX_CLASSES - 1  # the last id that there can be
    assert transforms._is_varied(ids, 0.75)
    ids[0, 2:4] = 4
    assert not transforms._is_varied(ids, 0.75)  # Exactly 3 of 4 is too much.


def test_same_generator_same_result():
    augment = functools.partial(_crop, distortion=transforms.photometric_distortion)
    first, again, other = (augment(_gradient(99, 80), seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label_map"], again["label_map"])
    assert (first["label_map"] != other["label_map"]).any()


def test_distortion_leaves_padding():
    result = _crop(
        _gradient(40, 50),
        base_size=(50, 40),
        scale_range=(0.8, 0.8),
        distortion=lambda image, rng: image + np.uint8(50),
    )
    assert (result["image"][result["label_map"] == IGNORE] == PAD).all()
    assert result["image"][0, 0, 2] == 59


def _plain_distortion(image, rng):
    """The recipe pixel by pixel in float, with the same draws."""
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    contrast_first = rng.random() < 0.5

    def cut(values):
        return np.clip(values, 0, 255).astype(np.uint8)

    image = cut(image.astype(np.float32) + np.float32(brightness))
    if contrast_first:
        image = cut(image.astype(np.float32) * np.float32(contrast))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if saturation != 1.0:
        hsv[..., 1] = cut(hsv[..., 1].astype(np.float32) * np.float32(saturation))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if hue:
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        image = cut(image.astype(np.float32) * np.float32(contrast))
    return image


def test_photometric_distortion():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    original = image.copy()
    unchanged = 0
    for seed in range(200):
        result = transforms.photometric_distortion(image, np.random.default_rng(seed))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(
            result, _plain_distortion(image, np.random.default_rng(seed))
        )
        unchanged += np.array_equal(result, image)
    np.testing.assert_array_equal(image, original)
    assert 4 <= unchanged <= 24  # One in 16 expected.


def _slow_recipe(example, rng, *, crop, base, cap):
    """All of method.md section 12.2 pixel by pixel, with the same draws."""
    image, ids = example["image"].astype(float), example["label_map"]
    ratio = rng.uniform(0.5, 2.0)
    long, short = (int(side * ratio) for side in base)
    old = ids.shape
    factor = min(long / max(old), short / min(old))
    new = [int(side * factor + 0.5) for side in old]
    resized, labels = np.zeros((*new, 3)), np.zeros(new, int)
    for y in range(new[0]):
        for x in range(new[1]):
            v, u = (y + 0.5) * old[0] / new[0], (x + 0.5) * old[1] / new[1]
            labels[y, x] = ids[int(v), int(u)]
            v = min(max(v - 0.5, 0), old[0] - 1)
            u = min(max(u - 0.5, 0), old[1] - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, old[0] - 1), min(u0 + 1, old[1] - 1)
            a, b = v - v0, u - u0
            resized[y, x] = (
                image[v0, u0] * (1 - a) * (1 - b) + image[v0, u1] * (1 - a) * b
                + image[v1, u0] * a * (1 - b) + image[v1, u1] * a * b
            )  # fmt: skip
    size = [min(crop, side) for side in new]
    for _ in range(11):
        top = rng.integers(new[0] - size[0] + 1)
        left = rng.integers(new[1] - size[1] + 1)
        piece = labels[top : top + size[0], left : left + size[1]]
        numbers = collections.Counter(piece[piece != IGNORE].tolist())
        total, largest = sum(numbers.values()), max(numbers.values(), default=0)
        if len(numbers) > 1 and largest / total < cap:
            break
    mirrored = rng.random() < 0.5
    picture = np.round(resized[top : top + size[0], left : left + size[1]])
    if mirrored:
        picture, piece = picture[:, ::-1], piece[:, ::-1]
    label_map = np.full((crop, crop), IGNORE)
    label_map[: size[0], : size[1]] = piece
    return picture, label_map, [mirrored, factor > 1, crop > min(size)]


def test_whole_recipe_against_a_slow_version():
    seen = []
    for seed in range(12):
        height, width = 22 + seed, 31 - seed
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
        image = cv2.GaussianBlur(image.astype(np.uint8), (0, 0), 1)
        ids = np.full((height, width), 700, np.int32)
        ids[:8, :8], ids[-3:], ids[4:9, -6:] = 3, IGNORE, 255
        example = {"image": image, "label_map": ids}
        result = _padded_crop(
            example,
            np.random.default_rng(seed),
            crop_size=(24, 24),
            base_size=(90, 24),
            max_class_share=0.75,
        )
        picture, label_map, facts = _slow_recipe(
            example, np.random.default_rng(seed), crop=24, base=(90, 24), cap=0.75
        )
        np.testing.assert_array_equal(result["label_map"], label_map)
        height, width = picture.shape[:2]
        # cv2 interpolates with weights of 11 bits.
        assert np.abs(result["image"][:height, :width] - picture).max() <= 1
        assert (result["image"][height:] == PAD).all()
        assert (result["image"][:, width:] == PAD).all()
        seen.append(facts)
    assert all(len(set(column)) == 2 for column in zip(*seen, strict=True))


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        ((480, 640), (2048, 512), (512, 683)),
        ((640, 480), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((300, 400), (520, 520), (390, 520)),
    ],
)
def test_resize_for_test(size, base, expected):
    image = np.zeros((*size, 3), np.uint8)
    result = transforms.resize_for_test(image, base)
    assert result.shape == (*expected, 3) and result.dtype == np.uint8


@pytest.mark.parametrize("size", [(2, 40_000), (40_000, 2), (2, 2)])
def test_odd_sizes(size):
    ids = np.arange(size[0] * size[1], dtype=np.int32).reshape(size) % 5
    image = (ids[..., None] * 50 + np.zeros(3)).astype(np.uint8)
    result = _crop({"image": image, "label_map": ids})
    assert result["image"].shape == (64, 64, 3)
