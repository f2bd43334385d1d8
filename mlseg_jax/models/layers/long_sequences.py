"""Token-wise functions of very many tokens, a part at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Float, PRNGKeyArray

LONG_SEQUENCE = 4096
"""Tokens above which work goes in parts, so that wide arrays never exist."""


def is_long(tokens: Float[Array, "*B L D"]) -> bool:
    return tokens.shape[-2] > LONG_SEQUENCE


def over_rows(
    function: Callable[..., Array],
    tokens: Float[Array, "B L D"],
    *others: Float[Array, "B L _"],
    into: Float[Array, "B L D"] | None = None,
) -> Float[Array, "B L D"]:
    """A token-wise function of one or more sequences, in parts where they are long.

    What is made replaces ``tokens``, or what is in ``into``.
    """
    if not is_long(tokens):
        return function(tokens, *others)
    length, size = tokens.shape[1], LONG_SEQUENCE // 4

    def part(start: Array | int, out: Array, size: int) -> Array:
        rows = function(
            *(
                jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
                for x in (out if into is None else tokens, *others)
            )
        )
        return jax.lax.dynamic_update_slice_in_dim(out, rows, start, axis=1)

    num_parts, rest = divmod(length, size)
    out = tokens if into is None else into
    out = jax.lax.fori_loop(0, num_parts, lambda i, x: part(i * size, x, size), out)
    return part(num_parts * size, out, rest) if rest else out


def over_rows_in_training(
    function: Callable[[Array, PRNGKeyArray], Array],
    tokens: Float[Array, "_ L D"],
    rng: PRNGKeyArray,
) -> Float[Array, "B L D"]:
    """As `over_rows`, for training: of long sequences each part keeps its input alone
    and makes what is wide within it again on the way back. ``rng`` is split over parts.
    """
    if not is_long(tokens):
        return function(tokens, rng)
    (count, length, width), size = tokens.shape, LONG_SEQUENCE // 4
    num_parts, rest = divmod(length, size)
    rest_rng, parts_rng = jax.random.split(rng)
    parts = tokens[:, : length - rest].reshape(count, num_parts, size, width)
    each = (parts.swapaxes(0, 1), jax.random.split(parts_rng, num_parts))
    remade = jax.checkpoint(lambda part: function(*part), prevent_cse=False)
    out = jax.lax.map(remade, each).swapaxes(0, 1)
    out = out.reshape(len(out), length - rest, width)
    if not rest:
        return out
    last = jax.checkpoint(function)(tokens[:, length - rest :], rest_rng)
    return jnp.concatenate([out, last], axis=1)
