"""Convolutions, pooling and batch norms against plain versions; canvases; devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from mlseg_jax.distributed.sharding import AXES, batch_sharding, on_mesh
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import (
    Conv,
    ConvUnit,
    average_pool,
    depthwise,
    max_pool,
)
from mlseg_jax.models.layers.dropout import channel_dropout
from mlseg_jax.models.layers.norm import BatchNorm

pytestmark = pytest.mark.usefixtures("quick_compiles")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------- convolutions


def plain_conv(x, kernel, stride, dilation, padding, groups):
    """One output cell after the other, in float64."""
    window, _, _, features = kernel.shape
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    reach = dilation * (window - 1)
    rows, columns = ((side - reach - 1) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, features))
    share = features // groups
    inputs = x.reshape(*x.shape[:3], groups, -1).astype(np.float64)
    for y in range(rows):
        for z in range(columns):
            top, left = y * stride, z * stride
            patch = inputs[
                :, top : top + reach + 1 : dilation, left : left + reach + 1 : dilation
            ]
            for g in range(groups):
                part = slice(g * share, (g + 1) * share)
                out[:, y, z, part] = np.tensordot(
                    patch[:, :, :, g], kernel[..., part], 3
                )
    return out


CONVS = {
    "3x3": dict(window=3),
    "stride": dict(window=3, stride=2),
    "dilated": dict(window=3, dilation=4),
    "7x7": dict(window=7, stride=2),
    "groups": dict(window=3, groups=3),
    "two of each": dict(window=1, groups=6),
    "depthwise": dict(window=3, groups=12),
    "depthwise, strided": dict(window=3, groups=12, stride=2, padding=0),
    "depthwise, dilated": dict(window=5, groups=12, dilation=2),
    "scaled": dict(window=1, groups=12, stride=2),
    "1x1": dict(window=1, stride=2),
    "valid": dict(window=2, stride=2, padding=0),
}


def make_conv(use_bias=True, **settings):
    inputs = max(6, settings.get("groups", 0))
    conv = Conv(inputs, 12, use_bias=use_bias, rngs=nnx.Rngs(0), **settings)
    if use_bias:
        conv.bias[...] = jnp.asarray(normal(1, 12))
    return conv


@pytest.mark.parametrize("case", CONVS)
def test_convolutions_on_pictures_and_on_canvases(case):
    conv = make_conv(**CONVS[case])
    size = np.asarray([[9, 12], [8, 5], [1, 1]], np.int32)
    canvas = 100 * normal(2, 3, 12, 14, max(6, conv.groups))
    outs = jax.jit(lambda x, n: conv(FeatureMap(x, n)))(canvas, size)
    whole = jax.jit(lambda x: conv(FeatureMap(x)))(canvas)
    assert whole.grid_size is None
    settings = (conv.stride, conv.dilation, conv.padding, conv.groups)
    kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
    assert_close(whole.grid, plain_conv(canvas, kernel, *settings) + bias, 1e-4)
    for b, (height, width) in enumerate(size):
        if conv.padding == 0 and min(height, width) < conv.window:
            continue
        picture = canvas[b : b + 1, :height, :width]
        expected = plain_conv(picture, kernel, *settings)[0] + bias
        rows, columns = np.asarray(outs.grid_size)[b]
        assert (rows, columns) == expected.shape[:2]
        assert conv.out_length(int(height)) == rows
        assert_close(outs.grid[b, :rows, :columns], expected, 1e-4)
    # Gradients cannot reach the padding.
    if conv.window > 1:
        energy = lambda x: jnp.sum(  # noqa: E731
            conv(FeatureMap(x, jnp.asarray(size))).grid ** 2
        )
        grad = np.asarray(jax.grad(energy)(canvas))
        assert not np.any(grad[1, 8:]) and not np.any(grad[1, :, 5:])
        assert np.any(grad[1, :8, :5])


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_gradients_of_depthwise_convolutions(stride, dilation):
    """Against those of XLA's own, from an odd map, of every place that counts."""
    grid, kernel = normal(0, 3, 11, 8, 5), normal(1, 3, 3, 1, 5)

    def energy(way, grid, kernel):
        return jnp.sum(jnp.sin(way(grid, kernel)))

    def own(grid, kernel):
        return depthwise(grid, kernel, stride, dilation)

    def grouped(grid, kernel):
        return jax.lax.conv_general_dilated(
            *(grid, kernel, (stride, stride), "VALID"),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    found, expected = (
        jax.jit(jax.grad(functools.partial(energy, way), (0, 1)))(grid, kernel)
        for way in (own, grouped)
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_devices_add_up_gradients_of_depthwise_kernels_once():
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)
    grid = jax.device_put(normal(0, 16, 7, 6, 5), batch_sharding(mesh))
    energy = jax.grad(lambda k, x: jnp.sum(jnp.sin(depthwise(x, k))))
    compiled = jax.jit(on_mesh(mesh, energy)).lower(normal(1, 3, 3, 1, 5), grid)
    text = compiled.compile().as_text()
    # One of all places, and not one a place within a loop.
    assert len(re.findall(r"= f32\[\S+ all-reduce", text)) == 1
    assert re.search(r"= f32\[9,5\]\S* all-reduce|= f32\[3,3,1,5\]\S* all-reduce", text)


def test_convolutions_in_bfloat16():
    x, exact = normal(0, 2, 6, 7, 6), make_conv(window=3)
    rough = make_conv(window=3, dtype=jnp.bfloat16)(FeatureMap(jnp.asarray(x))).grid
    assert rough.dtype == jnp.bfloat16
    difference = rough - exact(FeatureMap(jnp.asarray(x))).grid
    assert 0 < np.std(difference) < 0.02


@pytest.mark.parametrize("padding", [0, 1])
def test_pooling_on_pictures_and_on_canvases(padding):
    size = np.asarray([[9, 12], [8, 5]], np.int32)
    canvas = -5 + normal(2, 2, 12, 14, 3)

    @jax.jit
    def pool(x, n):
        features = FeatureMap(x, n)
        largest = max_pool(features, 3, stride=2, padding=padding)
        return largest, average_pool(features)

    largest, mean = pool(canvas, size)
    assert mean.grid.shape == (2, 1, 1, 3) and mean.grid_size is None
    assert np.all(np.isfinite(largest.grid))
    for b, (height, width) in enumerate(size):
        picture = canvas[b, :height, :width]
        assert_close(mean.grid[b, 0, 0], picture.mean(axis=(0, 1)))
        assert_close(pool(picture[None], None)[1].grid[0, 0, 0], mean.grid[b, 0, 0])
        padded = np.pad(
            picture, [(padding, padding)] * 2 + [(0, 0)], constant_values=-np.inf
        )
        rows, columns = np.asarray(largest.grid_size)[b]
        assert rows == (height + 2 * padding - 3) // 2 + 1
        for y in range(rows):
            for z in range(columns):
                window = padded[2 * y : 2 * y + 3, 2 * z : 2 * z + 3]
                assert_close(largest.grid[b, y, z], window.max(axis=(0, 1)))
        assert not np.any(largest.grid[b, rows:])
        assert_close(
            pool(picture[None], None)[0].grid[0], largest.grid[b, :rows, :columns]
        )


def test_channel_dropout():
    grid = jnp.ones((50, 3, 4, 20))
    dropped = np.asarray(channel_dropout(grid, 0.3, jax.random.key(0)))
    assert channel_dropout(grid, 0.3, None) is grid
    # Whole channels of an example, a third of them.
    assert np.all(dropped == dropped[:, :1, :1])
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.3) < 0.03


# ------------------------------------------------------------------------- batch norm


def plain_norm(x, scale, bias, epsilon=1e-5):
    mean, var = (f(x, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias


def make_norm(features, **settings):
    norm = BatchNorm(features, **settings)
    norm.scale[...] = 1 + 0.3 * jnp.asarray(normal(0, features))
    norm.bias[...] = jnp.asarray(normal(1, features))
    norm.mean[...] = 2 + jnp.asarray(normal(2, features))
    norm.var[...] = 0.5 + jnp.asarray(normal(3, features)) ** 2
    return norm


@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (3, 5, 7, 4)])
def test_batch_norm_in_training(shape):
    norm, x, weights = make_norm(4), 3 + 2 * normal(4, *shape), normal(5, *shape)
    graph, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def call(x, params):
        bound = nnx.merge(graph, params, stats, copy=True)
        out = bound(x, train=True)
        return jnp.sum(out * weights), (out, nnx.state(bound, nnx.BatchStat))

    def plain(x, params):
        scale, bias = params["scale"][...], params["bias"][...]
        out = plain_norm(x, scale.reshape(1, 1, 1, 4), bias.reshape(1, 1, 1, 4))
        return jnp.sum(out * weights), out

    grads, (out, after) = jax.jit(jax.grad(call, (0, 1), has_aux=True))(x, params)
    wanted, expected = jax.grad(plain, (0, 1), has_aux=True)(x, params)
    assert_close(out, expected, 1e-4)
    jax.tree.map(lambda a, b: assert_close(a, b, 2e-4), grads, wanted)
    rows = x.reshape(-1, 4).astype(np.float64)
    mean, var = np.asarray(stats["mean"][...]), np.asarray(stats["var"][...])
    assert_close(after["mean"][...], 0.9 * mean + 0.1 * rows.mean(axis=0))
    # PyTorch normalises by the biased variance, and remembers the unbiased one.
    assert_close(after["var"][...], 0.9 * var + 0.1 * rows.var(axis=0, ddof=1))


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_by_what_it_remembers(frozen):
    norm, x = make_norm(4, frozen=frozen), normal(4, 2, 3, 5, 4)
    out = norm(jnp.asarray(x), train=frozen)
    mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    expected = (x - mean) / np.sqrt(var + 1e-5) * norm.scale[...].reshape(1, 1, 1, 4)
    assert_close(out, expected + norm.bias[...].reshape(1, 1, 1, 4))
    untouched = make_norm(4)
    assert_close(norm.mean[...], untouched.mean[...], 0)
    assert_close(norm.var[...], untouched.var[...], 0)


@pytest.mark.parametrize(
    "shape", [(8, 6, 6, 4), (1, 5, 7, 4), (3, 1, 1, 4), (2, 1, 1, 4)]
)
@pytest.mark.parametrize("offset, remembered", [(0, 30), (3, 0), (1000, 1000.5)])
def test_batch_norm_far_from_zero(shape, offset, remembered):
    """As in double precision, wherever batch and running mean are."""
    norm = BatchNorm(4)
    norm.mean[...] = jnp.full(4, remembered)
    x = offset + normal(4, *shape)
    out = norm(jnp.asarray(x), train=True)
    rows = x.astype(np.float64).reshape(-1, 4)
    mean, var = rows.mean(0), rows.var(0)
    exact = (x.astype(np.float64) - mean) / np.sqrt(var + 1e-5)
    # What a mean of 1,000 alone loses when it is rounded to float32.
    assert_close(out, exact, 1e-6 + 1e-7 * offset / np.sqrt(var.min()))
    assert_close(norm.mean[...], 0.9 * remembered + 0.1 * mean, 2e-6)
    assert_close(norm.var[...], 0.9 + 0.1 * rows.var(0, ddof=1), 2e-6)


def test_batch_norm_of_one_row_and_in_bfloat16():
    norm, x = make_norm(4), 100 + normal(4, 1, 1, 1, 4)
    assert_close(norm(jnp.asarray(x), train=True).ravel(), norm.bias[...], 1e-6)
    rough = BatchNorm(4)(jnp.asarray(normal(0, 4, 4, 4, 4), jnp.bfloat16), train=True)
    assert rough.dtype == jnp.bfloat16


def test_batch_norm_in_evaluation_far_from_zero():
    norm, x = BatchNorm(4), 1000 + 0.01 * normal(4, 2, 3, 5, 4)
    norm.mean[...] = jnp.full(4, 1000.0)
    norm.var[...] = jnp.full(4, 1e-4)
    exact = (x.astype(np.float64) - 1000) / np.sqrt(1e-4 + 1e-5)
    assert_close(norm(jnp.asarray(x), train=False), exact, 1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_batch_statistics_are_those_of_all_devices(shape):
    """Every device holds an example or more; all see the statistics of the eight."""
    unit = ConvUnit(3, 8, 3, rngs=nnx.Rngs(0))
    graph, params, stats = nnx.split(unit, nnx.Param, nnx.BatchStat)
    # Examples unlike each other: statistics of a part would be far off.
    x = normal(0, 8, 6, 7, 3) * (1 + np.arange(8).reshape(8, 1, 1, 1))
    weights = normal(1, 8, 6, 7, 8)

    def run(params, x, weights):
        bound = nnx.merge(graph, params, stats, copy=True)
        out = bound(FeatureMap(x), train=True).grid
        return jnp.sum(out * weights), (out, nnx.state(bound, nnx.BatchStat))

    step = jax.jit(jax.grad(run, has_aux=True))
    expected = step(params, x, weights)
    mesh = jax.make_mesh(
        shape,
        AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: shape[0] * shape[1]],
    )
    split = batch_sharding(mesh)
    on_devices = jax.jit(on_mesh(mesh, jax.grad(run, has_aux=True)))
    for call in (step, on_devices):
        found = call(params, *jax.device_put((x, weights), split))
        assert found[1][0].sharding.is_equivalent_to(split, 4)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), found, expected)


def test_batch_statistics_take_one_collective():
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(1000 + normal(0, 16, 3, 5, 6), batch_sharding(mesh))
    graph, state = nnx.split(BatchNorm(6))

    def run(state, x):
        bound = nnx.merge(graph, state, copy=True)
        return bound(x, train=True), bound.mean[...], bound.var[...]

    compiled = jax.jit(on_mesh(mesh, run)).lower(state, x).compile()
    text = compiled.as_text()
    collectives = re.findall(r"= \S+ (all-\w+|collective-\w+|reduce-scatter)", text)
    assert collectives in (["all-gather"], ["all-gather-start"]), collectives
    rows = np.asarray(x, np.float64).reshape(-1, 6)
    out, mean, var = compiled(state, x)
    exact = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    assert_close(np.asarray(out).reshape(-1, 6), exact, 2e-4)
    assert_close(mean, 0.1 * rows.mean(0), 1e-5)
    assert_close(var, 0.9 + 0.1 * rows.var(0, ddof=1), 2e-6)
