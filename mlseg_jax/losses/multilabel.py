"""Losses of multi-label prediction (method.md section 13.1)."""

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Bool, Float, Int


def binary_cross_entropy(
    scores: Float[Array, "B C"], presence: Bool[Array, "B C"]
) -> Float[Array, "B C"]:
    """-log sigmoid(s) where present, -log(1 - sigmoid(s)) where absent."""
    return jax.nn.softplus(jnp.where(presence, -scores, scores))


def asymmetric_loss(
    scores: Float[Array, "B C"],
    presence: Bool[Array, "B C"],
    *,
    gamma_negative: float = 2.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
    detach_focus: bool = False,
) -> Float[Array, "B C"]:
    """Ridnik et al. 2021: easy absent labels count little, very easy ones nothing.

    With p = sigmoid(s), m = clip and n = max(p - m, 0):
    present: -(1 - p)^gamma_positive log max(p, 1e-5);
    absent: -n^gamma_negative log max(1 - n, 1e-5).
    Gradients flow through the focusing factors, as in the release, unless
    ``detach_focus``, as Query2Label is trained.
    """
    probability = jax.nn.sigmoid(scores)
    shifted = jnp.maximum(probability - clip, 0.0)
    focus = jnp.where(
        presence,
        _focus(1.0 - probability, gamma_positive),
        _focus(shifted, gamma_negative),
    )
    if detach_focus:
        focus = jax.lax.stop_gradient(focus)
    return -focus * _log(jnp.where(presence, probability, 1.0 - shifted))


def _log(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, 1e-5))


def _focus(x: Array, gamma: float) -> Array:
    """x^gamma with a finite gradient at x = 0."""
    if gamma == 0.0:
        return jnp.ones_like(x)
    positive = x > 0.0
    return jnp.where(positive, jnp.where(positive, x, 1.0) ** gamma, 0.0)


def missed_label_loss(
    scores: Float[Array, "B C"],
    selected: Bool[Array, "B C"],
    pixels: Int[Array, "B C"],
    margin: float = 1.0,
) -> Float[Array, "B"]:
    """A hinge on present labels that were not selected: nothing else is told of them.

    Each should score ``margin`` above the last of the selected labels; it counts by its
    share of the picture's labelled ``pixels``. 0 where none was missed, or none was
    selected. No gradient reaches the selected labels. Not in the paper.
    """
    last = jnp.min(jnp.where(selected, scores, jnp.inf), axis=1, keepdims=True)
    last = jnp.where(jnp.any(selected, axis=1, keepdims=True), last, -jnp.inf)
    hinge = jax.nn.relu(jax.lax.stop_gradient(last) + margin - scores)
    share = pixels / jnp.maximum(jnp.sum(pixels, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.where(selected, 0.0, hinge) * share, axis=1)
