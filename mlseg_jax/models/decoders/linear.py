"""A linear classifier on normalised features: the cheapest decoder there is.

As DINOv2 evaluates its features (Oquab et al. 2023, section 7.4): batch norm, then a
1 x 1 convolution, here with one row for each selected label.
"""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.decoders.dot_product import dot_products
from mlseg_jax.models.interfaces import AbstractDecoder, Embeddings, FeatureMap
from mlseg_jax.models.layers.conv import resize_like
from mlseg_jax.models.layers.dropout import channel_dropout
from mlseg_jax.models.layers.norm import BatchNorm
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class LinearDecoder(AbstractDecoder):
    """All maps side by side on the finest grid, batch norm, dot products.

    The multi-label head looks at the same.
    """

    def __init__(
        self,
        *,
        feature_dims: tuple[int, ...],
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # Nothing is drawn.
        self.embed_dim = self.image_dim = sum(feature_dims)
        self.level = self.image_level = 0
        self.class_bias = True
        self.norm = BatchNorm(self.embed_dim)
        self.dropout_rate = dropout_rate
        self.dtype = dtype

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        finest = features[self.level]
        grids = [resize_like(each, finest).grid for each in features]
        grid = jnp.concatenate(grids, axis=-1).astype(self.dtype)
        grid = pin_examples(self.norm(grid, rng is not None))
        size = finest.grid_size
        dropped = channel_dropout(grid, self.dropout_rate, rng)
        return Embeddings(FeatureMap(dropped, size), FeatureMap(grid, size))

    def classify(
        self,
        pixels: FeatureMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w K"]:
        return dot_products(pixels, class_queries)

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        return Macs()

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        return product(*grid, num_ranks, self.embed_dim)
