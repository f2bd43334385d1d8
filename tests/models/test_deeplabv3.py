"""DeepLabv3 with label selection: canvases, windows, the auxiliary loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import NUM_CLASSES, deeplabv3_config, random_parameters

from configs import deeplabv3
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.losses import pixel
from mlseg_jax.losses.pixel import classified_cross_entropy, upsampled_cross_entropy
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.tasks import semantic
from mlseg_jax.tasks.engines import make_engine
from mlseg_jax.typing import IGNORE

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_a_head_that_does_not_fit():
    config = deeplabv3.get_config("dataset=ade20k")
    with config.unlocked():
        config.model.multilabel_head.name = "transformer_encoder"
    with pytest.raises(UserError, match="set model.multilabel_head.name to projected"):
        FunctionalModel.build(config, C)


# --------------------------------------------------------------------------- canvases


@pytest.mark.parametrize(
    "stem, head", [("deep", "projected_encoder"), ("plain", "none")]
)
def test_the_padding_of_a_canvas_is_not_seen(stem, head):
    """Whole pictures of any size on one canvas, whatever lies beside them."""
    dilated = stem == "deep"
    config = deeplabv3_config(
        "top_k" if head != "none" else "complete",
        depths=(1, 1, 2, 1),
        stem=stem,
        strides=(1, 2, 1, 1) if dilated else (1, 2, 2, 2),
        dilations=(1, 1, 2, 4) if dilated else (1, 1, 1, 1),
    )
    model = FunctionalModel.build(config, C)
    parameters = random_parameters(model)
    select = SelectionPolicy(config.selection.name, 4).select()

    @jax.jit
    def run(parameters, images, sizes=None):
        output = model.bind(parameters)(images, select, image_size=sizes)
        return output.label_scores, output.selection.class_ids, output.logits

    sizes = [(61, 77), (96, 64), (33, 30)]
    rng = np.random.default_rng(1)
    canvas = 100 * rng.normal(size=(3, 96, 80, 3)).astype(np.float32)
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    for b, (height, width) in enumerate(sizes):
        canvas[b, :height, :width] = images[b]
    scores, class_ids, logits = run(parameters, canvas, np.asarray(sizes, np.int32))
    assert all(np.all(np.isfinite(x)) for x in (scores, logits))
    for b in (0, 2):
        alone = run(parameters, images[b][None])
        rows, columns = map(model.grid_length, sizes[b])
        assert alone[2].shape[1:3] == (rows, columns)
        np.testing.assert_allclose(scores[b], alone[0][0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(class_ids[b], alone[1][0])
        np.testing.assert_allclose(
            logits[b, :rows, :columns], alone[2][0], rtol=1e-3, atol=2e-4
        )


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_pictures_as_a_whole_and_in_windows(mode):
    """The engine, against one plain call of the model for each window."""
    config = deeplabv3_config("complete", **{"depths": (1, 1)})
    with config.unlocked():
        config.eval.update(mode=mode, window=(32, 32), stride=(20, 20), batch_size=2)
        config.data.base_size = (0, 0)
    model = FunctionalModel.build(config, C)
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    height, width = 37, 50
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    engine = make_engine(config, model, parameters)
    ((result,),) = engine.segment([image], [(SelectionPolicy("complete", C), None)])
    (rows,), (columns,), (grid,) = result.rows, result.columns, result.grids
    found = np.einsum("Hh,Ww,hwk->HWk", rows, columns, np.asarray(grid)[0])

    select = SelectionPolicy("complete", C).select()
    run = jax.jit(lambda x: model.bind(parameters)(x, select).logits)
    total, count = np.zeros((height, width, C)), np.zeros((height, width, 1))
    side = 32 if mode == "slide" else 64
    for top in (0, 5) if mode == "slide" else (0,):
        for left in (0, 18) if mode == "slide" else (0,):
            part = np.s_[top : top + side, left : left + side]
            logits = np.asarray(run(image[part][None]))[0]
            shape = image[part].shape[:2]
            up = [
                bilinear_matrix(n, m)
                for n, m in zip(shape, logits.shape[:2], strict=True)
            ]
            total[part] += np.einsum("Hh,Ww,hwk->HWk", *up, logits)
            count[part] += 1
    np.testing.assert_allclose(found, total / count, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ the auxiliary loss


@pytest.mark.parametrize("strip_bytes", [1, 700, 2**20])
def test_the_auxiliary_loss_in_strips(monkeypatch, strip_bytes):
    """Value and gradients of the plain C-wide computation."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    weights = rng.normal(size=(C, 6)).astype(np.float32)
    biases = rng.normal(size=C).astype(np.float32)
    labels = jnp.asarray(rng.integers(IGNORE, C, (3, 13, 17)), jnp.int32)
    cotangent = rng.normal(size=labels.shape).astype(np.float32)

    def in_strips(embeddings, weights, biases):
        losses = classified_cross_entropy(embeddings, labels, weights, biases)
        return jnp.sum(losses * cotangent), losses

    def at_once(embeddings, weights, biases):
        logits = jnp.einsum("bhwd,cd->bhwc", embeddings, weights)
        logits = logits + biases[None, None, None]
        losses = upsampled_cross_entropy(logits, labels)
        return jnp.sum(losses * cotangent), losses

    def run(function):
        differentiate = jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True)
        return jax.jit(differentiate)(embeddings, weights, biases)

    expected = run(at_once)
    monkeypatch.setattr(pixel, "STRIP_BYTES", strip_bytes)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        run(in_strips),
        expected,
    )


def make_batch(batch=8, height=32, width=32):
    rng = np.random.default_rng(0)
    blocks = rng.integers(IGNORE, C, (batch, height // 8, width // 8))
    labels = np.repeat(np.repeat(blocks, 8, axis=1), 8, axis=2)
    images = labels[..., None] * [20, 9, 4] + rng.normal(size=(*labels.shape, 3)) * 8
    return {
        "image": np.clip(images + 40, 0, 255).astype(np.uint8),
        "label_map": labels.astype(np.int32),
    }


def test_the_auxiliary_loss_is_added_in_training_alone():
    config = deeplabv3_config()
    model = FunctionalModel.build(config, C)
    parameters = random_parameters(model)
    batch = jax.tree.map(jnp.asarray, make_batch(2))

    @functools.partial(jax.jit, static_argnames="weight")
    def run(parameters, rng, weight):
        with config.unlocked():
            config.model.auxiliary_head.weight = weight
        total, parts = semantic.loss(model.bind(parameters), batch, config, rng)
        return total, parts

    rng = jax.random.key(0)
    (half, parts), (full, _) = run(parameters, rng, 0.5), run(parameters, rng, 1.0)
    np.testing.assert_allclose(full - half, 0.5 * parts["loss/auxiliary"], rtol=1e-4)
    assert "loss/auxiliary" not in run(parameters, None, 0.5)[1]
