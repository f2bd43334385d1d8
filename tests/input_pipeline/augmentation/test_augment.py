"""Crops that aim at rare classes, and their switch."""

import numpy as np
import pytest

from input_pipeline.augmentation import transforms
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.info import DataError
from tests.tiny import tiny_config


def _crop(example, seed, scale, **overrides):
    arguments = {
        "crop_size": (64, 64),
        "base_size": (400, 300),
        "scale_range": (scale, scale),
        "max_class_share": 1.0,
    } | overrides
    rng = np.random.default_rng(seed)
    view = transforms.random_resize_crop_flip(example, rng, **arguments)
    return {"label_map": view.take(example["label_map"])}


def test_rare_class_crops():
    """One pixel of class 5 in a large picture is in every crop that aims at it."""
    ids = np.arange(300 * 400, dtype=np.int32).reshape(300, 400) % 3
    ids[70, 390] = 5
    example = {"image": np.zeros((300, 400, 3), np.uint8), "label_map": ids}
    weights = np.float64([0, 0, 0, 1, 1, 9])

    def share(rate, scale, **overrides):
        arguments = {"rare_crop_rate": rate, "class_weights": weights} | overrides
        hits = [
            (_crop(example, seed, scale,
                   **arguments)["label_map"] == 5).any()
            for seed in range(100)
        ]  # fmt: skip
        return np.mean(hits)

    assert share(1.0, 1.0) == share(1.0, 1.7) == 1.0
    assert share(0.0, 1.0) < 0.15
    assert 0.35 < share(0.5, 1.0) < 0.65
    # A picture without any wanted class is cropped as always.
    assert share(1.0, 1.0, class_weights=np.zeros(6)) < 0.15


def test_rare_class_crops_draw_classes_by_weight():
    ids = np.repeat(np.int32([[1, 2]]), [300, 100], axis=1).repeat(40, axis=0)
    weights = np.float64([0, 1, 4])
    rows, columns = zip(
        *(
            transforms._rare_pixel(ids, weights, (40, 400), np.random.default_rng(seed))
            for seed in range(400)
        ),
        strict=True,
    )
    assert abs(np.mean(np.array(columns) >= 300) - 0.8) < 0.07
    assert min(rows) == 0 and max(rows) == 39 and min(columns) < 20


def test_one_switch_weighs_classes_by_their_pictures():
    ids = np.zeros((300, 400), np.int32)
    ids[70, 390], ids[200, 3] = 1, 2
    example = {"image": np.zeros((300, 400, 3), np.uint8), "label_map": ids}
    overrides = {
        "data.rare_crop_rate": 1.0,
        "data.crop_size": (64, 64),
        "data.base_size": (0, 0),
        "data.max_class_share": 1.0,
    }
    config = tiny_config(overrides)
    config.data.scale_range = (1.0, 1.0)
    augment = make_augment(config.data, np.int64([1000, 10, 90]))
    found = [
        np.unique(augment(example, np.random.default_rng(seed))["label_map"])
        for seed in range(200)
    ]
    assert 0.8 < np.mean([1 in ids for ids in found]) < 0.97  # 0.89 expected
    assert 0.03 < np.mean([2 in ids for ids in found]) < 0.2
    config.data.rare_crop_rate = 1.5
    with pytest.raises(DataError, match="rare_crop_rate is 1.5"):
        make_augment(config.data)
