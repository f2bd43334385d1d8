"""Dropout of values and of whole residual branches; ``rng=None`` means evaluation."""

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Float, Int, PRNGKeyArray, UInt


def dropout(
    x: Float[Array, "*shape"], rate: float, rng: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes values at ``rate`` and scales the rest by 1 / (1 - rate)."""
    if rng is None or rate == 0.0:
        return x
    rows = x.reshape(-1, x.shape[-1])
    seed = jax.random.bits(rng)
    scale = keep_scale(seed, jnp.arange(rows.shape[0]), rows.shape[1], rate)
    return (rows * scale.astype(x.dtype)).reshape(x.shape)


def keep_scale(
    seed: UInt[Array, ""], rows: Int[Array, "rows"], num_columns: int, rate: float
) -> Float[Array, "rows columns"]:
    """What each value is multiplied with: 0 (dropped) or 1 / (1 - rate).

    A hash of (seed, row, column): any block of rows can be made again in the backward
    pass without storing a mask, and it costs a few instructions where a draw of
    ``jax.random`` costs as much as the attention on CPU.
    """
    columns = jnp.arange(num_columns, dtype=jnp.uint32)[None]
    bits = rows.astype(jnp.uint32)[:, None] * jnp.uint32(num_columns) + columns
    # Mixed in twice: once alone, the seed would only permute one and the same sequence.
    bits = ((bits ^ seed) ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
    bits = ((bits + seed) ^ (bits >> 15)) * jnp.uint32(0xD35A2D97)
    bits = bits ^ (bits >> 15)
    kept = bits >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, 1.0 / (1.0 - rate), 0.0)


def drop_path(
    branch: Float[Array, "B *rest"],
    rate: float | Float[Array, ""],
    rng: PRNGKeyArray | None,
) -> Float[Array, "B *rest"]:
    """Drops a residual branch per example; kept ones are scaled by 1 / (1 - rate)."""
    if rng is None or (isinstance(rate, float) and rate == 0.0):
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(rng, 1.0 - rate, shape)
    return branch * (kept / (1.0 - rate)).astype(branch.dtype)


def channel_dropout(
    grid: Float[Array, "B h w D"], rate: float, rng: PRNGKeyArray | None
) -> Float[Array, "B h w D"]:
    """Zeroes whole channels of an example at ``rate``; scales the rest."""
    if rng is None or rate == 0.0:
        return grid
    kept = jax.random.bernoulli(rng, 1.0 - rate, (grid.shape[0], 1, 1, grid.shape[3]))
    return grid * (kept / (1.0 - rate)).astype(grid.dtype)
