"""Models of regions: the same on every mesh, scanned, made again, in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from shrink import (
    NUM_CLASSES,
    random_parameters,
    use_tiny_backbone,
    use_tiny_decoder,
    use_tiny_pixel_decoder,
)

from configs import mask2former
from mlseg_jax.distributed import sharding
from mlseg_jax.distributed.sharding import AXES, batch_sharding, on_mesh, state_sharding
from mlseg_jax.label_selection import select_top_k
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.planning.compiled import read_program

pytestmark = pytest.mark.usefixtures("quick_compiles")

# On two maps: a scan of layers goes over two rounds of two.
CASES = {"mask2former": ("deformable", 4), "maskformer": ("encoder_fpn", 2)}

SIZE, WIDTH = (131, 150), 16


@pytest.fixture(scope="module", autouse=True)
def small_arrays_are_split_too():
    patch = pytest.MonkeyPatch()
    patch.setattr(sharding, "MIN_SHARDED_SIZE", 2**8)
    yield
    patch.undo()


def make_model(case, depth=0, **how):
    pixel_decoder, usual = CASES[case]
    config = mask2former.get_config("dataset=sign_scenes,backbone=resnet_demo")
    sizes = {"strides": (1, 2), "dilations": (1, 1), "depths": (1, 1)}
    others = {"contract_dilation": False, "freeze_norms": True, "stem": "plain"}
    use_tiny_backbone(config, "resnet", **sizes, **others, scan=True, **how)
    use_tiny_decoder(config, case, depth=depth or usual)
    use_tiny_pixel_decoder(config, pixel_decoder)
    with config.unlocked():
        config.model.pixel_decoder.depth = 2
        config.model.multilabel_head.update(embed_dim=16, num_heads=2, dropout_rate=0.0)
    return config


def run(case, mesh_shape, dtype="float32", **how):
    """Loss and gradients of all predictions, and the compiled program."""
    config = make_model(case, **how)
    config.model.dtype = dtype
    model = FunctionalModel.build(config, NUM_CLASSES)
    devices = jax.devices()[: np.prod(mesh_shape)]
    axes = (AxisType.Auto,) * 2
    mesh = jax.make_mesh(mesh_shape, AXES, axis_types=axes, devices=devices)

    def loss(parameters, images):
        select = functools.partial(select_top_k, k=4)
        output = model.bind(parameters)(images, select, rng=jax.random.key(0))
        found = output.regions
        total = jnp.mean(jnp.sin(output.class_logits))
        total += jnp.mean(jnp.sin(output.label_scores))
        for i in range(found.num_predictions):
            total += jnp.mean(jnp.sin(found.mask_logits(i)))
        return total

    state = {path: state_sharding(mesh, x) for path, x in model.shapes.items()}
    step = jax.jit(
        on_mesh(mesh, jax.value_and_grad(loss)),
        in_shardings=(state, batch_sharding(mesh)),
        out_shardings=(None, state),
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, *SIZE, 3)).astype(np.float32)
    arguments = random_parameters(model), images
    compiled = step.lower(*arguments).compile()
    value, grads = jax.device_get(compiled(*arguments))
    return value, grads, read_program(compiled.as_text(), [0] * mesh.size)


@pytest.mark.parametrize("case", CASES)
def test_meshes(case):
    """Layers made again besides; only weights travel, and no activations."""
    value, grads, _ = run(case, (1, 1))
    others = run(case, (2, 4), remat="full")
    np.testing.assert_allclose(others[0], value, rtol=1e-5)
    for path, grad in grads.items():
        scale = np.max(np.abs(grad)) + 1e-3
        np.testing.assert_allclose(
            others[1][path] / scale, grad / scale, atol=2e-4, err_msg=path
        )
    assert np.max(np.abs(grads["decoder/query_positions"])) > 1e-6
    # What of one picture is on a grid is larger than every weight.
    largest = max(grad.nbytes for grad in grads.values())
    assert largest < 4 * WIDTH * SIZE[0] // 8 * (SIZE[1] // 8)
    collectives = {each.kind: each for each in others[2].collectives}
    assert set(collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert collectives["all-gather"].largest <= largest


def test_bfloat16():
    value, grads, _ = run("mask2former", (1, 1), "bfloat16", depth=2)
    assert np.isfinite(value)
    for path, grad in grads.items():
        assert np.all(np.isfinite(grad)), path
        assert grad.dtype == np.float32
