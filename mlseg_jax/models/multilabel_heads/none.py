"""No multi-label head: the complete-label baseline."""

import jax.numpy as jnp

from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    LabelPrediction,
)
from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import Array, Float, PRNGKeyArray


class NoMultiLabelHead(AbstractMultiLabelHead):
    """The baseline's: no scores, and the class embeddings themselves as queries."""

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        batch = embeddings.image.grid.shape[0]
        scores = jnp.zeros((batch, class_embeddings.shape[-2]))
        return LabelPrediction(scores, class_embeddings, embeddings.elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        return Macs()
