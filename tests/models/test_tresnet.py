"""TResNet: sizes, the blur, canvases, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import query2label
from mlseg_jax.models.backbones.tresnet import TResNet, _halve
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.resize import blur_matrix, pair_matrix

# timm's tresnet_l and tresnet_v2_l without their classifiers of 1,000 classes.
SIZES = [
    ("tresnet_l", 2432, 55_989_256 - 2_433_000),
    ("tresnet_l_v2", 2048, 46_174_824 - 2_049_000),
]


@pytest.mark.parametrize("name, width, count", SIZES)
def test_number_of_parameters(name, width, count):
    config = query2label.get_config(f"backbone={name}")
    learned = FunctionalModel.build(config, 7).learned
    sizes = {path: np.prod(x.shape) for path, x in learned.items()}
    assert sum(n for path, n in sizes.items() if path.startswith("backbone/")) == count
    assert learned["class_embeddings"].shape == (7, width)


@pytest.mark.parametrize("length", [2, 5, 8])
def test_blur_and_pairs_of_odd_and_even_lengths(length):
    values = np.random.default_rng(length).standard_normal(length)
    padded = np.pad(values, 1, mode="reflect")
    expected = [padded[i : i + 3] @ [0.25, 0.5, 0.25] for i in range(0, length, 2)]
    np.testing.assert_allclose(blur_matrix(length) @ values, expected, atol=1e-6)
    pairs = [values[i : i + 2].mean() for i in range(0, length, 2)]
    np.testing.assert_allclose(pair_matrix(length) @ values, pairs, atol=1e-6)
    # On a canvas that is longer than what is real.
    canvas = jnp.asarray(np.r_[values, np.full(3, 1e3)], jnp.float32)
    grid = FeatureMap(
        canvas[None, :, None, None].repeat(2, axis=2), jnp.asarray([[length, 2]])
    )
    for matrix, wanted in ((blur_matrix, expected), (pair_matrix, pairs)):
        found = _halve(grid, matrix)
        assert found.grid_size.tolist() == [[len(wanted), 1]]
        np.testing.assert_allclose(
            found.grid[0, : len(wanted), 0, 0], wanted, atol=1e-5
        )


def test_features_do_not_depend_on_the_canvas(quick_compiles):
    from flax import nnx

    model = TResNet(
        embed_dim=4,
        depths=(1, 2, 1, 1),
        bottlenecks=(False, False, True, True),
        remat="full",
        rngs=nnx.Rngs(0),
    )
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == "scale":
            leaf[...] = jnp.ones_like(leaf[...])
    images = jax.random.normal(jax.random.key(1), (2, 40, 56, 3))
    run = nnx.jit(lambda model, *args: model(*args))
    alone = run(model, images[:, :36, :44])
    canvas = run(model, images, jnp.asarray([[36, 44], [40, 56]]))
    assert model.feature_dims == (4, 8, 64, 128)
    for i, (small, large) in enumerate(zip(alone, canvas, strict=True)):
        height, width = model.grid_lengths(36)[i], model.grid_lengths(44)[i]
        assert small.grid.shape[1:3] == (height, width)
        assert large.grid_size.tolist()[0] == [height, width]
        np.testing.assert_allclose(
            large.grid[0, :height, :width], small.grid[0], atol=1e-4
        )
    before = model.stem.norm.mean[...]
    run(model, images, None, jax.random.key(2))
    assert not np.allclose(before, model.stem.norm.mean[...])
    assert not np.allclose(model.stages[3].blocks[0].conv2.norm.var[...], 1.0)
