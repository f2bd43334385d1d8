"""Rank norms against loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import segmenter_config

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import UNSELECTED_LOGIT
from mlseg_jax.models.build import check_config
from mlseg_jax.models.rank_adaptive import RANK_NORMS, RankNorm

K = 4
pytestmark = pytest.mark.usefixtures("quick_compiles")


def make(kind, unbiased=False, num_ranks=K):
    norm = RankNorm(kind, num_ranks, unbiased_variance=unbiased)
    rng = np.random.default_rng(0)
    for name in ("scale", "bias", "log_inverse_temperature"):
        if name in vars(norm):
            param = getattr(norm, name)
            param[...] = jnp.asarray(rng.normal(size=param.shape), jnp.float32)
    return norm


def slow(norm, scores, valid, unbiased):
    out = np.full(scores.shape, UNSELECTED_LOGIT)

    def of_rank(param, rank):
        param = np.asarray(param[...], np.float64)
        return param[min(rank, len(param) - 1)]

    for b, y, x in np.ndindex(scores.shape[:3]):
        kept = np.flatnonzero(valid[b])
        s = scores[b, y, x, kept].astype(np.float64)
        if norm.kind in ("affine", "shared"):
            count = max(len(s) - 1, 1) if unbiased else len(s)
            variance = np.sum((s - s.mean()) ** 2) / count
            s = (s - s.mean()) / np.sqrt(variance + 1e-5)
            s = [
                v * of_rank(norm.scale, r) + of_rank(norm.bias, r)
                for v, r in zip(s, kept, strict=True)
            ]
        elif norm.kind == "temperature":
            s = [
                v * np.exp(of_rank(norm.log_inverse_temperature, r))
                for v, r in zip(s, kept, strict=True)
            ]
        out[b, y, x, kept] = s
    return out


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", RANK_NORMS)
@pytest.mark.parametrize("num_ranks", [1, 2, K, K + 3])
def test_against_loops(kind, unbiased, num_ranks):
    norm = make(kind, unbiased)
    rng = np.random.default_rng(num_ranks)
    scores = jnp.asarray(rng.normal(size=(2, 2, 3, num_ranks)), jnp.float32)
    full = np.ones((2, num_ranks), bool)
    partial = np.arange(num_ranks) < np.asarray([[1], [max(1, num_ranks - 1)]])
    for valid in (None, partial):
        logits = norm(scores, None if valid is None else jnp.asarray(valid))
        expected = slow(
            norm, np.asarray(scores), full if valid is None else valid, unbiased
        )
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_all_valid_is_the_same_as_no_mask():
    norm = make("affine")
    scores = jax.random.normal(jax.random.key(0), (2, 2, 3, K))
    np.testing.assert_array_equal(norm(scores), norm(scores, jnp.ones((2, K), bool)))


@pytest.mark.parametrize("kind", RANK_NORMS)
def test_parameters_of_classes_go_with_them(kind):
    norm = make(kind)
    scores = jax.random.normal(jax.random.key(0), (2, 2, 3, K))
    order = jnp.asarray([[2, 0, 3, 1], [1, 3, 0, 2]])
    permuted = jnp.stack([scores[b][..., order[b]] for b in range(2)])
    np.testing.assert_allclose(
        norm(permuted, None, order),
        jnp.stack([norm(scores)[b][..., order[b]] for b in range(2)]),
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", RANK_NORMS)
def test_gradient_is_finite(kind):
    """With one rank, equal scores, and no valid rank at all."""
    norm = make(kind)
    for scores, valid in (
        (jnp.ones((1, 1, 2, 1)), None),
        (jnp.ones((1, 1, 2, 3)), None),
        (jnp.ones((1, 1, 2, 3)), jnp.asarray([[True, False, False]])),
        (jnp.ones((1, 1, 2, 3)), jnp.zeros((1, 3), bool)),
    ):
        value, grad = jax.value_and_grad(lambda s, v=valid: jnp.sum(norm(s, v)))(scores)
        assert np.isfinite(value) and np.all(np.isfinite(grad)), (scores.shape, valid)


def test_sharpness_by_rank():
    assert make("none").inverse_temperature(3) is None
    norm = make("temperature")
    np.testing.assert_allclose(
        norm.inverse_temperature(2),
        np.exp(norm.log_inverse_temperature[...])[:2],
        rtol=1e-6,
    )
    assert make("shared").inverse_temperature(7).shape == (7,)


def test_bfloat16_scores_give_float32_logits():
    assert make("affine")(jnp.ones((1, 1, 1, K), jnp.bfloat16)).dtype == jnp.float32


def test_unknown_kind():
    config = segmenter_config()
    config.model.rank_norm.kind = "layer"
    with pytest.raises(UserError, match="affine, shared, temperature, none"):
        check_config(config)
