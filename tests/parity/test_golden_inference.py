"""Sliding windows and several scales against the PyTorch version's golden files."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import close, load, nhwc, part, set_up

from mlseg_jax.inference import engine, rank_space, views
from mlseg_jax.label_selection import SelectionPolicy

pytestmark = pytest.mark.usefixtures("quick_compiles")


def eval_settings(config, golden):
    sizes = part(golden, "config")
    with config.unlocked():
        config.eval.update(
            window=(int(sizes["window"]),) * 2,
            stride=(int(sizes["stride"]),) * 2,
            batch_size=4,
        )
    return config.eval


def predict(monkeypatch, case, view_images, flips):
    """The engine's label map, with normalised float images in place of its views."""
    golden, config, model, params = set_up(case, "top_k", 4)
    settings = eval_settings(config, golden)
    out = int(golden["config:out_height"]), int(golden["config:out_width"])

    def make_views(image, settings, grid_length, any_canvas, *_):
        assert image.shape[:2] == out
        seen = []
        for x in view_images:
            for flip in flips:
                axes = [
                    views.plan_axis(
                        out[axis],
                        x.shape[axis],
                        settings.window[axis],
                        settings.stride[axis],
                        settings.window[axis],
                        grid_length(min(settings.window[axis], x.shape[axis])),
                        grid_length(settings.window[axis]),
                        flip and axis == 1,
                    )
                    for axis in (0, 1)
                ]
                seen.append(views.View(x[:, ::-1] if flip else x, *axes))
        return seen

    monkeypatch.setattr(engine, "make_views", make_views)
    predictor = engine.Engine(model, params, settings)
    picture = np.zeros((*out, 3), np.uint8)
    ((segmented,),) = predictor.segment(
        [picture], [(SelectionPolicy("top_k", 4), None)]
    )
    return golden, segmented


def assert_label_map(golden, values, found):
    expected = golden["output:label_map"]
    top = np.sort(values, axis=0)
    clear = top[-1] - top[-2] >= 1e-4
    assert np.mean(clear) > 0.95
    assert found.shape == expected.shape
    assert np.sum((found != expected) & clear[None]) == 0


def test_sliding(monkeypatch):
    image = nhwc(load("sliding")["input:image"])[0]
    golden, segmented = predict(monkeypatch, "sliding", [image], [False])
    assert_label_map(golden, golden["output:logits"], segmented.label_maps())
    union = np.unique(golden["output:window_indices"])
    found = np.asarray(segmented.selection.class_ids)[segmented.selection.valid]
    np.testing.assert_array_equal(found, union)
    # The logits themselves, filled for the labels that no window selected.
    pieces = segmented.grids[0], segmented.rows[0], segmented.columns[0]
    tile = rank_space.upsampled_tile(*map(jnp.asarray, pieces))
    logits = np.full_like(golden["output:logits"], -100.0)
    logits[found] = np.asarray(tile)[0, : len(found)]
    close(logits, golden["output:logits"], 1e-4)


def test_multi_scale(monkeypatch):
    golden = load("multi_scale")
    count = len(golden["config:ratios"])
    images = [nhwc(golden[f"input:image_{i}"])[0] for i in range(count)]
    golden, segmented = predict(monkeypatch, "multi_scale", images, [False, True])
    assert_label_map(golden, golden["output:probabilities"], segmented.label_maps())
