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
    down, across = (jnp.arange(size) for size in rows.shape)
    index = number_values(down[:, None], across[None])
    scale = keep_scale(jax.random.bits(rng), index, rate)
    return (rows * scale.astype(x.dtype)).reshape(x.shape)


def number_values(
    rows: Int[Array, "#L #M"], columns: Int[Array, "#L #M"]
) -> UInt[Array, "L M"]:
    """An index for every value of a matrix, or for those in some rows (it may wrap)."""
    return rows.astype(jnp.uint32) * jnp.uint32(columns.size) + columns.astype(
        jnp.uint32
    )


def keep_scale(
    seed: UInt[Array, ""], index: UInt[Array, "*shape"], rate: float
) -> Float[Array, "*shape"]:
    """What the value with each index is multiplied with: 0 (dropped) or 1 / (1 - rate).

    A hash of (seed, index): any part of an array can be made again in the backward pass
    without storing a mask, and it costs a few instructions where a draw of
    ``jax.random`` costs as much as the attention on CPU.
    """
    # Mixed in twice: once alone, the seed would only permute one and the same sequence.
    bits = ((index ^ seed) ^ (index >> 16)) * jnp.uint32(0x21F0AAAD)
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
