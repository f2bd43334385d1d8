"""Equal layers one by one and as a scan: values, gradients, randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlseg_jax.models.layers.block_stack import run_layers

WIDTH = 4


class Layer(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, shift, rng):
        noise = 0.0 if rng is None else jax.random.normal(rng, x.shape)
        return jnp.tanh(self.linear(x) + shift + noise)


def plain(layers, state, keys):
    x, count = state
    kept = []
    for i, layer in enumerate(layers):
        x = layer(x, float(i % 2), None if keys is None else keys[i])
        count = count + 1
        kept.append((x, x[0]))
    return (x, count), kept


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_one_by_one_scanned_and_made_again(depth):
    """Depth 5 is a scan of two rounds of two layers, and one more layer."""
    layers = nnx.List([Layer(rngs=nnx.Rngs(i)) for i in range(depth)])
    graph, weights = nnx.split(layers)
    state = jnp.asarray(np.random.default_rng(0).normal(size=(3, WIDTH))), jnp.zeros(3)

    def look(layer, place, state, rng):
        x = layer(state[0], float(place), rng)
        return (x, state[1] + 1), (x, x[0])

    def total(run, weights, key):
        state, kept = run(nnx.merge(graph, weights), key)
        parts = [state[0], *(part for keep in kept for part in keep)]
        return sum(jnp.sum(jnp.sin(part)) for part in parts), (state, kept)

    def ours(layers, key, **how):
        return run_layers(layers, look, state, key, period=2, **how)

    def theirs(layers, key):
        keys = None if key is None else jax.random.split(key, depth)
        return plain(layers, state, keys)

    def both(weights, key):
        runs = [theirs] + [
            functools.partial(ours, scan=scan, remat=remat)
            for scan in (False, True)
            for remat in ("none", "full")
        ]
        find = functools.partial(jax.value_and_grad, has_aux=True)
        return [find(functools.partial(total, run))(weights, key) for run in runs]

    for key in (None, jax.random.key(1)):
        expected, *found = jax.jit(both)(weights, key)
        for each in found:
            assert jax.tree.structure(each) == jax.tree.structure(expected)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
                each,
                expected,
            )


def test_no_layers():
    def never(layer, place, state, rng):
        raise AssertionError

    state, kept = run_layers([], never, jnp.ones(2), period=3, scan=True)
    np.testing.assert_array_equal(state, np.ones(2))
    assert kept == []
