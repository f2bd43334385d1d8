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

    Scores of regions have one column more than there are ranks, the last one:
    ``no_object``, which is always valid and has the last parameters whatever the number
    of ranks (method.md 11.2).
    """

    def __init__(
        self,
        kind: str,
        num_ranks: int,
        *,
        epsilon: float = 1e-5,
        unbiased_variance: bool = False,
        no_object: bool = False,
    ):
        columns = num_ranks + no_object
        if kind in ("affine", "shared"):
            size = columns if kind == "affine" else 1
            self.scale = nnx.Param(jnp.ones(size))
            self.bias = nnx.Param(jnp.zeros(size))
        if kind == "temperature":
            self.log_inverse_temperature = nnx.Param(jnp.zeros(columns))
        self.kind = kind
        self.epsilon = epsilon
        self.unbiased_variance = unbiased_variance
        self.no_object = no_object

    def __call__(
        self,
        scores: Float[Array, "B h w columns"],
        valid: Bool[Array, "B K"] | None = None,
        class_ids: Int[Array, "B K"] | None = None,
    ) -> Float[Array, "B h w columns"]:
        """Logits in float32; those of invalid ranks are ``UNSELECTED_LOGIT``.

        Of regions, ``[B P N K+1]``. ``class_ids`` where parameters belong to classes
        instead of ranks.
        """
        scores = scores.astype(jnp.float32)
        if self.no_object and valid is not None:
            valid = jnp.pad(valid, [(0, 0), (0, 1)], constant_values=True)
        mask = None if valid is None else valid[:, None, None, :]
        if self.kind in ("affine", "shared"):
            scores = self._normalise(scores, mask)
            ids = None if self.kind == "shared" else class_ids
            scale = self._over_ranks(self.scale[...], scores, ids)
            scores = scores * scale + self._over_ranks(self.bias[...], scores, ids)
        elif self.kind == "temperature":
            inverse_temperature = jnp.exp(self.log_inverse_temperature[...])
            scores = scores * self._over_ranks(inverse_temperature, scores, class_ids)
        if mask is not None:
            scores = jnp.where(mask, scores, UNSELECTED_LOGIT)
        return scores

    def inverse_temperature(self, num_ranks: int) -> Float[Array, "K"] | None:
        """The learned 1 / tau over ranks (figure 7); ``None`` where nothing is
        learned.
        """
        if self.kind == "none":
            return None
        if self.kind == "temperature":
            learned = jnp.exp(self.log_inverse_temperature[...])
        else:
            learned = self.scale[...]
        return fit_ranks(self._of_ranks(learned), num_ranks)

    def _of_ranks(self, parameters: Array) -> Array:
        """Without that of no-object; all where all columns share one."""
        return parameters[:-1] if self.no_object and len(parameters) > 1 else parameters

    def _over_ranks(
        self, parameters: Array, scores: Array, class_ids: Array | None
    ) -> Float[Array, "B 1 1 columns"]:
        """A parameter for every column of the scores."""
        num_ranks = scores.shape[-1] - self.no_object
        if class_ids is None:
            row = fit_ranks(self._of_ranks(parameters), num_ranks)[None]
        else:
            row = parameters[class_ids]
        if self.no_object:
            last = jnp.broadcast_to(parameters[-1:][None], (row.shape[0], 1))
            row = jnp.concatenate([row, last], axis=1)
        return row[:, None, None]

    def _normalise(self, scores: Array, mask: Array | None) -> Array:
        if mask is None:
            mask = jnp.ones((1, 1, 1, scores.shape[-1]), bool)
        # At least 1, or an example without any valid rank has a NaN gradient.
        count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
        mean = jnp.sum(scores, -1, where=mask, keepdims=True) / count
        squares = jnp.sum((scores - mean) ** 2, -1, where=mask, keepdims=True)
        divisor = jnp.maximum(count - 1, 1) if self.unbiased_variance else count
        return (scores - mean) * jax.lax.rsqrt(squares / divisor + self.epsilon)


def fit_ranks(parameters: Array, num_ranks: int) -> Float[Array, "K"]:
    """The first ``num_ranks`` entries, the last one repeated where there are fewer."""
    missing = max(0, num_ranks - parameters.shape[0])
    return jnp.pad(parameters[:num_ranks], (0, missing), mode="edge")
