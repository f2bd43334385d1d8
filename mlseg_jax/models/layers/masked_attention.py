"""Attention of few queries, each of which looks at keys of its own.

Scores exist for one block of keys at a time, in the backward pass too, where they are
made again: so a picture may have any number of cells.
"""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.distributed.sharding import on_each_device
from mlseg_jax.models.layers.attention import MASKED
from mlseg_jax.typing import Array, Bool, Float

_BLOCK_SCORES = 2**22
"""Scores of an example that exist at a time."""


def masked_attention(
    query: Float[Array, "B N heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
    mask: Bool[Array, "B N M"],
) -> Float[Array, "B N heads d"]:
    """Scaled dot-product attention; a query gives keys where its row is False no
    weight.

    A row that is False throughout gives the mean of some keys: see to it that there is
    none.
    """
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    size = max(256, _BLOCK_SCORES // (query.shape[1] * query.shape[2]))
    return on_each_device(functools.partial(_attend, size))(scaled, key, value, mask)


def _attend(size: int, query: Array, key: Array, value: Array, mask: Array) -> Array:
    batch, num_queries, heads, dim = query.shape
    step = jax.checkpoint(functools.partial(_add_block, query))
    sums = (
        jnp.full((batch, heads, num_queries, 1), MASKED, jnp.float32),
        jnp.zeros((batch, heads, num_queries, 1), jnp.float32),
        jnp.zeros((batch, heads, num_queries, dim), jnp.float32),
    )
    num_keys = key.shape[1]
    if num_keys <= size:
        sums = step(sums, (key, value, mask))
    else:
        num_blocks = -(-num_keys // size)
        missing = num_blocks * size - num_keys

        def blocks(x: Array, axis: int) -> Array:
            padding = [(0, missing if i == axis else 0) for i in range(x.ndim)]
            shape = (*x.shape[:axis], num_blocks, size, *x.shape[axis + 1 :])
            return jnp.moveaxis(jnp.pad(x, padding).reshape(shape), axis, 0)

        parts = (blocks(key, 1), blocks(value, 1), blocks(mask, 2))
        sums, _ = jax.lax.scan(lambda sums, part: (step(sums, part), None), sums, parts)
    _, total, weighted = sums
    return (weighted / total).transpose(0, 2, 1, 3).astype(value.dtype)


def _add_block(query: Array, sums: tuple, part: tuple) -> tuple:
    """Softmax over one block of keys more: largest score, total, weighted values."""
    top, total, weighted = sums
    key, value, mask = part
    scores = jnp.einsum(
        "bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, None], scores, MASKED)
    # The result does not depend on it, and so has no gradient through it.
    new_top = jax.lax.stop_gradient(
        jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    )
    # Blocks without any key of a row weigh nothing once there is one with some.
    weights = jnp.exp(scores - new_top)
    shrink = jnp.exp(top - new_top)
    values = jnp.einsum(
        "bhnm,bmhd->bhnd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    return new_top, total, weighted * shrink + values
