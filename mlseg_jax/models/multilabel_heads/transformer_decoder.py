"""Class queries that look at the image: Table 6's second head (method.md section 5)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    LabelPrediction,
)
from mlseg_jax.models.layers.position_embedding import sine_positions
from mlseg_jax.models.layers.post_norm import PostNormTransformer
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.models.multilabel_heads.group_wise_linear import GroupWiseLinear
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray


class TransformerDecoderHead(AbstractMultiLabelHead):
    """Post-norm decoder layers without self-attention, then one score per class.

    The class embeddings are the queries' positions. The image is averaged over
    ``downsample`` bins a side and gets a projection and positions of its own. For
    pixels, the class embeddings themselves are gathered, not what became of them here.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_dim: int,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        depth: int,
        downsample: int,
        dropout_rate: float,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.image_projection = nnx.Linear(
            image_dim,
            embed_dim,
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            dtype=dtype,
            rngs=rngs,
        )
        self.transformer = PostNormTransformer(
            embed_dim,
            num_heads,
            mlp_dim,
            num_encoder_layers=0,
            num_decoder_layers=depth,
            dropout_rate=dropout_rate,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.classifier = GroupWiseLinear(num_classes, embed_dim, rngs=rngs)
        self.downsample = downsample

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        image, bins = embeddings.image, self.downsample
        pooled = adaptive_pool(image.grid, bins, image.grid_size)
        memory = self.image_projection(pooled.reshape(-1, bins * bins, pooled.shape[3]))
        positions = sine_positions(bins, bins, memory.shape[-1])
        classes = self.transformer(memory, positions, class_embeddings, None, rng)
        scores = self.classifier(classes)
        return LabelPrediction(scores, class_embeddings, embeddings.elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        tokens, projection = self.downsample**2, self.image_projection
        return (
            product(tokens, projection.in_features, projection.out_features)
            + self.transformer.macs(tokens, num_classes)
            + self.classifier.macs()
        )
