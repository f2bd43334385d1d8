"""Mask2Former's pixel decoder: multi-scale deformable attention (masks.md 1)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.block_stack import run_layers
from mlseg_jax.models.layers.conv import Conv, resize_like
from mlseg_jax.models.layers.deformable_attention import DeformableLayer, Grids
from mlseg_jax.models.layers.group_norm import GroupNormUnit, xavier_fill
from mlseg_jax.models.layers.position_embedding import map_positions
from mlseg_jax.models.macs import Macs
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder, PixelFeatures
from mlseg_jax.models.pixel_decoders.fpn import map_levels
from mlseg_jax.typing import DTypeLike, PRNGKeyArray


class DeformableDecoder(AbstractPixelDecoder):
    """Cells of the three coarsest maps look at each other; finer maps are added.

    Levels go from coarse to fine, as do the parameters of each.
    """

    def __init__(
        self,
        *,
        feature_dims: tuple[int, ...],
        embed_dim: int,
        num_groups: int,
        depth: int,
        num_heads: int,
        num_points: int,
        mlp_dim: int,
        dropout_rate: float,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = self.memory_dim = embed_dim
        self.map_levels = map_levels(len(feature_dims))
        num_levels = len(self.map_levels)
        unit = functools.partial(
            GroupNormUnit, num_groups=num_groups, dtype=dtype, rngs=rngs
        )
        self.input_projections = nnx.List(
            [
                unit(
                    feature_dims[level],
                    embed_dim,
                    use_bias=True,
                    kernel_init=nnx.initializers.glorot_uniform(),
                )
                for level in self.map_levels
            ]
        )
        self.level_embeddings = nnx.Param(
            jax.random.normal(rngs.params(), (num_levels, embed_dim))
        )
        self.layers = nnx.List(
            [
                DeformableLayer(
                    embed_dim,
                    num_heads,
                    num_levels,
                    num_points,
                    mlp_dim,
                    dropout_rate=dropout_rate,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )
        fine = feature_dims[:-num_levels]
        self.laterals = nnx.List([unit(dim, embed_dim) for dim in fine])
        self.smoothings = nnx.List(
            [unit(embed_dim, embed_dim, 3, activation=jax.nn.relu) for _ in fine]
        )
        self.mask_features = Conv(
            embed_dim, embed_dim, kernel_init=xavier_fill, dtype=dtype, rngs=rngs
        )
        self.scan = scan
        self.remat = remat

    def __call__(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> PixelFeatures:
        maps = tuple(
            projection(features[level])
            for level, projection in zip(
                self.map_levels, self.input_projections, strict=True
            )
        )
        grids = Grids.of(maps)
        tokens = grids.join([each.grid for each in maps])
        levels = self.level_embeddings[...][:, None, None, None]
        positions = grids.join(
            [
                map_positions(each, self.embed_dim) + level
                for each, level in zip(maps, levels, strict=True)
            ]
        ).astype(tokens.dtype)

        def look(layer, place, tokens, rng):
            return layer(tokens, positions, grids, rng), None

        how = {"scan": self.scan or rng is not None, "remat": self.remat}
        tokens, _ = run_layers(self.layers, look, tokens, rng, **how)
        maps = grids.split(tokens)
        finest = maps[-1]
        fine = features[: -len(maps)]
        units = zip(self.laterals, self.smoothings, fine, strict=True)
        for lateral, smoothing, each in reversed(list(units)):
            added = lateral(each)
            grid = added.grid + resize_like(finest, added).grid
            finest = smoothing(FeatureMap(pin_examples(grid), added.grid_size))
        masks = self.mask_features(finest)
        masks = FeatureMap(masks.grid.astype(jnp.float32), masks.grid_size)
        return PixelFeatures(masks, maps, maps[0])

    def macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        tokens, count = 0, self.mask_features.macs(grids[0])
        for level, projection in zip(
            self.map_levels, self.input_projections, strict=True
        ):
            tokens += grids[level][0] * grids[level][1]
            count += projection.macs(grids[level])
        for units in (self.laterals, self.smoothings):
            for unit, grid in zip(units, grids[: -len(self.map_levels)], strict=True):
                count += unit.macs(grid)
        return sum((layer.macs(tokens) for layer in self.layers), count)
