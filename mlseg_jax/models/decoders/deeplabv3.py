"""DeepLabv3 (Chen et al. 2017; method.md section 9.1)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.decoders.dot_product import dot_products
from mlseg_jax.models.interfaces import AbstractDecoder, Embeddings, FeatureMap
from mlseg_jax.models.layers.conv import ConvUnit, average_pool
from mlseg_jax.models.layers.dropout import channel_dropout
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class DeepLabV3Decoder(AbstractDecoder):
    """The last map seen by convolutions of several dilations and as a whole.

    The multi-label head looks at the backbone's last map itself.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        embed_dim: int,
        dilations: tuple[int, ...],
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = embed_dim
        self.image_dim = feature_dim
        self.level = self.image_level = -1
        self.class_bias = True
        common = {"dtype": dtype, "rngs": rngs}
        self.image_pool = ConvUnit(feature_dim, embed_dim, **common)
        # The branch without dilation looks at single cells.
        self.branches = nnx.List(
            [
                ConvUnit(
                    feature_dim,
                    embed_dim,
                    1 if dilation == 1 else 3,
                    dilation=dilation,
                    **common,
                )
                for dilation in dilations
            ]
        )
        joined = (1 + len(dilations)) * embed_dim
        self.bottleneck = ConvUnit(joined, embed_dim, 3, **common)
        self.dropout_rate = dropout_rate

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        last, train = features[self.level], rng is not None
        # Bilinear upsampling of a single cell repeats it.
        whole = self.image_pool(average_pool(last), train).grid
        whole = jnp.broadcast_to(whole, (*last.grid.shape[:3], self.embed_dim))
        maps = [whole, *(branch(last, train).grid for branch in self.branches)]
        joined = FeatureMap(jnp.concatenate(maps, axis=-1), last.grid_size)
        pixels = self.bottleneck(joined, train)
        grid = pin_examples(channel_dropout(pixels.grid, self.dropout_rate, rng))
        return Embeddings(FeatureMap(grid, pixels.grid_size), last)

    def classify(
        self,
        pixels: FeatureMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w K"]:
        return dot_products(pixels, class_queries)

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        grid = grids[self.level]
        pooling = activation(*grid, self.image_dim)
        count = pooling + self.image_pool.macs((1, 1)) + self.bottleneck.macs(grid)
        return sum((branch.macs(grid) for branch in self.branches), count)

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        return product(*grid, num_ranks, self.embed_dim)
