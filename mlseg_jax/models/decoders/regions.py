"""What decoders of regions have in common: queries become classes and masks
(masks.md 2.1).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.dot_product import unit_length
from mlseg_jax.models.interfaces import (
    AbstractDecoder,
    AbstractPixelDecoder,
    Embeddings,
    FeatureMap,
    PixelFeatures,
    Regions,
)
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import torch_uniform
from mlseg_jax.models.macs import Macs, activation, in_full, norm, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray

IMAGES = ("queries", "pixels")
"""What the multi-label head may look at."""


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
        self.mask_layers = nnx.List(
            [
                nnx.Linear(
                    embed_dim,
                    features,
                    kernel_init=torch_uniform(embed_dim),
                    bias_init=torch_uniform(embed_dim),
                    dtype=dtype,
                    rngs=rngs,
                )
                for features in (embed_dim, embed_dim, mask_dim)
            ]
        )

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


class AbstractRegionDecoder(AbstractDecoder):
    """Object queries that look at the features of a pixel decoder.

    Class queries are compared with object queries by their cosine (``cosine``, as in
    the paper), or by a dot product with a bias for each class. No-object is one more
    row, of the decoder's own. The multi-label head looks at the queries after
    ``image_layer`` layers, or at the coarsest map of the pixel decoder (``image``).
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
        self.embed_dim = self.image_dim = embed_dim
        self.num_queries = num_queries
        self.class_bias = not cosine
        self.image = image
        self.image_layer = image_layer
        self.image_level = None
        if image == "pixels":
            self.image_dim = pixel_decoder.embed_dim
            self.image_level = pixel_decoder.map_levels[0]
        self.query_positions = nnx.Param(
            jax.random.normal(rngs.params(), (num_queries, embed_dim))
        )
        mask_dim = pixel_decoder.embed_dim
        self.head = RegionHead(embed_dim, mask_dim, dtype=dtype, rngs=rngs)
        initial = functools.partial(torch_uniform(embed_dim), rngs.params())
        self.no_object = nnx.Param(initial((embed_dim,)))
        self.no_object_bias = None if cosine else nnx.Param(initial((1,)))
        self.dtype = dtype

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

    def classify(
        self,
        elements: Regions,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B P N K+1"]:
        """Scores in float32; the last column is no-object."""
        queries = elements.queries
        own = jnp.broadcast_to(
            self.no_object[...], (class_queries.shape[0], 1, self.embed_dim)
        )
        rows = jnp.concatenate([class_queries, own.astype(class_queries.dtype)], axis=1)
        rows = rows.astype(queries.dtype)
        if self.no_object_bias is None:
            queries, rows = unit_length(queries), unit_length(rows)
        scores = jnp.einsum(
            "bpnd,bkd->bpnk", queries, rows, preferred_element_type=jnp.float32
        )
        if self.no_object_bias is None:
            return scores
        # Those of the classes are added where they are gathered.
        ranks = class_queries.shape[1]
        own_bias = jnp.pad(self.no_object_bias[...], (ranks, 0))
        return scores + own_bias.reshape(1, 1, 1, -1)

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        """As in evaluation: of the last prediction alone."""
        return in_full(product(*grid, num_ranks + 1, self.embed_dim))
