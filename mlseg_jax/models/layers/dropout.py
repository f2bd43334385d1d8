"""Dropout of values and of whole residual branches; ``rng=None`` means evaluation."""

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Float, PRNGKeyArray


def dropout(
    x: Float[Array, "*shape"], rate: float, rng: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes values at ``rate`` and scales the rest by 1 / (1 - rate)."""
    if rng is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0)


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
