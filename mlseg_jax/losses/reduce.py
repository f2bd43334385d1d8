"""The one place where unreduced losses become numbers."""

import jax.numpy as jnp

from mlseg_jax.errors import UserError
from mlseg_jax.typing import Array, Bool, Float

PIXEL_MEANS = ("all", "valid")


def mean_over_pixels(
    losses: Float[Array, "B H W"],
    valid: Bool[Array, "B H W"],
    over: str,
    weights: Float[Array, "B H W"] | None = None,
) -> Float[Array, ""]:
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
    if weights is None:
        if over == "all":
            return jnp.mean(losses)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(valid), 1)
    weights = jnp.where(valid, weights, 0.0)
    if over == "all":
        return jnp.mean(losses * weights)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def mean_over_labels(losses: Float[Array, "B C"]) -> Float[Array, ""]:
    """Mean over examples and all C classes: the loss weights assume this one."""
    return jnp.mean(losses)
