"""Presence as a prior, against NumPy in value and gradient, and in a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_close, normal
from tiny import tiny_config

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import Selection, select_top_k
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.multilabel_heads.transformer_encoder import scale_gradient
from mlseg_jax.models.presence_prior import PRIORS, PresencePrior

KINDS = PRIORS[1:]


def selection_of(batch, ids):
    return Selection(jnp.asarray(ids, jnp.int32)[:batch], None, 7)


IDS = [[3, 0, 6], [1, 5, 2], [6, 5, 4]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch, no_object", [(1, False), (3, True)])
def test_values_and_gradients(kind, batch, no_object):
    prior = PresencePrior(kind, 3, initial=0.5, detach=False)
    graph, state = nnx.split(prior)
    state = jax.tree.map(lambda x: x + 0.25 * jnp.arange(1, 1 + x.size), state)
    logits = normal(0, batch, 2, 5, 3 + no_object)
    scores, weights = 3 * normal(1, batch, 7), normal(2, *logits.shape)
    selection = selection_of(batch, IDS)

    def ours(logits, scores, state):
        return nnx.merge(graph, state)(logits, scores, selection)

    def plain(logits, scores, state):
        ids = np.asarray(IDS)
        rows = []
        for b in range(batch):
            chosen = [scores[b, ids[b, r]] for r in range(3)]
            if kind == "calibrated":
                slope, shift = state["slope"][...][0], state["shift"][...][0]
                chosen = [slope * s + shift for s in chosen]
            weight = state["weight"][...]
            added = [
                weight[r if kind == "ranks" else 0] * -jnp.log(1 + jnp.exp(-s))
                for r, s in enumerate(chosen)
            ]
            rows.append(jnp.stack(added + [jnp.zeros(())] * no_object))
        return logits + jnp.stack(rows)[:, None, None]

    def total(function):
        loss = lambda *x: jnp.sum(function(*x) * weights)  # noqa: E731
        found = jax.value_and_grad(loss, argnums=(0, 1, 2))(logits, scores, state)
        return jax.tree.leaves(found)

    assert_close(total(ours), total(plain), 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_at_zero_it_changes_nothing_and_detached_it_leaves_the_scores(kind):
    logits, scores = normal(0, 3, 2, 2, 3), normal(1, 3, 7)
    prior = PresencePrior(kind, 3)
    selection = selection_of(3, IDS)
    np.testing.assert_array_equal(prior(logits, scores, selection), logits)
    prior = PresencePrior(kind, 3, initial=1.0)
    grad = jax.grad(lambda s: jnp.sum(prior(logits, s, selection)))(scores)
    np.testing.assert_array_equal(grad, 0.0)


def test_more_ranks_than_in_training():
    prior = PresencePrior("ranks", 2, initial=1.0)
    prior.weight[...] = jnp.asarray([1.0, 3.0])
    logits, scores = jnp.zeros((1, 1, 1, 4)), jnp.zeros((1, 7))
    added = prior(logits, scores, select_top_k(scores, 4))
    expected = -np.log(2.0) * np.array([1.0, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(added[0, 0, 0], expected, rtol=1e-6)


def test_the_model_has_it_where_it_is_configured():
    without = FunctionalModel.build(tiny_config(), 20)
    with_it = FunctionalModel.build(
        tiny_config({"model.presence_prior.kind": "calibrated"}), 20
    )
    assert with_it.num_parameters == without.num_parameters + 3
    wrong = {
        "model.presence_prior.kind": "shared",
        "model.multilabel_head.name": "none",
    }
    with pytest.raises(UserError, match="needs label scores"):
        FunctionalModel.build(tiny_config(wrong), 20)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_scaled_gradients(factor):
    x = normal(0, 3, 4)
    np.testing.assert_array_equal(scale_gradient(x, factor), x)
    grad = jax.grad(lambda x: jnp.sum(scale_gradient(x, factor) ** 2))(x)
    assert_close(grad, 2 * factor * x)
