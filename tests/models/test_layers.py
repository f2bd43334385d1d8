"""Layers against plain versions, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shrink import segmenter_config

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import check_config
from mlseg_jax.models.layers import resize
from mlseg_jax.models.layers.block_stack import REMAT_POLICIES, BlockStack
from mlseg_jax.models.layers.dropout import drop_path, dropout
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import (
    TransformerBlock,
    join_masks,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")


def normal(seed, *shape):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


# --------------------------------------------------------------------- norm, dropout


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 7), (1, 1, 1)])
def test_layer_norm(shape):
    graph, _ = nnx.split(LayerNorm(shape[-1], epsilon=1e-5))
    scale, bias = normal(0, shape[-1]), normal(1, shape[-1])
    x, weights = 5 * normal(2, *shape) + 3, normal(3, *shape)

    def ours(x, scale, bias):
        state = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        return jnp.sum(nnx.merge(graph, state)(x) * weights)

    def plain(x, scale, bias):
        mean = jnp.mean(x, -1, keepdims=True)
        variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
        row = (1,) * (x.ndim - 1) + (-1,)
        out = (x - mean) / jnp.sqrt(variance + 1e-5) * scale.reshape(row)
        return jnp.sum((out + bias.reshape(row)) * weights)

    values = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(x, scale, bias)
        for f in (ours, plain)
    ]
    assert_close(*values, 3e-5)


def test_layer_norm_in_bfloat16_has_wide_statistics():
    norm = LayerNorm(64, epsilon=1e-6)
    x = (normal(0, 4, 64) + 100).astype(jnp.bfloat16)
    out = norm(x)
    assert out.dtype == jnp.bfloat16
    wide = x.astype(jnp.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), norm(wide), atol=0.02)


def test_dropout_and_drop_path():
    x, rng = jnp.ones((400, 5, 8)), jax.random.key(0)
    for function in (dropout, drop_path):
        np.testing.assert_array_equal(function(x, 0.5, None), x)
        np.testing.assert_array_equal(function(x, 0.0, rng), x)
        dropped = np.asarray(function(x, 0.2, rng))
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1.25)}
        assert abs(dropped.mean() - 1.0) < 0.08
    per_example = dropped.reshape(400, -1)
    np.testing.assert_array_equal(per_example, per_example[:, :1].repeat(40, axis=1))


# ------------------------------------------------------------------------------ resize


def loop_bilinear(out, length, size_out, size_in):
    matrix = np.zeros((out, length))
    for i in range(size_out):
        x = max((i + 0.5) * size_in / size_out - 0.5, 0.0)
        low = min(int(x), size_in - 1)
        matrix[i, low] += 1 - (x - int(x))
        matrix[i, min(low + 1, size_in - 1)] += x - int(x)
    return matrix


def loop_bicubic(out, length, size_out):
    a = -0.75
    matrix = np.zeros((out, length))
    for i in range(size_out):
        x = (i + 0.5) * length / size_out - 0.5
        base = int(np.floor(x))
        for j in range(base - 1, base + 3):
            d = abs(x - j)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(j, 0), length - 1)] += weight
    return matrix


def loop_pool(bins, length, size):
    matrix = np.zeros((bins, length))
    for i in range(bins):
        start, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


SIZES = [(1, 1), (1, 5), (5, 1), (7, 3), (3, 7), (24, 32), (30, 8), (33, 24)]


@pytest.mark.parametrize("out, length", SIZES)
def test_resize_matrices(out, length):
    for found, expected in (
        (resize.bilinear_matrix(out, length), loop_bilinear(out, length, out, length)),
        (resize.bicubic_matrix(out, length), loop_bicubic(out, length, out)),
        (resize.adaptive_pool_matrix(out, length), loop_pool(out, length, length)),
    ):
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=2e-6)


def test_resize_matrices_of_partly_real_lengths():
    """Traced sizes: the real corner is as for that size, no real row sees padding."""

    @jax.jit
    def matrices(size_out, size_in):
        return (
            resize.bilinear_matrix(12, 9, size_out, size_in),
            resize.bicubic_matrix(12, 9, size_out),
            resize.adaptive_pool_matrix(4, 9, size_in),
        )

    for size_out, size_in in [(12, 9), (5, 3), (1, 1), (7, 8), (3, 2)]:
        bilinear, bicubic, pool = matrices(size_out, size_in)
        expected = loop_bilinear(12, 9, size_out, size_in)
        np.testing.assert_allclose(bilinear[:size_out], expected[:size_out], atol=2e-6)
        expected = loop_bicubic(12, 9, size_out)
        np.testing.assert_allclose(bicubic[:size_out], expected[:size_out], atol=2e-6)
        np.testing.assert_allclose(pool, loop_pool(4, 9, size_in), atol=2e-6)


def test_resample():
    grid = normal(0, 2, 3, 4, 5)
    rows, columns = normal(1, 6, 3), normal(2, 7, 4)
    expected = np.einsum("Hh,Ww,bhwd->bHWd", rows, columns, grid)
    assert_close(resize.resample(rows, columns, grid), expected)
    own = resize.resample(
        jnp.stack([rows, 2 * rows]), jnp.stack([columns, columns]), grid
    )
    assert_close(own, expected * np.asarray([1, 2]).reshape(2, 1, 1, 1))


# -------------------------------------------------------------------------- the stack


def make_stack(**options):
    return BlockStack(
        lambda rngs: TransformerBlock(
            8, 2, 16, epsilon=1e-6, dropout_rate=0.2, rngs=rngs
        ),
        2,
        drop_path_rate=0.3,
        rngs=nnx.Rngs(0),
        **options,
    )


def run_stack(weights, rng, **options):
    """The loss and gradient of a stack with the given list of block weights."""
    graph, _ = nnx.split(make_stack(**options))
    tokens, cotangent = normal(0, 2, 5, 8), normal(1, 2, 5, 8)
    mask = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])

    def loss(weights):
        if options.get("scan"):
            blocks = jax.tree.map(lambda *x: jnp.stack(x), *weights)
        else:
            blocks = nnx.State(dict(enumerate(weights)))
        stack = nnx.merge(graph, nnx.State({"blocks": blocks}))
        return jnp.sum(stack(tokens, mask, rng) * cotangent)

    return jax.jit(jax.value_and_grad(loss))(weights)


def test_scan_and_remat_change_nothing():
    """In training: the same dropout in the second forward pass."""
    weights = [
        jax.tree.map(lambda x, i=i: x + 0.2 * normal(i, *x.shape), nnx.state(block))
        for i, block in enumerate(make_stack().blocks)
    ]
    expected = run_stack(weights, jax.random.key(7))
    found = run_stack(weights, jax.random.key(7), scan=True, remat="full")
    assert_close(found, expected, 2e-5)


def test_drop_path_rises_linearly(monkeypatch):
    rates = []

    def record(self, tokens, token_mask=None, drop_path_rate=0.0, rng=None):
        rates.append(drop_path_rate)
        return tokens

    monkeypatch.setattr(TransformerBlock, "__call__", record)
    make_stack()(normal(0, 1, 2, 8), rng=jax.random.key(0))
    np.testing.assert_allclose(rates, [0.0, 0.3], atol=1e-6)


def test_unknown_rematerialisation():
    config = segmenter_config()
    config.model.backbone.remat = "some"
    with pytest.raises(UserError, match=", ".join(REMAT_POLICIES)):
        check_config(config)


def test_join_masks():
    grid = jnp.asarray([[[True, False], [True, False]]])
    classes = jnp.asarray([[True, True, False]])
    join = functools.partial(
        join_masks, patches_shape=(1, 4, 8), classes_shape=(1, 3, 8)
    )
    assert join(None, None) is None
    pixels, labels = [True, False, True, False], [True, True, False]
    for masks, expected in (
        ((grid, None), pixels + [True] * 3),
        ((None, classes), [True] * 4 + labels),
        ((grid, classes), pixels + labels),
    ):
        np.testing.assert_array_equal(join(*masks), [expected])
