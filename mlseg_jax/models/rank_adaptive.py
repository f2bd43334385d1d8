"""Rank-adaptive normalisation: what turns the scores of a pixel into logits.

The paper divides the score of rank r by a learned temperature tau_r (equation 3), for
the best-ranked labels deserve sharper scores than the doubtful ones at the end. The
released code, from which all published numbers come, instead normalises the K scores of
a pixel and gives every *rank* its own scale and shift; the scale plays 1 / tau_r
(method.md 4.2). The baseline is the same over C classes in class order, so its scales
are those of classes and go with them where it is given fewer labels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.label_selection import UNSELECTED_LOGIT
from mlseg_jax.typing import Array, Bool, Float, Int

RANK_NORMS = ("affine", "shared", "temperature", "none")


class RankNorm(nnx.Module):
    """Normalises scores over ranks.

    Kinds:
      ``affine``: layer norm over ranks, a scale and a shift for each rank (the
      release). ``shared``: layer norm over ranks, one scale and one shift (no rank
      adaptation). ``temperature``: scores times exp(log 1/tau_r), nothing else
      (equation 3). ``none``: the scores as they are.

    With fewer ranks than in training the first parameters are used, with more the last
    one repeats (method.md 16, row 9). ``unbiased_variance`` divides by n - 1, as the
    release's ground-truth head does.
    """

    def __init__(
        self,
        kind: str,
        num_ranks: int,
        *,
        epsilon: float = 1e-5,
        unbiased_variance: bool = False,
    ):
        if kind in ("affine", "shared"):
            size = num_ranks if kind == "affine" else 1
            self.scale = nnx.Param(jnp.ones(size))
            self.bias = nnx.Param(jnp.zeros(size))
        if kind == "temperature":
            self.log_inverse_temperature = nnx.Param(jnp.zeros(num_ranks))
        self.kind = kind
        self.epsilon = epsilon
        self.unbiased_variance = unbiased_variance

    def __call__(
        self,
        scores: Float[Array, "B h w K"],
        valid: Bool[Array, "B K"] | None = None,
        class_ids: Int[Array, "B K"] | None = None,
    ) -> Float[Array, "B h w K"]:
        """Logits in float32; those of invalid ranks are ``UNSELECTED_LOGIT``.

        ``class_ids`` where parameters belong to classes instead of ranks.
        """
        scores = scores.astype(jnp.float32)
        num_ranks = scores.shape[-1]
        mask = None if valid is None else valid[:, None, None, :]
        if self.kind in ("affine", "shared"):
            scores = self._normalise(scores, mask)
            ids = None if self.kind == "shared" else class_ids
            scale = _over_ranks(self.scale[...], num_ranks, ids)
            scores = scores * scale + _over_ranks(self.bias[...], num_ranks, ids)
        elif self.kind == "temperature":
            inverse_temperature = jnp.exp(self.log_inverse_temperature[...])
            scores = scores * _over_ranks(inverse_temperature, num_ranks, class_ids)
        if mask is not None:
            scores = jnp.where(mask, scores, UNSELECTED_LOGIT)
        return scores

    def inverse_temperature(self, num_ranks: int) -> Float[Array, "K"] | None:
        """The learned 1 / tau over ranks (figure 7); ``None`` where nothing is
        learned.
        """
        if self.kind == "temperature":
            return _fit(jnp.exp(self.log_inverse_temperature[...]), num_ranks)
        return None if self.kind == "none" else _fit(self.scale[...], num_ranks)

    def _normalise(self, scores: Array, mask: Array | None) -> Array:
        if mask is None:
            mask = jnp.ones((1, 1, 1, scores.shape[-1]), bool)
        # At least 1, or an example without any valid rank has a NaN gradient.
        count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
        mean = jnp.sum(scores, -1, where=mask, keepdims=True) / count
        squares = jnp.sum((scores - mean) ** 2, -1, where=mask, keepdims=True)
        divisor = jnp.maximum(count - 1, 1) if self.unbiased_variance else count
        return (scores - mean) * jax.lax.rsqrt(squares / divisor + self.epsilon)


def _over_ranks(
    parameters: Array, num_ranks: int, class_ids: Array | None
) -> Float[Array, "B 1 1 K"]:
    if class_ids is not None:
        return parameters[class_ids][:, None, None, :]
    return _fit(parameters, num_ranks).reshape(1, 1, 1, num_ranks)


def _fit(parameters: Array, num_ranks: int) -> Float[Array, "K"]:
    """The first ``num_ranks`` entries, the last one repeated where there are fewer."""
    missing = max(0, num_ranks - parameters.shape[0])
    return jnp.pad(parameters[:num_ranks], (0, missing), mode="edge")
