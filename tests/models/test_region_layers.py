"""What pixel decoders and object queries are made of, against slow NumPy versions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.bilinear_samples import weighted_samples
from mlseg_jax.models.layers.conv import nearest_like
from mlseg_jax.models.layers.deformable_attention import (
    DeformableAttention,
    Grids,
    first_offsets,
)
from mlseg_jax.models.layers.group_norm import GroupNorm
from mlseg_jax.models.layers.masked_attention import _attend, masked_attention
from mlseg_jax.models.layers.position_embedding import map_positions, sine_positions
from mlseg_jax.models.layers.pyramid import SimplePyramid

pytestmark = pytest.mark.usefixtures("quick_compiles")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------ bilinear samples


def sample(grid, x, y):
    """One place of a map [h w d]: corners outside are zero."""
    height, width, dim = grid.shape
    left, top = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(dim)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                total += share * grid[row, column]
    return total


def slow_samples(values, points, weights):
    """``weighted_samples`` in float64, place by place."""
    batch, tokens, heads, count = weights.shape
    out = np.zeros((batch, tokens, heads, values.shape[-1]))
    for b, token, head, p in np.ndindex(batch, tokens, heads, count):
        place = sample(values[b, :, :, head], *points[b, token, head, p])
        out[b, token, head] += weights[b, token, head, p] * place
    return out


@pytest.mark.parametrize("batch, height, width", [(1, 1, 1), (3, 4, 7)])
def test_samples_and_their_gradients(batch, height, width):
    """Places inside, on the border, beyond it and far away."""
    rng = np.random.default_rng(height)
    values = normal(1, batch, height, width, 2, 3).astype(np.float64)
    points = rng.uniform(-2.0, (width + 1, height + 1), (batch, 5, 2, 3, 2))
    points[:, 0, 0, 0] = 1e9
    points[:, 1, 0, 0] = -1e9
    weights = rng.uniform(size=(batch, 5, 2, 3))
    cotangent = rng.normal(size=(batch, 5, 2, 3))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(values, points, weights):
        out = weighted_samples(values, points, weights)
        return jnp.sum(out * cotangent), out

    arrays = [values, points, weights]
    single = [x.astype(np.float32) for x in arrays]
    (_, out), grads = run(*single)
    arrays = [x.astype(np.float64) for x in single]
    np.testing.assert_allclose(out, slow_samples(*arrays), rtol=1e-5, atol=1e-5)
    # Central differences along random directions; linear between cells.
    for i, grad in enumerate(grads):
        direction = rng.normal(size=arrays[i].shape)
        if i == 1:
            direction[np.abs(arrays[i]) > 1e6] = 0.0
        step = 1e-7 * direction
        ends = [
            np.sum(cotangent * slow_samples(*arrays[:i], arrays[i] + sign * step,
                                            *arrays[i + 1 :]))
            for sign in (1.0, -1.0)
        ]  # fmt: skip
        expected = (ends[0] - ends[1]) / 2e-7
        found = np.sum(np.asarray(grad, np.float64) * direction)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    assert not np.any(np.asarray(grads[1])[:, :2, 0, 0])


def test_published_samples():
    """masks.md 1.3: shares of the map's width and height."""
    values = np.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    shares = [(0, 0), (0.5, 0.5), (1, 1), (1 / 6, 1 / 4), (0.9, 0.1)]
    points = np.asarray(shares, np.float32) * (3, 2) - 0.5
    out = weighted_samples(
        jnp.asarray(values[None, :, :, None, None]),
        jnp.asarray(points[None, :, None, None], jnp.float32),
        jnp.ones((1, 5, 1, 1)),
    )
    np.testing.assert_allclose(out.ravel(), [0.25, 3.5, 1.5, 1.0, 1.68], rtol=1e-5)


# -------------------------------------------------------------- deformable attention


def slow_attention(weights, queries, tokens, shapes, heads, count):
    """masks.md 1.3 for one picture."""

    def linear(name, x):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    levels, length = len(shapes), len(tokens)
    value = linear("value", tokens).reshape(length, heads, -1)
    offsets = linear("sampling_offsets", queries)
    offsets = offsets.reshape(length, heads, levels, count, 2)
    logits = linear("attention_weights", queries).reshape(length, heads, -1)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    shares = shares.reshape(length, heads, levels, count)
    middles = np.concatenate(
        [
            [((x + 0.5) / w, (y + 0.5) / h) for y in range(h) for x in range(w)]
            for h, w in shapes
        ]
    )
    out, start = np.zeros(value.shape), 0
    for level, (h, w) in enumerate(shapes):
        grid = value[start : start + h * w].reshape(h, w, heads, -1)
        start += h * w
        for token, head, p in np.ndindex(length, heads, count):
            place = middles[token] * (w, h) - 0.5 + offsets[token, head, level, p]
            share = shares[token, head, level, p]
            out[token, head] += share * sample(grid[:, :, head], *place)
    return linear("out", out.reshape(length, -1))


@pytest.mark.parametrize("sizes", [None, [(2, 3), (4, 7)]])
def test_deformable_attention(sizes):
    """On whole maps, and on canvases as if they ended with the picture."""
    heads, points, dim = 2, 3, 8
    canvases = [(2, 3), (4, 7)] if sizes is None else [(3, 4), (5, 9)]
    shapes = [(2, 3), (4, 7)]
    module = DeformableAttention(dim, heads, 2, points, rngs=nnx.Rngs(0))
    state = nnx.state(module, nnx.Param)
    flat = {
        "/".join(map(str, path)): normal(i, *leaf.get_value().shape) * 0.5
        for i, (path, leaf) in enumerate(nnx.to_flat_state(state))
    }
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(jnp.asarray(flat["/".join(map(str, path))]))
    nnx.update(module, state)
    maps = [normal(5 + i, 3, *shape, dim) for i, shape in enumerate(canvases)]
    real = [None, None]
    if sizes is not None:
        real = [jnp.asarray([size] * 3, jnp.int32) for size in sizes]
    features = tuple(
        FeatureMap(jnp.asarray(x), s) for x, s in zip(maps, real, strict=True)
    )
    grids = Grids.of(features)
    tokens = grids.join([each.grid for each in features])
    queries = tokens + 0.5

    found = grids.split(jax.jit(module)(queries, tokens, grids))
    crops = [x[:, :h, :w] for x, (h, w) in zip(maps, shapes, strict=True)]
    for b in range(3):
        alone = np.concatenate([x[b].reshape(-1, dim) for x in crops]).astype(float)
        expected = slow_attention(flat, alone + 0.5, alone, shapes, heads, points)
        expected = np.split(expected, [shapes[0][0] * shapes[0][1]])
        for each, rows, (h, w) in zip(found, expected, shapes, strict=True):
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            close(each.grid[b, :h, :w].reshape(-1, dim), rows)


def test_first_offsets():
    """masks.md 1.4."""
    offsets = first_offsets(8, 3, 4)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for level in range(3):
        np.testing.assert_allclose(offsets[:, level, 0], directions, atol=1e-6)
        np.testing.assert_allclose(offsets[:, level, 3], 4 * offsets[:, level, 0])


# ------------------------------------------------------------------ masked attention


def slow_masked(query, key, value, mask):
    scores = np.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, value)


@pytest.mark.parametrize("batch, size", [(1, 64), (3, 4)])
def test_masked_attention(batch, size):
    """All keys at once, and four at a time; some blocks hide all from a query."""
    query, key, value = (normal(i, batch, n, 2, 3) for i, n in enumerate((4, 11, 11)))
    mask = np.random.default_rng(0).uniform(size=(batch, 4, 11)) < 0.5
    mask[:, 0, :9], mask[:, :, 9] = False, True
    cotangent = normal(7, *query.shape)
    scaled = query * np.float32(3**-0.5)

    def blocks(query, key, value):
        return jnp.sum(_attend(size, query, key, value, jnp.asarray(mask)) * cotangent)

    def plain(query, key, value):
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
        return jnp.sum(jnp.einsum("bhnm,bmhd->bnhd", weights, value) * cotangent)

    out = masked_attention(*map(jnp.asarray, (query, key, value, mask)))
    np.testing.assert_allclose(out, slow_masked(query, key, value, mask), atol=1e-5)
    found, expected = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(scaled, key, value)
        for function in (blocks, plain)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


# ----------------------------------------------------------- group norms, positions


@pytest.mark.parametrize("batch", [1, 3])
def test_group_norm(batch):
    """Of whole maps and of parts of canvases; with little variance about a large
    mean.
    """
    grid = normal(0, batch, 3, 5, 6) + 1000.0
    norm = GroupNorm(6, 3)
    norm.scale[...], norm.bias[...] = (
        jnp.asarray(normal(1, 6)),
        jnp.asarray(normal(2, 6)),
    )

    def expected(grid):
        groups = grid.astype(np.float64).reshape(len(grid), -1, 3, 2)
        mean = groups.mean((1, 3), keepdims=True)
        groups = (groups - mean) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
        scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
        return groups.reshape(grid.shape) * scale + bias

    run = jax.jit(norm)
    whole = run(FeatureMap(jnp.asarray(grid))).grid
    np.testing.assert_allclose(whole, expected(grid), rtol=1e-3, atol=1e-3)
    sizes = jnp.asarray([(2, 4)] * batch, jnp.int32)
    part = run(FeatureMap(jnp.asarray(grid), sizes)).grid[:, :2, :4]
    np.testing.assert_allclose(part, expected(grid[:, :2, :4]), rtol=1e-3, atol=1e-3)


def test_group_norms_must_divide():
    with pytest.raises(UserError, match="num_groups is 4, which does not divide"):
        GroupNorm(6, 4)


def test_positions():
    """masks.md 1.2's vector, and canvases."""
    first = sine_positions(2, 3, 256)[0]
    np.testing.assert_allclose(
        first[[0, 1, 2, 128, 129]],
        [1e-6, -1.0, 0.408752, 0.866026, -0.499999],
        atol=2e-6,
    )
    features = FeatureMap(jnp.zeros((3, 2, 3, 8)))
    whole = map_positions(features, 8)
    assert whole.shape == (1, 2, 3, 8)
    np.testing.assert_allclose(whole.reshape(6, 8), sine_positions(2, 3, 8), atol=1e-6)
    sizes = jnp.asarray([(2, 3), (1, 2), (2, 1)], jnp.int32)
    found = map_positions(FeatureMap(features.grid, sizes), 8)
    for grid, (rows, columns) in zip(found, np.asarray(sizes), strict=True):
        expected = sine_positions(int(rows), int(columns), 8)
        part = grid[:rows, :columns].reshape(-1, 8)
        np.testing.assert_allclose(part, expected, atol=1e-5)


# ---------------------------------------------------------------------------- resizing


def test_nearest():
    """As PyTorch's: cell floor(i in / out)."""
    grid = jnp.asarray(normal(0, 2, 3, 4, 1))
    like = FeatureMap(jnp.zeros((2, 5, 9, 1)))
    rows, columns = np.arange(5) * 3 // 5, np.arange(9) * 4 // 9
    expected = np.asarray(grid)[:, rows][:, :, columns]
    np.testing.assert_array_equal(nearest_like(FeatureMap(grid), like).grid, expected)
    small = jnp.asarray([(3, 4), (2, 3)], jnp.int32)
    large = jnp.asarray([(5, 9), (4, 5)], jnp.int32)
    found = nearest_like(FeatureMap(grid, small), FeatureMap(like.grid, large)).grid
    np.testing.assert_array_equal(found[0], expected[0])
    rows, columns = np.arange(4) * 2 // 4, np.arange(5) * 3 // 5
    part = np.asarray(grid)[1, rows][:, columns]
    np.testing.assert_array_equal(found[1, :4, :5], part)


def test_simple_pyramid():
    """Four sizes, which a canvas does not change."""
    pyramid = SimplePyramid(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    grid = jnp.asarray(normal(0, 2, 3, 5, 8))
    whole = pyramid(FeatureMap(grid))
    lengths = zip(*map(pyramid.grid_lengths, (3, 5)), strict=True)
    assert [each.grid.shape[1:3] for each in whole] == list(lengths)
    assert [each.grid.shape[3] for each in whole] == list(pyramid.feature_dims)
    canvas = jnp.pad(grid, [(0, 0), (0, 2), (0, 1), (0, 0)], constant_values=9.0)
    sizes = jnp.asarray([(3, 5)] * 2, jnp.int32)
    for each, alone in zip(pyramid(FeatureMap(canvas, sizes)), whole, strict=True):
        rows, columns = alone.grid.shape[1:3]
        np.testing.assert_array_equal(each.grid_size[0], (rows, columns))
        part = each.grid[:, :rows, :columns]
        np.testing.assert_allclose(part, alone.grid, atol=1e-6)
