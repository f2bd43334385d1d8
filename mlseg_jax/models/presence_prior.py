"""Presence as a prior: what the label scores say of a picture, told to its pixels.

The paper uses label scores to select and to sort, and then forgets them: of K selected
labels most are absent, and nothing but its place says so of a doubtful one. Here the
logits of rank r get a learned multiple of the log of the probability that its label is
present. Not in the paper; off unless a configuration says otherwise.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.label_selection import Selection
from mlseg_jax.models.rank_adaptive import fit_ranks
from mlseg_jax.typing import Array, Float

PRIORS = ("none", "shared", "ranks", "calibrated")


class PresencePrior(nnx.Module):
    """Adds w log sigmoid(score) to the logits of every rank.

    Kinds:
      ``shared``: one learned w. ``ranks``: one for each rank; with more ranks than in
      training the last one repeats. ``calibrated``: one, of log sigmoid(a score + b)
      with learned a and b, for the losses of label scores do not make them
      probabilities.

    ``initial`` is the first w. With ``detach`` no gradient of the pixels reaches the
    scores.
    """

    def __init__(
        self, kind: str, num_ranks: int, *, initial: float = 0.0, detach: bool = True
    ):
        size = num_ranks if kind == "ranks" else 1
        self.weight = nnx.Param(jnp.full(size, initial, jnp.float32))
        is_calibrated = kind == "calibrated"
        self.slope = nnx.Param(jnp.ones(1)) if is_calibrated else None
        self.shift = nnx.Param(jnp.zeros(1)) if is_calibrated else None
        self.kind = kind
        self.detach = detach

    def __call__(
        self,
        logits: Float[Array, "B h w columns"],
        label_scores: Float[Array, "B C"],
        selection: Selection,
    ) -> Float[Array, "B h w columns"]:
        """Of regions ``[B P N K+1]``: the last column, no-object, stays as it is."""
        scores = jnp.take_along_axis(label_scores, selection.class_ids, axis=1)
        scores = scores.astype(jnp.float32)
        if self.detach:
            scores = jax.lax.stop_gradient(scores)
        if self.kind == "calibrated":
            scores = scores * self.slope[...][None] + self.shift[...][None]
        weight = fit_ranks(self.weight[...], selection.num_ranks)[None]
        prior = weight * jax.nn.log_sigmoid(scores)
        own = logits.shape[-1] - selection.num_ranks
        prior = jnp.pad(prior, [(0, 0), (0, own)])
        return logits + prior[:, None, None].astype(logits.dtype)
