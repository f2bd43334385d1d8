"""One linear layer: how EncNet scores its encoding of a picture (method.md 10.1)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    LabelPrediction,
)
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.layers.transformer import linear_init
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray


class LinearHead(AbstractMultiLabelHead):
    """The mean of the image to one score per class; raw class embeddings as queries."""

    def __init__(
        self,
        *,
        num_classes: int,
        image_dim: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del dtype  # 8 bits of a score would tie hundreds of labels.
        self.classifier = nnx.Linear(
            image_dim,
            num_classes,
            kernel_init=linear_init,
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        image = embeddings.image
        mean = adaptive_pool(image.grid, 1, image.grid_size)[:, 0, 0]
        scores = self.classifier(mean)
        return LabelPrediction(scores, class_embeddings, embeddings.elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        return product(self.classifier.in_features, num_classes)
