"""The engine with models of regions: what they see of a picture, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_regions import full_masks, semantic_scores
from shrink import random_parameters
from tiny_regions import CLASSES, region_config

from mlseg_jax.label_selection import SelectionPolicy, select_top_k
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.tasks.engines import make_engine

pytestmark = pytest.mark.usefixtures("quick_compiles")
POLICY = SelectionPolicy("top_k", 6)


def setup(**overrides):
    config = region_config("maskformer", "semantic", overrides=overrides)
    model = FunctionalModel.build(config, CLASSES)
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    return config, model, parameters, make_engine(config, model, parameters)


def directly(model, parameters, image, padded):
    """The model on the picture, padded with zeros after normalisation."""
    bound = model.bind(parameters)
    pixels = np.tile(np.float32(bound.pixel_mean), (1, *padded, 1))
    pixels[0, : image.shape[0], : image.shape[1]] = image
    output = bound(jnp.asarray(pixels), lambda scores: select_top_k(scores, 6))
    logits = np.asarray(output.regions.mask_logits())[0]
    masks = full_masks(logits, padded, image.shape[:2], image.shape[:2])
    class_ids = np.asarray(output.selection.class_ids)[0]
    return class_ids, semantic_scores(np.asarray(output.class_logits)[0, -1], masks)


@pytest.mark.parametrize("size, padded", [((41, 27), (64, 32)), ((130, 30), (160, 32))])
def test_a_whole_picture_is_padded_as_released(size, padded):
    """To a multiple of 32, which is seen, whatever canvas that lies on."""
    _, model, parameters, engine = setup()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ((found,),) = engine.segment([image], [(POLICY, None)])
    class_ids, scores = directly(model, parameters, image, padded)
    np.testing.assert_array_equal(found.class_ids, class_ids)
    for y, x, tile in found.score_tiles():
        inside = np.asarray(tile)[:, : y.stop - y.start, : x.stop - x.start]
        np.testing.assert_allclose(inside, scores[:, y, x], rtol=1e-4, atol=1e-4)


def test_windows_scales_and_flips_are_united():
    _, _, _, engine = setup(
        **{"eval.mode": "slide", "eval.window": (32, 32), "eval.stride": (20, 20)},
        **{"eval.flip": True, "eval.batch_size": 4},
    )
    image = np.random.default_rng(1).integers(0, 256, (44, 40, 3), np.uint8)
    ((found,),) = engine.segment([image], [(POLICY, None)])
    assert len(found.windows) == 2 * 2 * 2
    np.testing.assert_allclose(
        sum(w.rows.share[:, None] * w.columns.share for w in found.windows), 1.0, 1e-5
    )
    selected = found.selected_class_ids
    assert 6 <= len(selected) <= CLASSES
    labels = found.label_maps()
    assert labels.shape == (1, 44, 40) and set(np.unique(labels)) <= selected
    assert found.scores.shape == (1, CLASSES)


def test_pictures_of_a_batch_are_apart():
    """Each has its own regions, though features of a batch stay together."""
    _, _, _, engine = setup(**{"eval.batch_size": 4})
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)]
    (together,) = engine.segment(images, [(POLICY, None)])
    for image, found in zip(images, together, strict=True):
        ((alone,),) = engine.segment([image], [(POLICY, None)])
        assert found.selected_class_ids == alone.selected_class_ids
        same = found.label_maps() == alone.label_maps()
        assert same.mean() > 0.99
    assert jax.tree.leaves(together[0].windows[0].masks)
