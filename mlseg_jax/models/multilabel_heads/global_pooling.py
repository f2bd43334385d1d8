"""The mean of the image and two linear layers: Table 6's third head (method.md 5)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    LabelPrediction,
)
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray


class GlobalPoolingHead(AbstractMultiLabelHead):
    """Average, linear with ReLU, linear to one score per class.

    The average is over bins of the image (``downsample`` a side), which weighs cells
    in two bins twice. For pixels, the class embeddings themselves are gathered.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_dim: int,
        downsample: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.hidden = nnx.Linear(
            image_dim,
            image_dim,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            rngs=rngs,
        )
        self.classifier = nnx.Linear(
            image_dim,
            num_classes,
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            dtype=jnp.float32,  # 8 bits of a score would tie hundreds of labels
            rngs=rngs,
        )
        self.downsample = downsample

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        image = embeddings.image
        pooled = adaptive_pool(image.grid, self.downsample, image.grid_size)
        mean = jnp.mean(pooled, axis=(1, 2))
        scores = self.classifier(jax.nn.relu(self.hidden(mean)))
        return LabelPrediction(scores, class_embeddings, embeddings.elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        width = self.hidden.in_features
        layers = product(width, width) + product(width, num_classes)
        return layers + activation(width)
