"""Gradients of a batch that is worked through in parts, as if it were one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlseg_jax.losses.reduce import Mean, counts_of, total_loss
from mlseg_jax.models.build import Parameters
from mlseg_jax.typing import Array, Float, PRNGKeyArray

Forward = Callable[..., tuple[Mapping[str, Mean], Parameters]]
"""``(parameters, statistics, batch, rng)`` to the losses' means and new statistics."""


def accumulated_gradients(
    forward: Forward,
    num_parts: int,
    params: Parameters,
    stats: Parameters,
    batch: Mapping[str, Array],
    rng: PRNGKeyArray,
) -> tuple[Parameters, dict[str, Float[Array, ""]], Parameters]:
    """Gradients of the total loss, what to log, and the new statistics.

    ``num_parts`` equal parts of the batch go one after the other. Gradients and logs
    are those of the undivided batch, whatever the means divide by; only batch norms
    see each part by itself, and dropout is drawn for each.
    """

    def loss(params, stats, batch, rng, counts):
        means, stats = forward(params, stats, batch, rng)
        total, metrics = total_loss(means, counts)
        return total, (metrics, stats)

    differentiate = jax.grad(loss, has_aux=True)
    if num_parts == 1:
        grads, (metrics, stats) = differentiate(params, stats, batch, rng, None)
        return grads, metrics, stats
    # Every part takes its share of each device's examples, so nothing moves.
    batches = jax.tree.map(
        lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
    )
    parts = batches, jax.random.split(rng, num_parts)
    counts = _counts(forward, params, stats, parts)

    def add(carry, part):
        sums, stats = carry
        grads, (metrics, stats) = differentiate(params, stats, *part, counts)
        return (jax.tree.map(jnp.add, sums, (grads, metrics)), stats), None

    first = jax.tree.map(lambda x: x[0], parts)
    grads, (metrics, _) = jax.eval_shape(differentiate, params, stats, *first, counts)
    start = _zeros((grads, metrics)), stats
    (sums, stats), _ = jax.lax.scan(add, start, parts)
    return *sums, stats


def _counts(forward: Forward, params: Parameters, stats: Parameters, parts: Any):
    """What the means of the whole batch divide by.

    XLA leaves out what this does not need: everything where counts follow from sizes
    or labels alone, the decoder where they depend on which labels are selected.
    """

    def count(part):
        return counts_of(forward(params, stats, *part)[0])

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, count(part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    return jax.lax.scan(add, _zeros(jax.eval_shape(count, first)), parts)[0]


def _zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
