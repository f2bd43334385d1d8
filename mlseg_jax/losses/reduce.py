"""The one place where unreduced losses become numbers.

A batch may be worked through in parts. The mean over all of it is not the mean of the
parts' means where they divide by different counts (valid pixels, sums of weights), so
losses stay sums and counts, `Mean`, until the counts of the whole batch are known.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mlseg_jax.errors import UserError
from mlseg_jax.typing import Array, Bool, Float

PIXEL_MEANS = ("all", "valid")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean of a batch or of a part of one, not yet divided; or several, one for each
    supervised prediction, whose sum counts.

    Attributes:
      total: the sum of what is averaged.
      count: what it is divided by; carries no gradient.
      weight: of this mean in the loss that is trained on; 0 is only logged.
      least: a smaller count counts as this.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    total: Float[Array, "*P"]
    count: Float[Array, "*P"]
    weight: float = dataclasses.field(default=0.0, metadata={"static": True})
    least: float = dataclasses.field(default=1.0, metadata={"static": True})

    def weighted(self, weight: float) -> "Mean":
        return dataclasses.replace(self, weight=weight)

    def values(self, count: Float[Array, "*P"] | None = None) -> Float[Array, "*P"]:
        """The means; with the ``count`` of a whole batch, this part's share in it."""
        count = jax.lax.stop_gradient(self.count if count is None else count)
        return self.total / jnp.maximum(count, self.least)

    def value(self, count: Float[Array, "*P"] | None = None) -> Float[Array, ""]:
        return jnp.sum(self.values(count))


Counts = dict[str, Float[Array, "*P"]]
"""What a whole batch divides by, by the names of its means."""


def counts_of(means: Mapping[str, Mean]) -> Counts:
    """Of one part; those of all parts add up to the batch's."""
    return {name: mean.count for name, mean in means.items()}


def total_loss(
    means: Mapping[str, Mean], counts: Counts | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the means, and all of them to log.

    With the ``counts`` of a whole batch, the share that this part of it has in its
    loss, gradient and logs: those of all parts add up to the batch's.
    """
    counts = counts_of(means) if counts is None else counts
    values = {name: mean.value(counts[name]) for name, mean in means.items()}
    total = sum(m.weight * values[name] for name, m in means.items() if m.weight)
    return total, {"loss/total": total, **values}


def mean_over_pixels(
    losses: Float[Array, "B H W"],
    valid: Bool[Array, "B H W"],
    over: str,
    weights: Float[Array, "B H W"] | None = None,
) -> Mean:
    """Mean of the pixel losses, which are 0 where not ``valid``.

    ``over="all"`` divides by every pixel (the release: wrongly rejected labels then
    lower the loss), ``"valid"`` by the valid ones. Without any valid pixel both are 0.
    With ``weights`` each pixel counts as many times; those that are not valid, and the
    divisor of ``"all"``, once.
    """
    if over not in PIXEL_MEANS:
        raise UserError(
            f"Unknown pixel mean {over!r}; choose one of {', '.join(PIXEL_MEANS)}."
        )
    least = 1.0
    if weights is not None:
        weights = jnp.where(valid, weights, 0.0)
        losses = losses * weights
        least = 1e-6
    if over == "all":
        return Mean(jnp.sum(losses), jnp.float32(losses.size))
    count = jnp.sum(valid if weights is None else weights)
    return Mean(jnp.sum(losses), count.astype(jnp.float32), least=least)


def mean_over_labels(losses: Float[Array, "B C"]) -> Mean:
    """Mean over examples and all C classes: the loss weights assume this one."""
    return Mean(jnp.sum(losses), jnp.float32(losses.size))


def mean_over_examples(values: Float[Array, "B"]) -> Mean:
    return Mean(jnp.sum(values), jnp.float32(values.size))
