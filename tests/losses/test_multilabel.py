"""Multi-label losses: the vectors of method.md 14.6, extremes, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.losses.multilabel import (
    asymmetric_loss,
    binary_cross_entropy,
    missed_label_loss,
)
from mlseg_jax.losses.reduce import mean_over_labels

SCORES = jnp.asarray([[2.0, -1.0, 0.0, -6.0], [0.5, 3.0, -2.0, -0.1]])
PRESENCE = jnp.asarray([[1, 0, 0, 0], [0, 1, 1, 0]], bool)
PARAMETERS = [
    (2.0, 0.0, 0.05, 0.3517224),
    (0.0, 0.0, 0.05, 0.5688141),
    (2.0, 0.0, 0.0, 0.3776506),
    (4.0, 1.0, 0.05, 0.2531527),
]


def asymmetric(scores, presence, gamma_negative, gamma_positive, clip):
    return asymmetric_loss(
        scores,
        presence,
        gamma_negative=gamma_negative,
        gamma_positive=gamma_positive,
        clip=clip,
    )


def slow(score, present, gamma_negative, gamma_positive, clip):
    p = 1 / (1 + np.exp(-np.float64(score)))
    if present:
        return -((1 - p) ** gamma_positive) * np.log(max(p, 1e-5))
    q = min(1 - p + clip, 1.0)
    return -((1 - q) ** gamma_negative) * np.log(max(q, 1e-5))


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_vectors_of_the_notes(parameters):
    *parameters, expected = parameters
    losses = asymmetric(SCORES, PRESENCE, *parameters)
    np.testing.assert_allclose(mean_over_labels(losses).value(), expected, atol=1e-6)
    for index, loss in np.ndenumerate(losses):
        found = slow(SCORES[index], PRESENCE[index], *parameters)
        np.testing.assert_allclose(loss, found, atol=1e-6)


def test_binary_cross_entropy():
    losses = binary_cross_entropy(SCORES, PRESENCE)
    np.testing.assert_allclose(mean_over_labels(losses).value(), 0.6162252, atol=1e-6)


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("parameters", [None, *(p[:3] for p in PARAMETERS)])
def test_extremes_are_finite(present, parameters):
    scores = jnp.asarray([[-1e4, -100.0, -30.0, -3.0, 0.0, 3.0, 30.0, 100.0, 1e4]])
    presence = jnp.full(scores.shape, present)

    def loss(scores):
        if parameters is None:
            return jnp.sum(binary_cross_entropy(scores, presence))
        return jnp.sum(asymmetric(scores, presence, *parameters))

    value, grad = jax.value_and_grad(loss)(scores)
    assert np.isfinite(value) and np.all(np.isfinite(grad))
    # More score is never worse for a present label, nor better for an absent one.
    assert np.all(np.asarray(grad) * (-1 if present else 1) >= 0)


@pytest.mark.parametrize("parameters", [p[:3] for p in PARAMETERS])
def test_gradient_flows_through_the_focusing_factors(parameters):
    grad = jax.grad(lambda s: jnp.sum(asymmetric(s, PRESENCE, *parameters)))(SCORES)
    step = 1e-5
    for index, found in np.ndenumerate(grad):
        score = np.float64(SCORES[index])
        up, down = (
            slow(score + d, PRESENCE[index], *parameters) for d in (step, -step)
        )
        np.testing.assert_allclose(found, (up - down) / (2 * step), atol=1e-5)


def test_a_detached_focus_only_weighs_the_gradient():
    def total(scores, detach_focus):
        losses = asymmetric_loss(
            scores, PRESENCE, gamma_positive=1.0, clip=0.0, detach_focus=detach_focus
        )
        return jnp.sum(losses)

    assert total(SCORES, True) == total(SCORES, False)
    p = 1 / (1 + np.exp(-np.float64(SCORES)))
    expected = np.where(PRESENCE, -((1 - p) ** 2), p**2 * p)
    gradient = jax.grad(total)(SCORES, True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert np.abs(gradient - jax.grad(total)(SCORES, False)).max() > 0.01


@pytest.mark.parametrize("batch", [1, 3])
def test_missed_labels(batch):
    rng = np.random.default_rng(batch)
    scores = rng.normal(size=(batch, 7)).astype(np.float32)
    pixels = rng.integers(0, 4, (batch, 7)).astype(np.int32)
    selected = np.argsort(np.argsort(-scores, axis=1), axis=1) < 3
    pixels[-1] = 0  # nothing is labelled

    def slow(scores):
        losses, grads = np.zeros(batch), np.zeros(scores.shape)
        for b in range(batch):
            last = min(scores[b, selected[b]])
            for c in range(7):
                gap = last + 1.0 - scores[b, c]
                share = pixels[b, c] / max(pixels[b].sum(), 1)
                if not selected[b, c] and gap > 0:
                    losses[b] += gap * share
                    grads[b, c] -= share
        return losses, grads

    run = lambda s: missed_label_loss(s, jnp.asarray(selected), jnp.asarray(pixels))  # noqa: E731
    expected, grads = slow(scores)
    np.testing.assert_allclose(run(jnp.asarray(scores)), expected, rtol=1e-5)
    found = jax.grad(lambda s: jnp.sum(run(s)))(jnp.asarray(scores))
    np.testing.assert_allclose(found, grads, atol=1e-6)
    all_selected = missed_label_loss(
        jnp.asarray(scores), jnp.ones((batch, 7), bool), jnp.asarray(pixels)
    )
    np.testing.assert_array_equal(all_selected, 0.0)
    # No selection of ours is empty; one that is has no last label to be above.
    nothing = jnp.zeros((batch, 7), bool)
    none = lambda s: jnp.sum(missed_label_loss(s, nothing, jnp.asarray(pixels)))  # noqa: E731
    found, grads = jax.value_and_grad(none)(jnp.asarray(scores))
    assert found == 0
    np.testing.assert_array_equal(grads, 0.0)
