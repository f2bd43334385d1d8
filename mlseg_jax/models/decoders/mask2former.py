"""Mask2Former's decoder: queries look into the masks they have so far (masks.md 2, and
6.1 of clips).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.queries import AbstractQueryDecoder
from mlseg_jax.models.interfaces import (
    Embeddings,
    FeatureMap,
    mask_products,
)
from mlseg_jax.models.layers.block_stack import run_layers
from mlseg_jax.models.layers.clips import side_by_side, to_clip, to_frames
from mlseg_jax.models.layers.conv import resize_like
from mlseg_jax.models.layers.position_embedding import map_positions, time_positions
from mlseg_jax.models.layers.query_layer import QueryLayer
from mlseg_jax.models.macs import Macs, in_full, product
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder, PixelFeatures
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class Mask2FormerDecoder(AbstractQueryDecoder):
    """Layers take turns at the maps, from coarse to fine, and each sees of its map what
    the prediction before it calls the query's mask.

    There is a prediction before the first layer and one after each. A clip's queries
    look at all of its frames, and have a mask in each; no parameter is of time.
    """

    def __init__(
        self,
        pixel_decoder: AbstractPixelDecoder,
        *,
        embed_dim: int,
        num_queries: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        cosine: bool,
        image: str = "queries",
        image_layer: int = 3,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            pixel_decoder,
            embed_dim=embed_dim,
            num_queries=num_queries,
            cosine=cosine,
            image=image,
            image_layer=image_layer,
            dtype=dtype,
            rngs=rngs,
        )
        normal = jax.random.normal
        self.query_features = nnx.Param(normal(rngs.params(), (num_queries, embed_dim)))
        num_levels = len(pixel_decoder.map_levels)
        self.level_embeddings = nnx.Param(
            normal(rngs.params(), (num_levels, embed_dim))
        )
        self.layers = nnx.List(
            [
                QueryLayer(
                    embed_dim,
                    num_heads,
                    mlp_dim,
                    picture_first=True,
                    # Weights of attention inside masks are never dropped.
                    dropout_rate=0.0,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )
        self.scan = scan
        self.remat = remat

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        batch, *frames = features[0].grid.shape[:-3]
        num_frames = frames[0] if frames else None
        pixels = self.pixel_decoder(tuple(map(to_frames, features)), rng)
        levels = [
            self._level(each, embedding, pixels.mask_features, num_frames)
            for each, embedding in zip(
                pixels.maps, self.level_embeddings[...], strict=True
            )
        ]
        positions = self.query_positions[...][None].astype(self.dtype)
        queries = self.query_features[...][None].astype(self.dtype)
        queries = jnp.broadcast_to(queries, (batch, *queries.shape[1:]))
        first = self.head(queries)

        def look(layer, place, state, rng):
            queries, mask_embeddings = state
            keys, values, masks = levels[place]
            mask = attention_mask(mask_embeddings, masks)
            # Nothing is dropped in these layers.
            queries = layer(queries, positions, keys, values, mask)
            prediction = self.head(queries)
            return (queries, prediction[1]), (queries, prediction)

        how = {"scan": self.scan or rng is not None, "remat": self.remat}
        how |= {"period": len(levels)}
        _, kept = run_layers(self.layers, look, (queries, first[1]), **how)
        later, predictions = zip(*kept, strict=True)
        predictions = [first, *predictions]
        supervised = predictions if rng is not None else predictions[-1:]
        pixels = PixelFeatures(
            to_clip(pixels.mask_features, num_frames),
            tuple(side_by_side(to_clip(each, num_frames)) for each in pixels.maps),
            pixels.memory,
        )
        return self.embeddings(supervised, [queries, *later], pixels)

    def _level(
        self,
        features: FeatureMap,
        embedding: Array,
        mask_features: FeatureMap,
        num_frames: int | None,
    ) -> tuple[Array, Array, FeatureMap]:
        """Keys and values of a map, and mask features on its grid: enlarging and
        shrinking are linear, so masks need not be made on the finest grid first.

        Those of a clip are of all its frames, in the order of time.
        """
        masks = jax.lax.stop_gradient(resize_like(mask_features, features))
        dim = features.grid.shape[-1]
        values = features.grid + embedding[None, None, None].astype(self.dtype)
        keys = values + map_positions(features, dim).astype(self.dtype)
        values, keys = (
            to_clip(FeatureMap(each, features.grid_size), num_frames).grid
            for each in (values, keys)
        )
        if num_frames is not None:
            times = jnp.asarray(time_positions(num_frames, dim), self.dtype)
            keys = keys + times[None, :, None, None]
        shape = (keys.shape[0], -1, dim)
        masks = to_clip(masks, num_frames)
        return keys.reshape(shape), values.reshape(shape), masks

    def embed_macs(
        self, grids: tuple[tuple[int, int], ...], num_frames: int = 1
    ) -> Macs:
        """The published masks were made on the finest grid, by every prediction."""
        queries = self.num_queries
        count = num_frames * self.pixel_decoder.macs(grids)
        mask_dim = self.pixel_decoder.embed_dim
        levels, inner = self.pixel_decoder.map_levels, Macs()
        for i, layer in enumerate(self.layers):
            cells = num_frames * math.prod(grids[levels[i % len(levels)]])
            count += layer.macs(queries, cells)
            inner += product(cells, queries, mask_dim)
        count += (1 + len(self.layers)) * self.head.macs(queries)
        finest = product(num_frames, *grids[self.level], queries, mask_dim)
        published = (1 + len(self.layers)) * finest.exact
        return in_full(count) + Macs((inner + finest).exact, published)


def attention_mask(
    mask_embeddings: Float[Array, "B N E"], features: FeatureMap
) -> Bool[Array, "B N L"]:
    """Cells of each query's mask; all cells of the picture where it has none. L are
    the cells of all frames of a clip.
    """
    logits = mask_products(jax.lax.stop_gradient(mask_embeddings), features.grid)
    logits = logits.reshape(*logits.shape[:2], -1)
    seen = logits >= 0.0
    inside = jnp.ones((1, 1, logits.shape[2]), bool)
    if features.mask is not None:
        # All frames of a clip have the same cells inside.
        shape = features.grid.shape[:-1]
        inside = features.mask.reshape(shape[0], *(1,) * (len(shape) - 3), *shape[-2:])
        inside = jnp.broadcast_to(inside, shape).reshape(shape[0], 1, -1)
        seen &= inside
    return jnp.where(jnp.any(seen, axis=-1, keepdims=True), seen, inside)
