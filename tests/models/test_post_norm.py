"""The post-norm transformer of multi-label heads against a plain NumPy version."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlseg_jax.models.layers import long_sequences
from mlseg_jax.models.layers.position_embedding import sine_positions
from mlseg_jax.models.layers.post_norm import PostNormTransformer

D, HEADS = 8, 2
pytestmark = pytest.mark.usefixtures("quick_compiles")


def make(remat="none"):
    model = PostNormTransformer(
        *(D, HEADS, 12),
        num_encoder_layers=1,
        num_decoder_layers=2,
        dropout_rate=0.3,
        remat=remat,
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), state
    )
    return graph, state


def inputs(batch=3, tokens=6, classes=5):
    rng = np.random.default_rng(2)
    shapes = (batch, tokens, D), (tokens, D), (batch, classes, D)
    memory, positions, queries = (rng.normal(size=s).astype(np.float32) for s in shapes)
    return memory, positions, queries, rng.random((batch, tokens)) < 0.7


def plain_norm(norm, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def plain_layer(layer, x, positions, memory, memory_positions, mask):
    """One example, one head and one query at a time."""
    fused = layer.attention.query_key_value
    kernel, bias = (np.asarray(p[...], np.float64) for p in (fused.kernel, fused.bias))
    parts = [(kernel[:, i * D : (i + 1) * D], bias[i * D : (i + 1) * D]) for i in
             range(3)]  # fmt: skip
    query, key, value = (
        tokens @ k + b
        for tokens, (k, b) in zip(
            (x + positions, memory + memory_positions, memory), parts, strict=True
        )
    )
    out = np.zeros_like(query)
    for head in range(HEADS):
        columns = slice(head * D // HEADS, (head + 1) * D // HEADS)
        for q in range(len(query)):
            scores = key[:, columns] @ query[q, columns] / math.sqrt(D // HEADS)
            weights = np.where(mask, np.exp(scores - scores.max()), 0.0)
            out[q, columns] = weights / weights.sum() @ value[:, columns]
    linear = lambda f, x: x @ np.asarray(f.kernel[...]) + np.asarray(f.bias[...])  # noqa: E731
    x = plain_norm(layer.attention_norm, x + linear(layer.attention.out, out))
    hidden = np.maximum(linear(layer.mlp_in, x), 0.0)
    return plain_norm(layer.mlp_norm, x + linear(layer.mlp_out, hidden))


def test_values():
    graph, state = make()
    memory, positions, queries, mask = inputs()
    out = jax.jit(lambda *x: nnx.merge(graph, state)(*x))(
        memory, positions, queries, mask
    )
    model = nnx.merge(graph, state)
    for b in range(3):
        tokens = memory[b].astype(np.float64)
        for layer in model.encoder:
            tokens = plain_layer(layer, tokens, positions, tokens, positions, mask[b])
        x = np.zeros_like(queries[b], np.float64)
        for layer in model.decoder:
            x = plain_layer(layer, x, queries[b], tokens, positions, mask[b])
        np.testing.assert_allclose(
            out[b], plain_norm(model.norm, x), rtol=1e-4, atol=1e-5
        )


def test_queries_of_all_examples_parts_and_rematerialisation_change_nothing(
    monkeypatch,
):
    memory, positions, queries, mask = map(jnp.asarray, inputs())

    def run(remat, queries, rng=None):
        graph, state = make(remat)

        def output(state):
            return nnx.merge(graph, state)(memory, positions, queries, mask, rng)

        if rng is None:
            return jax.jit(output)(state)
        loss = lambda state: jnp.sum(output(state)[:, :4] ** 3)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(state)

    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    shared = jnp.broadcast_to(queries[:1], queries.shape)
    plain = run("none", shared)
    same(run("none", queries[0]), plain)
    monkeypatch.setattr(long_sequences, "LONG_SEQUENCE", 4)
    same(run("none", shared), plain)
    rng = jax.random.key(0)
    (loss, grads), full = run("none", queries[0], rng), run("full", queries[0], rng)
    jax.tree.map(same, (loss, grads), full)
    assert abs(loss - jnp.sum(plain[:, :4] ** 3)) > 0.1


def test_sine_positions():
    table = sine_positions(2, 3, 8).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            y, x = 2 * math.pi * (row + 1) / 2, 2 * math.pi * (column + 1) / 3
            expected = [
                *(math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)),
                *(math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)),
            ]
            np.testing.assert_allclose(table[row, column], expected, atol=1e-5)
