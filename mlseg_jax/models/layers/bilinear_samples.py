"""Bilinear samples of maps at learned places: a gather with a gradient of its own.

The map is first packed, so that a row of the table holds a cell with its neighbours to
the right and below, and one gather finds all four corners of a sample. The gradient
gathers them again and adds its own to a table of the same kind. Only the table of a few
heads exists at a time, and of the samples one for each query.
"""

import jax
import jax.numpy as jnp

from mlseg_jax.distributed.sharding import by_platform, on_each_device
from mlseg_jax.typing import Array, Float

_TABLE_BYTES = 2**28
"""Tables and rows that exist at a time on accelerators."""


def weighted_samples(
    values: Float[Array, "B h w heads d"],
    points: Float[Array, "B L heads P 2"],
    weights: Float[Array, "B L heads P"],
) -> Float[Array, "B L heads d"]:
    """The weighted sum of P samples for every token and head, in float32.

    Points are (x, y) in cells: (0, 0) is the middle of the first one. Of the four
    corners of a sample those outside the map are zero.
    """

    def heads_first(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, axis, 1)
        return x.reshape(-1, *x.shape[2:])

    def run(values: Array, points: Array, weights: Array) -> Array:
        batch, tokens, heads = points.shape[:3]
        out = _sample(
            heads_first(values, 3),
            heads_first(points.astype(jnp.float32), 2),
            heads_first(weights.astype(jnp.float32), 2),
        )
        return out.reshape(batch, heads, tokens, -1).swapaxes(1, 2)

    return on_each_device(run)(values, points, weights)


@jax.custom_vjp
def _sample(values: Array, points: Array, weights: Array) -> Array:
    """``[n h w d], [n L P 2], [n L P]`` to ``[n L d]``, n being (example, head)."""
    return _over_heads(_forward_head, values, points)(values, points, weights)


def _forward(values, points, weights):
    return _sample(values, points, weights), (values, points, weights)


def _backward(residuals, grad):
    values, points, _ = residuals
    return _over_heads(_backward_head, values, points)(*residuals, grad)


_sample.defvjp(_forward, _backward)


def _over_heads(function, values: Array, points: Array):
    _, height, width, dim = values.shape
    rows = max((height + 1) * (width + 1), points.shape[1])
    group = max(1, _TABLE_BYTES // (rows * 4 * dim * 4))

    def on_cpu(*args):
        return jax.lax.map(lambda args: function(*args), args)

    def elsewhere(*args):
        return jax.lax.map(lambda args: function(*args), args, batch_size=group)

    # How many there are may not be known yet.
    return by_platform(cpu=on_cpu, default=elsewhere, anywhere=jax.vmap(function))


def _pack(values: Array) -> Array:
    """``[h w d]`` to ``[(h+1)(w+1) 4 d]``: 2 x 2 cells each, beyond a border of 0."""
    height, width, dim = values.shape
    padded = jnp.pad(values, [(1, 1), (1, 1), (0, 0)])
    corners = [
        padded[i : i + height + 1, j : j + width + 1] for i in (0, 1) for j in (0, 1)
    ]
    return jnp.stack(corners, axis=2).reshape(-1, 4, dim)


def _locate(point: Array, height: int, width: int):
    """Of points ``[L 2]``: rows of the table; which lie on it; how far right of and
    below the upper left corner. Only the rows are clipped, never the distances.
    """
    corner = jnp.floor(point)
    right, below = jnp.split(point - corner, 2, axis=1)
    column, row = corner[:, 0], corner[:, 1]
    inside = (column >= -1) & (column < width) & (row >= -1) & (row < height)
    row = jnp.clip(row, -1, height - 1).astype(jnp.int32) + 1
    column = jnp.clip(column, -1, width - 1).astype(jnp.int32) + 1
    return row * (width + 1) + column, inside[:, None], right, below


def _shares(inside: Array, right: Array, below: Array) -> Array:
    """``[L 4]``: of the upper and lower, in each the left and right corner."""
    left, above = 1.0 - right, 1.0 - below
    corners = [above * left, above * right, below * left, below * right]
    return jnp.where(inside, jnp.concatenate(corners, axis=1), 0.0)


def _forward_head(values, points, weights):
    height, width, dim = values.shape
    table = _pack(values)

    # One point after the other: the gathered rows need not be kept.
    def add(out, place):
        point, weight = place
        rows, *corner = _locate(point, height, width)
        shares = _shares(*corner) * weight[:, None]
        corners = table.at[rows].get(mode="promise_in_bounds").astype(jnp.float32)
        # As a sum over the axis XLA is slow at it on CPU.
        for corner in range(4):
            out = out + corners[:, corner] * shares[:, corner, None]
        return out, None

    zeros = jnp.zeros((points.shape[0], dim), jnp.float32)
    return jax.lax.scan(add, zeros, (points.swapaxes(0, 1), weights.T))[0]


def _backward_head(values, points, weights, grad):
    height, width, _ = values.shape
    table, unpack = jax.vjp(_pack, values.astype(jnp.float32))

    def add(table_grad, place):
        point, weight = place
        weight = weight[:, None]
        rows, inside, right, below = _locate(point, height, width)
        shares = _shares(inside, right, below)
        corners = table.at[rows].get(mode="promise_in_bounds")
        products = jnp.sum(corners * grad[:, None], axis=2)
        upper_left, upper_right, lower_left, lower_right = jnp.split(products, 4, 1)
        upper, lower = upper_right - upper_left, lower_right - lower_left
        left, far = lower_left - upper_left, lower_right - upper_right
        along = [upper + below * (lower - upper), left + right * (far - left)]
        along = jnp.where(inside, jnp.concatenate(along, axis=1) * weight, 0.0)
        table_grad = table_grad.at[rows].add(
            (shares * weight)[:, :, None] * grad[:, None], mode="promise_in_bounds"
        )
        return table_grad, (along, jnp.sum(products * shares, axis=1))

    table_grad, (point_grads, weight_grads) = jax.lax.scan(
        add, jnp.zeros_like(table), (points.swapaxes(0, 1), weights.T)
    )
    (value_grad,) = unpack(table_grad)
    return value_grad.astype(values.dtype), point_grads.swapaxes(0, 1), weight_grads.T
