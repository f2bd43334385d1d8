"""Layers against plain versions, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.layers import attention as attention_module
from mlseg_jax.models.layers import resize
from mlseg_jax.models.layers.attention import attention
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


# -------------------------------------------------------------------------- attention


def plain_attention(query, key, value, key_mask=None):
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key) * query.shape[-1] ** -0.5
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -jnp.inf)
    return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), value)


def value_and_grads(function, inputs, weights):
    return jax.jit(
        jax.value_and_grad(
            lambda *x: (lambda y: (jnp.sum(y * weights), y))(function(*x)),
            argnums=(0, 1, 2),
            has_aux=True,
        )
    )(*inputs)


@pytest.mark.parametrize(
    "batch, queries, keys, masked, block",
    [
        (1, 7, 7, False, 2048),
        (3, 13, 5, True, 2048),
        (1, 13, 11, True, 4),  # query blocks of 4, the last one padded
        (3, 8, 8, False, 4),
    ],
)
def test_attention(monkeypatch, batch, queries, keys, masked, block):
    monkeypatch.setattr(attention_module, "_QUERY_BLOCK", block)
    heads, width = 2, 4
    inputs = (
        3 * normal(0, batch, queries, heads, width),
        3 * normal(1, batch, keys, heads, width),
        normal(2, batch, keys, heads, width),
    )
    mask = None
    if masked:
        mask = jnp.arange(keys)[None] < jnp.asarray([[2], [keys], [1]])[:batch]
    weights = normal(3, batch, queries, heads, width)
    ours, plain = (
        value_and_grads(functools.partial(f, key_mask=mask), inputs, weights)
        for f in (attention, plain_attention)
    )
    assert_close(ours, plain, 3e-5)


def test_attention_in_small_groups_of_heads(monkeypatch):
    monkeypatch.setattr(attention_module, "_SCORE_BYTES", 1)
    inputs = [normal(i, 3, 5, 2, 4) for i in range(3)]
    assert_close(attention(*inputs), plain_attention(*inputs))


def test_attention_with_every_key_masked_is_finite():
    inputs = [normal(i, 1, 3, 1, 4) for i in range(3)]
    mask = jnp.zeros((1, 3), bool)
    result = value_and_grads(
        functools.partial(attention, key_mask=mask), inputs, jnp.ones(())
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result))


def test_attention_in_bfloat16():
    inputs = [normal(i, 2, 9, 2, 8).astype(jnp.bfloat16) for i in range(3)]
    out = attention(*inputs)
    assert out.dtype == jnp.bfloat16
    expected = plain_attention(*(x.astype(jnp.float32) for x in inputs))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)


def test_attention_dropout_keeps_the_mean():
    """Values of one: each output is the sum of the kept weights."""
    query, key = normal(0, 4, 200, 4, 8), normal(1, 4, 100, 4, 8)
    out = attention(
        query,
        key,
        jnp.ones((4, 100, 4, 8)),
        dropout_rate=0.3,
        rng=jax.random.key(0),
    )
    sums = np.asarray(out[..., 0])
    assert abs(sums.mean() - 1.0) < 0.01
    assert sums.std() > 0.02
    # No head, example or row repeats the mask of another.
    uniform = attention(
        jnp.zeros((4, 50, 4, 8)),
        jnp.zeros((4, 8, 4, 8)),
        jnp.tile(jnp.eye(8)[None, :, None], (4, 1, 4, 1)),
        dropout_rate=0.5,
        rng=jax.random.key(1),
    )
    kept = np.asarray(uniform) > 0
    assert abs(kept.mean() - 0.5) < 0.03
    masks = {kept[b, :, h].tobytes() for b in range(4) for h in range(4)}
    assert len(masks) == 16
    rows = {kept[0, i, 0].tobytes() for i in range(50)}
    assert len(rows) > 25


@pytest.mark.parametrize("block", [2048, 4])
def test_attention_dropout_is_the_same_in_the_backward_pass(monkeypatch, block):
    monkeypatch.setattr(attention_module, "_QUERY_BLOCK", block)
    inputs = [normal(i, 2, 7, 2, 3) for i in range(3)]
    weights = normal(5, 2, 7, 2, 3)

    @jax.jit
    def loss(*inputs):
        out = attention(*inputs, dropout_rate=0.4, rng=jax.random.key(3))
        return jnp.sum(out * weights)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)
    step = 1e-2
    for i, grad in enumerate(grads):
        direction = normal(10 + i, *grad.shape)
        ends = [
            loss(*inputs[:i], inputs[i] + sign * step * direction, *inputs[i + 1 :])
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(jnp.sum(grad * direction), slope, rtol=5e-3)


def test_attention_without_dropout_ignores_the_rng():
    inputs = [normal(i, 1, 5, 1, 4) for i in range(3)]
    rng = jax.random.key(0)
    np.testing.assert_array_equal(attention(*inputs), attention(*inputs, rng=rng))


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
    with pytest.raises(UserError, match=", ".join(REMAT_POLICIES)):
        make_stack(remat="some")


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
