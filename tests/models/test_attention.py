"""Attention against the plain softmax, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layers import assert_close, normal

from mlseg_jax.models.layers import attention as attention_module
from mlseg_jax.models.layers.attention import attention, attention_with_own

pytestmark = pytest.mark.usefixtures("quick_compiles")


def plain_attention(query, key, value, key_mask=None):
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key) * query.shape[-1] ** -0.5
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -jnp.inf)
    return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), value)


def value_and_grads(function, inputs, weights):
    return jax.jit(
        jax.value_and_grad(
            lambda *x: (lambda y: (jnp.sum(y * weights), y))(function(*x)),
            argnums=tuple(range(len(inputs))),
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


def plain_with_own(query, key, value, own_key, own_value, key_mask=None):
    """One softmax over the shared keys and the query's own."""
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key) * scale
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, -jnp.inf)
    own = jnp.einsum("blhd,blhd->bhl", query, own_key)[..., None] * scale
    weights = jax.nn.softmax(jnp.concatenate([scores, own], axis=-1))
    shared = jnp.einsum("bhlm,bmhd->blhd", weights[..., :-1], value)
    return shared + weights[..., -1].transpose(0, 2, 1)[..., None] * own_value


@pytest.mark.parametrize(
    "batch, queries, keys, masked, block",
    [(1, 9, 5, False, 2048), (3, 7, 3, True, 4)],
)
def test_attention_with_a_key_of_its_own(
    monkeypatch, batch, queries, keys, masked, block
):
    monkeypatch.setattr(attention_module, "_QUERY_BLOCK", block)
    lengths = (queries, keys, keys, queries, queries)
    inputs = [2 * normal(i, batch, n, 2, 4) for i, n in enumerate(lengths)]
    mask = None
    if masked:  # in one example no shared key is left
        mask = jnp.arange(keys)[None] < jnp.asarray([[2], [keys], [0]])
    weights = normal(9, batch, queries, 2, 4)
    ours, plain = (
        value_and_grads(functools.partial(f, key_mask=mask), inputs, weights)
        for f in (attention_with_own, plain_with_own)
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
