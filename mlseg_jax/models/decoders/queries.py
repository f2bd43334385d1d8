"""What decoders have in common whose queries look at a pixel decoder (masks.md 2.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.regions import AbstractRegionDecoder, mask_layers
from mlseg_jax.models.interfaces import Embeddings, FeatureMap, Regions
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.macs import Macs, activation, norm, product
from mlseg_jax.models.pixel_decoders.abstract import (
    AbstractPixelDecoder,
    PixelFeatures,
)
from mlseg_jax.typing import Array, DTypeLike, Float


class RegionHead(nnx.Module):
    """One norm for both, then three layers to a mask embedding."""

    def __init__(
        self,
        embed_dim: int,
        mask_dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.norm = LayerNorm(embed_dim, epsilon=1e-5)
        widths = (embed_dim, embed_dim, embed_dim, mask_dim)
        self.mask_layers = mask_layers(widths, dtype, rngs)

    def __call__(
        self, queries: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N E"]]:
        """What class queries are compared with, and mask embeddings."""
        queries = masks = self.norm(queries)
        for layer in self.mask_layers[:-1]:
            masks = jax.nn.relu(layer(masks))
        return queries, self.mask_layers[-1](masks)

    def macs(self, num_queries: int) -> Macs:
        count = norm(num_queries, self.mask_layers[0].in_features)
        for layer in self.mask_layers:
            count += product(num_queries, layer.in_features, layer.out_features)
        return count + 2 * activation(num_queries, self.mask_layers[0].out_features)


class AbstractQueryDecoder(AbstractRegionDecoder):
    """Object queries that look at the features of a pixel decoder.

    The multi-label head looks at the queries after ``image_layer`` layers, or at the
    coarsest map of the pixel decoder (``image``).
    """

    level = 0

    def __init__(
        self,
        pixel_decoder: AbstractPixelDecoder,
        *,
        embed_dim: int,
        num_queries: int,
        cosine: bool,
        image: str,
        image_layer: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.pixel_decoder = pixel_decoder
        self.image = image
        self.image_layer = image_layer
        self.query_positions = nnx.Param(
            jax.random.normal(rngs.params(), (num_queries, embed_dim))
        )
        mask_dim = pixel_decoder.embed_dim
        self.head = RegionHead(embed_dim, mask_dim, dtype=dtype, rngs=rngs)
        super().__init__(embed_dim, num_queries, cosine=cosine, dtype=dtype, rngs=rngs)
        self.image_level = None
        if image == "pixels":
            self.image_dim = pixel_decoder.embed_dim
            self.image_level = pixel_decoder.map_levels[0]

    def embeddings(
        self,
        predictions: list[tuple[Float[Array, "B N D"], Float[Array, "B N E"]]],
        states: list[Float[Array, "B N D"]],
        pixels: PixelFeatures,
    ) -> Embeddings:
        """Of the predictions of some layers, the last of which is the last layer's, and
        the state of the queries before each layer and at the end.
        """
        queries, masks = zip(*predictions, strict=True)
        queries, masks = jnp.stack(queries, axis=1), jnp.stack(masks, axis=1)
        image = pixels.maps[0]
        if self.image == "queries":
            image = FeatureMap(states[self.image_layer][:, None])
        return Embeddings(Regions(queries, masks, pixels.mask_features), image)
