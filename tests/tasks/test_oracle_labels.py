"""Which labels the oracle takes as present (method.md 7.1)."""

import cv2
import numpy as np
import pytest
from tiny import tiny_config

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.views import label_maps_of_views, make_views
from mlseg_jax.tasks import semantic_evaluation
from mlseg_jax.tasks.engines import evaluation_settings
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation

C = 6


class Recorder(Engine):
    """An engine that only keeps what it is asked for."""

    def __init__(self):
        self.policies = None

    def segment(self, images, policies, scope=None):
        self.policies = policies
        return [[] for _ in policies]


def make_example():
    """Class 3 is one pixel, which no neighbour of a half-sized map is nearest to."""
    label_map = np.full((20, 30), 1, np.int32)
    label_map[:, 15:] = 4
    label_map[5, 7] = 3
    return {"image": np.zeros((20, 30, 3), np.uint8), "label_map": label_map}


def ask(**overrides):
    config = tiny_config({"data.base_size": (15, 10), "eval.oracle_k": 4, **overrides})
    info = DatasetInfo("x", tuple("abcdef"), (False,) * C)
    engine = Recorder()
    SemanticEvaluation(config, info, with_oracle=True).add(engine, [make_example()] * 2)
    _, selection = engine.policies[-1]
    return [
        {int(c) for c, real in zip(ids, valid, strict=True) if real}
        for ids, valid in zip(selection.class_ids, selection.valid, strict=True)
    ]


def test_labels_after_the_resize_as_the_release():
    assert ask() == [{1, 4}] * 2
    assert ask(**{"eval.oracle_labels": "original"}) == [{1, 3, 4}] * 2
    # Every view its own: twice as large, class 3 is there.
    views = ask(**{"eval.scales": (1.0, 2.0), "eval.flip": True})
    assert views == [{1, 4}, {1, 4}, {1, 3, 4}, {1, 3, 4}] * 2


def test_small_labels_of_large_pictures_are_kept(monkeypatch):
    monkeypatch.setattr(semantic_evaluation, "MAX_SHOWN_SIDE", 15)
    example = make_example()
    shown, _ = semantic_evaluation._shown(example, example["label_map"], C)
    assert shown["label_map"].shape == (10, 15) and 3 not in shown["label_map"]
    assert shown["present"].tolist() == [1, 3, 4]


@pytest.mark.parametrize("base_size", [(0, 0), (37, 23)])
def test_label_maps_have_the_views_sizes(base_size):
    config = tiny_config(
        {
            "data.base_size": base_size,
            "eval.scales": (0.5, 1.0, 1.75),
            "eval.flip": True,
        }
    )
    settings, example = evaluation_settings(config), make_example()
    views = make_views(example["image"], settings, lambda length: -(-length // 8))
    maps = label_maps_of_views(example["label_map"], settings)
    for view, seen in zip(views, maps, strict=True):
        assert seen.shape == view.image.shape[:2]
        expected = cv2.resize(
            example["label_map"].astype(np.uint8), seen.shape[::-1],
            interpolation=cv2.INTER_NEAREST,
        )  # fmt: skip
        assert seen.dtype == np.int32
        np.testing.assert_array_equal(seen, expected)
