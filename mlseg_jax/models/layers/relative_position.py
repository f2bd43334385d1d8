"""Attention with a learned bias for each head and each relative position."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.models.layers.attention import MASKED
from mlseg_jax.typing import Array, Float, Int


def relative_position_bias(
    table: Float[Array, "entries heads"], height: int, width: int
) -> Float[Array, "heads L L"]:
    """Bias of each (query, key) pair of a grid, from one for each of the (2 height - 1)
    x (2 width - 1) differences of positions.

    The entry for a query at (y, x) and a key at (v, u) is that of row y - v + height -
    1 and column x - u + width - 1. Made by skewing alone: a gather of L x L entries
    would have a scatter as its gradient.
    """
    rows = _differences(table.reshape(2 * height - 1, 2 * width - 1, -1))
    both = _differences(rows.transpose(2, 0, 1, 3))
    # Query column, key column, query row, key row, head.
    bias = both.transpose(4, 2, 0, 3, 1)
    return bias.reshape(-1, height * width, height * width)


def _differences(x: Array) -> Array:
    """``[2n-1 ...]`` to ``[n n ...]``: at (i, j) stands the entry i - j + n - 1."""
    size = (x.shape[0] + 1) // 2
    x = jnp.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1))
    # Rows of 2n entries read as rows of 2n - 1: each starts one entry later.
    rest = x.shape[1:]
    x = jnp.broadcast_to(x[None], (size, *x.shape)).reshape(-1, *rest)
    x = x[: size * (2 * size - 1)].reshape(size, 2 * size - 1, *rest)
    return x[:, size - 1 :].swapaxes(0, 1)


def biased_attention(
    query: Float[Array, "B W L heads d"],
    key: Float[Array, "B W L heads d"],
    value: Float[Array, "B W L heads d"],
    table: Float[Array, "entries heads"],
    make_bias: Callable[[Array], Array],
    groups: Int[Array | np.ndarray, "#B #W L"] | None = None,
) -> Float[Array, "B W L heads d"]:
    """Attention inside each of W windows; tokens see those of their own group.

    ``make_bias`` makes of the table what is added to the scores, ``[heads L L]``. Both
    exist for all windows at once, but not longer than here: the backward pass makes
    them again.
    """

    @jax.checkpoint
    def attend(query, key, value, table, groups):
        scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        scores = jnp.einsum(
            "bwqhd,bwkhd->bwhqk", scaled, key, preferred_element_type=jnp.float32
        )
        scores = scores + make_bias(table)[None, None]
        if groups is not None:
            same = groups[..., :, None] == groups[..., None, :]
            scores = jnp.where(same[:, :, None], scores, MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value)

    return attend(query, key, value, table, groups)
