"""Windows, scales and mirroring over ranks against a slow version C channels wide."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_model import (
    POLICY,
    C,
    FakeModel,
    fake_engine,
    make_image,
    make_settings,
)
from naive_inference import slow_predict

from mlseg_jax.inference import rank_space
from mlseg_jax.label_selection import Selection, SelectionPolicy

pytestmark = pytest.mark.usefixtures("quick_compiles")


CASES = {
    "one window": ((16, 16), {}),
    "windows": ((41, 30), {}),
    "stride = window": ((37, 50), {"stride": (16, 16)}),
    "smaller than a window": ((11, 7), {}),
    "smaller on one side": ((9, 30), {}),
    "odd windows": ((25, 27), {"window": (13, 10), "stride": (7, 9)}),
    "per image": ((41, 30), {"selection_scope": "per_image"}),
    "scales and mirrored": ((22, 30), {"scales": (0.5, 1.0, 1.5), "flip": True}),
    "per image, mirrored": (
        (22, 30),
        {"selection_scope": "per_image", "flip": True},
    ),
    "whole": ((22, 45), {"mode": "whole"}),
    "whole, mirrored": ((22, 45), {"mode": "whole", "flip": True}),
    "whole, scales": ((22, 45), {"mode": "whole", "scales": (0.5, 1.0, 1.75)}),
}


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_against_c_channels(name, restricted):
    (height, width), changes = CASES[name]
    settings, model = make_settings(**changes), FakeModel()
    allowed = np.arange(C) % 2 == 0 if restricted else None
    image = make_image(height, width)
    engine = fake_engine(model, settings)
    ((segmented,),) = engine.segment([image], [(POLICY, None)], allowed)
    expected, scores = slow_predict(model, image, settings, allowed)
    labels = segmented.label_maps()
    assert labels.shape == (1, height, width) and labels.dtype == np.uint8
    top = np.sort(expected, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(labels[0][clear], expected.argmax(axis=-1)[clear])
    np.testing.assert_allclose(segmented.scores[0], scores, rtol=1e-4, atol=1e-4)
    if restricted:
        assert np.all(labels % 2 == 0)


def test_six_scales_mirrored_at_1284_classes():
    """The paper's multi-scale test, which its release leaves out for lack of memory:
    each pixel that is no near-tie has the label of the C-wide algorithm.
    """
    model, k = FakeModel(num_classes=1284), 20
    settings = make_settings(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    image = make_image(23, 30)
    policy = SelectionPolicy("top_k", k)
    ((segmented,),) = fake_engine(model, settings).segment([image], [(policy, None)])
    assert len(segmented.grids) == 12
    assert k < segmented.selection.valid.sum() < 1284  # windows select differently
    expected, scores = slow_predict(model, image, settings, k=k)
    top = np.sort(expected, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-5
    assert clear.mean() > 0.99
    labels = segmented.label_maps()[0]
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=-1)[clear])
    np.testing.assert_allclose(segmented.scores[0], scores, rtol=1e-4, atol=1e-4)


def test_several_pictures_and_policies_at_once():
    """Also batches that do not come out even, and oracle-like given selections."""
    model = FakeModel()
    for changes in ({"mode": "whole"}, {}):
        settings = make_settings(**changes)
        engine = fake_engine(model, settings)
        images = [make_image(21, 27, seed=i) for i in range(5)]
        given = Selection(
            jnp.asarray([[i, 8 - i] for i in range(4)] + [[2, 5]]), None, C
        )
        policies = [(POLICY, None), (SelectionPolicy("given", 2), given)]
        free, fixed = engine.segment(images, policies)
        free = np.concatenate([s.label_maps() for s in free])
        fixed = np.concatenate([s.label_maps() for s in fixed])
        assert len(free) == len(fixed) == 5
        for i, image in enumerate(images):
            expected, _ = slow_predict(model, image, settings)
            assert np.mean(free[i] == expected.argmax(axis=-1)) > 0.99
            assert set(np.unique(fixed[i])) <= set(map(int, given.class_ids[i]))


def test_sixteen_bits_above_256_classes():
    model, settings = FakeModel(num_classes=700), make_settings()
    image = make_image(20, 30)
    ((segmented,),) = fake_engine(model, settings).segment([image], [(POLICY, None)])
    labels = segmented.label_maps()
    assert labels.dtype == np.uint16 and labels.max() > 255
    expected, _ = slow_predict(model, image, settings)
    assert np.mean(labels[0] == expected.argmax(axis=-1)) > 0.99


def test_small_tiles_change_nothing(monkeypatch):
    engine = fake_engine(FakeModel(), make_settings())
    ((segmented,),) = engine.segment([make_image(150, 140)], [(POLICY, None)])
    labels = segmented.label_maps()
    monkeypatch.setattr(rank_space, "tile_bytes", lambda: 1)
    np.testing.assert_array_equal(segmented.label_maps(), labels)


def test_sizes_do_not_each_compile(caplog):
    """Twenty sizes of picture, few shapes."""
    settings = make_settings(mode="whole", batch_size=1)
    engine = fake_engine(FakeModel(), settings)
    sizes = [(33 + i, 60 - i) for i in range(20)]
    compiled = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for height, width in sizes:
            caplog.clear()
            image = make_image(height, width)
            ((segmented,),) = engine.segment([image], [(POLICY, None)])
            segmented.label_maps()
            text = [r.getMessage() for r in caplog.records]
            compiled.append(sum("Compiling" in line for line in text))
    caplog.clear()
    assert sum(compiled) <= 16, compiled
    assert compiled[1:].count(0) >= 15, compiled


def test_padding_of_a_union_is_never_predicted():
    """Class 0 fills up the union; it must not win where nobody selected it."""
    model = FakeModel()
    model.to_logits[:] = 0.0  # all selected labels tie
    engine = fake_engine(model, make_settings())
    allowed = np.arange(model.num_classes) > 0
    ((segmented,),) = engine.segment([make_image(40, 40)], [(POLICY, None)], allowed)
    valid = np.asarray(segmented.selection.valid)
    real = np.asarray(segmented.selection.class_ids)[valid]
    assert not valid.all() and 0 not in real
    assert set(np.unique(segmented.label_maps())) <= set(real.tolist())
    assert dataclasses.is_dataclass(segmented)
