"""Losses and costs of masks and classes against known values and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.losses.regions import mask
from mlseg_jax.losses.regions.mask import MASKFORMER, RegionLoss

pytestmark = pytest.mark.usefixtures("quick_compiles")

LOGITS = jnp.asarray([[2.0, -1.0, 0.5, -3.0], [-2.0, 1.0, 4.0, 0.0]])
SOFT = jnp.asarray([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.25, 0.0]])
HARD = jnp.asarray([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_known_values():
    bce = mask.pairwise_cross_entropy(LOGITS, SOFT)
    near(bce, [[0.240714, 1.084464], [1.037872, 1.037872]])
    dice = mask.pairwise_dice(LOGITS, SOFT)
    near(dice, [[0.168708, 0.545631], [0.399425, 0.355533]])
    near(jnp.mean(mask.focal_at(LOGITS, HARD), axis=1), [0.008605, 0.034246])
    near(mask.dice(LOGITS, HARD), [0.168708, 0.169933])
    logits = jnp.asarray([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.5, 0.0, 1.5]])
    classes = jnp.asarray([[[0, 2, 2]]])
    losses = mask.class_cross_entropy(logits[None, None], classes)
    weights = jnp.asarray([1.0, 0.1, 0.1])
    near(jnp.sum(losses[0, 0] * weights) / jnp.sum(weights), 0.564998)


@pytest.mark.parametrize("with_weights", [False, True])
def test_pairs_are_the_losses(with_weights):
    """A cost is what the loss of the same pair would be, without the void."""
    rng = np.random.default_rng(0)
    logits = (4 * rng.normal(size=(5, 9))).astype(np.float32)
    labels = rng.random((3, 9)).astype(np.float32).round(1)
    keep = rng.random(9) < 0.6 if with_weights else np.ones(9, bool)
    weights = keep.astype(np.float32) if with_weights else None

    @jax.jit
    def costs(*args):
        return (
            mask.pairwise_cross_entropy(*args),
            mask.pairwise_focal(args[0], args[1].round(), args[2]),
            mask.pairwise_dice(*args),
        )

    @jax.jit
    def losses(x, t, weights):
        bce = mask.binary_cross_entropy_at(x, t)
        focal = mask.focal_at(x, t.round())
        means = mask.mean_at(bce, weights), mask.mean_at(focal, weights)
        return *means, mask.dice(x, t, weights)

    # Every pair, rows first.
    x, t = np.repeat(logits, 3, axis=0), np.tile(labels, (5, 1))
    all_weights = np.tile(weights, (15, 1)) if with_weights else None
    found = costs(logits, labels, weights)
    for cost, loss in zip(found, losses(x, t, all_weights), strict=True):
        near(cost.ravel(), loss)
    p = 1 / (1 + np.exp(-x[:, keep].astype(np.float64)))
    t, hard = t[:, keep], t[:, keep].round()
    near(found[0].ravel(), -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p), axis=1))
    focal = 0.25 * hard * (1 - p) ** 2 * np.log(p)
    focal += 0.75 * (1 - hard) * p**2 * np.log(1 - p)
    near(found[1].ravel(), -np.mean(focal, axis=1))
    both = np.sum(p, axis=1) + np.sum(t, axis=1)
    near(found[2].ravel(), 1 - (2 * np.sum(p * t, axis=1) + 1) / (both + 1))


def test_nothing_but_void():
    weights = jnp.zeros((2, 4))
    losses = mask.binary_cross_entropy_at(LOGITS, HARD)
    np.testing.assert_array_equal(mask.mean_at(losses, weights), 0.0)
    np.testing.assert_array_equal(mask.dice(LOGITS, HARD, weights), 0.0)


def test_extreme_logits():
    logits = jnp.asarray([[300.0, -300.0, 1e4, -1e4]])
    labels = jnp.asarray([[1.0, 0.0, 0.0, 1.0]])
    for f in (mask.binary_cross_entropy_at, mask.focal_at):
        losses, grad = jax.jit(
            jax.value_and_grad(lambda x, f=f: jnp.sum(f(x, labels)))
        )(logits)
        assert np.isfinite(losses) and np.all(np.isfinite(grad))
    grad = jax.jit(jax.grad(lambda x: jnp.sum(mask.dice(x, labels))))(logits)
    assert np.all(np.isfinite(grad))


def test_classes_of_queries():
    queries = jnp.asarray([[[3, -1, 0], [1, 2, -1]]])
    ranks = jnp.asarray([[4, 5, 6]])
    query_classes = jax.jit(mask.query_classes, static_argnums=(2, 3))
    classes = query_classes(queries, ranks, 4, 7)
    np.testing.assert_array_equal(classes, [[[6, 7, 7, 4], [7, 4, 5, 7]]])
    logits = jnp.asarray([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    cost = mask.class_cost(logits, jnp.asarray([1, -1]))
    near(cost[:, 0], -np.exp([1.0, 0.0]) / [1 + np.e + np.e**2, 2 + np.e])


def test_settings():
    assert RegionLoss().num_candidates == 37_632
    assert RegionLoss().num_uncertain == 9_408
    assert (MASKFORMER.class_weight, MASKFORMER.mask_weight) == (1.0, 20.0)
    for wrong in ({"mask": "boxes"}, {"num_points": 0}, {"importance": 1.5}):
        with pytest.raises(UserError, match="loss"):
            RegionLoss(**wrong)
