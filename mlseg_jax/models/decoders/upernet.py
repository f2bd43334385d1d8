"""UPerNet: pyramid pooling and a feature pyramid (Xiao et al. 2018; method.md 9.1)."""

import functools

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.decoders.dot_product import dot_products
from mlseg_jax.models.interfaces import AbstractDecoder, Embeddings, FeatureMap
from mlseg_jax.models.layers.conv import ConvUnit, resize_like
from mlseg_jax.models.layers.dropout import channel_dropout
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray

POOL_BINS = (1, 2, 3, 6)


class UPerNetDecoder(AbstractDecoder):
    """All maps of the backbone, brought to one width, added from coarse to fine and
    fused on the finest grid.

    The multi-label head looks at the backbone's last map itself.
    """

    def __init__(
        self,
        *,
        feature_dims: tuple[int, ...],
        embed_dim: int,
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        *fine, last = feature_dims
        self.embed_dim = embed_dim
        self.image_dim = last
        self.level, self.image_level = 0, -1
        self.class_bias = True
        unit = functools.partial(ConvUnit, dtype=dtype, rngs=rngs)
        pooled = last + len(POOL_BINS) * embed_dim
        self.pools = nnx.List([unit(last, embed_dim) for _ in POOL_BINS])
        self.bottleneck = unit(pooled, embed_dim, 3)
        self.laterals = nnx.List([unit(dim, embed_dim) for dim in fine])
        self.smoothings = nnx.List([unit(embed_dim, embed_dim, 3) for _ in fine])
        self.fusion = unit(len(feature_dims) * embed_dim, embed_dim, 3)
        self.dropout_rate = dropout_rate

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        train = rng is not None
        *fine, last = features
        maps = [self._pool(last, train)]
        laterals = [
            unit(features, train)
            for unit, features in zip(self.laterals, fine, strict=True)
        ]
        for lateral in reversed(laterals):
            grid = lateral.grid + resize_like(maps[0], lateral).grid
            maps.insert(0, FeatureMap(pin_examples(grid), lateral.grid_size))
        smooth = [
            unit(features, train)
            for unit, features in zip(self.smoothings, maps[:-1], strict=True)
        ]
        maps = [*smooth, maps[-1]]
        joined = jnp.concatenate([resize_like(x, maps[0]).grid for x in maps], axis=-1)
        joined = FeatureMap(joined, maps[0].grid_size)
        pixels = self.fusion(joined, train)
        grid = pin_examples(channel_dropout(pixels.grid, self.dropout_rate, rng))
        return Embeddings(FeatureMap(grid, pixels.grid_size), last)

    def _pool(self, last: FeatureMap, train: bool) -> FeatureMap:
        """The coarsest map beside its averages over a few bins."""
        grids = [last.grid]
        for bins, unit in zip(POOL_BINS, self.pools, strict=True):
            pooled = FeatureMap(adaptive_pool(last.grid, bins, last.grid_size))
            grids.append(resize_like(unit(pooled, train), last).grid)
        joined = FeatureMap(jnp.concatenate(grids, axis=-1), last.grid_size)
        return self.bottleneck(joined, train)

    def classify(
        self,
        pixels: FeatureMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w K"]:
        return dot_products(pixels, class_queries)

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """Convolutions; resizing is interpolation, whose products are few."""
        count = self.bottleneck.macs(grids[-1]) + self.fusion.macs(grids[0])
        for bins, unit in zip(POOL_BINS, self.pools, strict=True):
            count += activation(*grids[-1], self.image_dim) + unit.macs((bins, bins))
        for units in (self.laterals, self.smoothings):
            for unit, grid in zip(units, grids[:-1], strict=True):
                count += unit.macs(grid)
        return count

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        return product(*grid, num_ranks, self.embed_dim)
