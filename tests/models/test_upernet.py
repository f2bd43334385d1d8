"""UPerNet on Swin and BEiT, linear on DINOv2: canvases, meshes, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from shrink import (
    NUM_CLASSES,
    linear_config,
    random_parameters,
    scene_batch,
    upernet_config,
)

from mlseg_jax.distributed.sharding import AXES, put_batch
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.models.backbones.beit import FeaturePyramid
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.tasks.engines import make_engine
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")


# --------------------------------------------------------------------------- canvases


@pytest.mark.parametrize("make_config", [upernet_config, linear_config])
def test_the_padding_of_a_canvas_is_not_seen(make_config):
    """Whole pictures of any size on one canvas, whatever lies beside them."""
    config = make_config()
    model = FunctionalModel.build(config, C)
    assert model.any_canvas
    parameters = random_parameters(model)
    select = SelectionPolicy("top_k", 4).select()

    @jax.jit
    def run(parameters, images, sizes=None):
        output = model.bind(parameters)(images, select, image_size=sizes)
        return output.label_scores, output.selection.class_ids, output.logits

    sizes = [(41, 57), (64, 60), (21, 26)]
    rng = np.random.default_rng(1)
    canvas = 100 + 100 * rng.normal(size=(3, 64, 60, 3)).astype(np.float32)
    for b, (height, width) in enumerate(sizes):
        canvas[b, height:], canvas[b, :, width:] = 1e3, -1e3
    scores, class_ids, logits = run(parameters, canvas, np.asarray(sizes, np.int32))
    height, width = sizes[0]
    alone = run(parameters, canvas[:1, :height, :width])
    rows, columns = map(model.grid_length, sizes[0])
    assert alone[2].shape[1:3] == (rows, columns)
    np.testing.assert_allclose(scores[0], alone[0][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(class_ids[0], alone[1][0])
    np.testing.assert_allclose(
        logits[0, :rows, :columns], alone[2][0], rtol=1e-3, atol=2e-4
    )


def test_beit_sees_windows_without_padding():
    """Its tables follow the grid: a picture smaller than a window is one by itself."""
    config = upernet_config(backbone="beit_b16")
    with config.unlocked():
        config.eval.update(mode="slide", window=(32, 32), stride=(21, 21))
        config.data.base_size = (0, 0)
    model = FunctionalModel.build(config, C)
    assert not model.any_canvas
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    engine = make_engine(config, model, parameters)
    image = np.random.default_rng(0).integers(0, 256, (20, 27, 3)).astype(np.uint8)
    policy = SelectionPolicy("top_k", 4)
    ((segmented,),) = engine.segment([image], [(policy, None)])
    run = jax.jit(lambda p, x: model.bind(p)(x, policy.select()).logits)
    np.testing.assert_allclose(
        np.asarray(segmented.grids[0]),
        run(parameters, image[None]),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="no padded canvases"):
        sizes = jnp.asarray([[20, 27]])
        model.bind(parameters).encode(jnp.asarray(image[None]), image_size=sizes)


def test_beit_of_pictures_of_one_patch():
    """The grid is of the picture, and not of padding beside it."""
    config = upernet_config(backbone="beit_b16")
    model = FunctionalModel.build(config, C)
    patch = config.model.backbone.patch_size
    assert model.grid_length(patch - 1) == model.grid_length(patch) == 4
    images = jax.ShapeDtypeStruct((1, patch - 1, 3 * patch, 3), np.uint8)
    select = SelectionPolicy("top_k", 4).select()
    logits = jax.eval_shape(
        lambda p, x: model.bind(p)(x, select).logits, model.shapes, images
    )
    assert logits.shape[1:3] == (4, 12)
    pyramid = FeaturePyramid(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grid = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 3, 4)), jnp.float32)
    *_, coarse = pyramid([grid] * 4, train=False)
    np.testing.assert_array_equal(coarse.grid, grid[:, :, :2].max(axis=2)[:, :, None])


# --------------------------------------------------------------------------- training


CONFIGS = {
    "beit": functools.partial(upernet_config, backbone="beit_b16", patch_size=8),
    "dinov2": linear_config,
}


def train_steps(config, steps, shape=(1, 1), start=None):
    """On one batch of procedural scenes: the first state, what batch norms have
    measured after three steps, all losses."""
    mesh = jax.make_mesh(
        shape,
        AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: shape[0] * shape[1]],
    )
    model = FunctionalModel.build(config, C)
    start = start or jax.device_get(initialise(config, C, mesh))
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, C, mesh))
    state, batch = (
        jax.device_put(start, shardings),
        put_batch(mesh, scene_batch(config)),
    )
    step, losses = make_train_step(config, model, mesh), []
    for i in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/total"]))
        if i == 2:
            stats = jax.device_get(state["stats"])
    return start, stats, losses


def assert_falls(losses):
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_falls(name):
    assert_falls(train_steps(CONFIGS[name](), 12)[-1])


def test_meshes_agree_and_the_loss_falls():
    config = upernet_config(scan=True, remat="dots")
    start, stats, losses = train_steps(config, 12)
    _, split, same = train_steps(config, 3, (2, 4), start)
    assert_falls(losses)
    np.testing.assert_allclose(same, losses[:3], rtol=1e-3)
    for path, value in stats.items():
        np.testing.assert_allclose(
            split[path], value, rtol=1e-2, atol=1e-3, err_msg=path
        )
