"""MaskFormer's pixel decoder: a feature pyramid (masks.md 3.1)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import Conv, nearest_like
from mlseg_jax.models.layers.group_norm import GroupNormUnit, xavier_fill
from mlseg_jax.models.macs import Macs
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder, PixelFeatures
from mlseg_jax.typing import DTypeLike, PRNGKeyArray

NUM_MAPS = 3
"""How many of the coarsest maps object queries may look at."""


class FeaturePyramid(nnx.Module):
    """From coarse to fine: the map so far, enlarged, plus the next one; then 3 x 3."""

    def __init__(
        self,
        feature_dims: tuple[int, ...],
        embed_dim: int,
        *,
        num_groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        unit = functools.partial(
            GroupNormUnit,
            out_features=embed_dim,
            num_groups=num_groups,
            dtype=dtype,
            rngs=rngs,
        )
        smooth = functools.partial(unit, window=3, activation=jax.nn.relu)
        *fine, last = feature_dims
        self.stem = smooth(last)
        # From fine to coarse, as the maps are.
        self.laterals = nnx.List([unit(dim) for dim in fine])
        self.smoothings = nnx.List([smooth(embed_dim) for _ in fine])
        self.mask_features = Conv(
            embed_dim, embed_dim, 3, kernel_init=xavier_fill, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, features: tuple[FeatureMap, ...]
    ) -> tuple[tuple[FeatureMap, ...], FeatureMap]:
        """All maps from coarse to fine, and the mask features."""
        *fine, last = features
        maps = [self.stem(last)]
        units = zip(self.laterals, self.smoothings, fine, strict=True)
        for lateral, smoothing, each in reversed(list(units)):
            added = lateral(each)
            grid = added.grid + nearest_like(maps[-1], added).grid
            out = smoothing(FeatureMap(grid, added.grid_size))
            maps.append(FeatureMap(pin_examples(out.grid), out.grid_size))
        masks = self.mask_features(maps[-1])
        masks = FeatureMap(masks.grid.astype(jnp.float32), masks.grid_size)
        return tuple(maps), masks

    def macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        *fine, last = grids
        count = self.stem.macs(last) + self.mask_features.macs(grids[0])
        for units in (self.laterals, self.smoothings):
            for unit, grid in zip(units, fine, strict=True):
                count += unit.macs(grid)
        return count


def map_levels(count: int) -> tuple[int, ...]:
    """Numbers of the coarsest of so many maps, coarsest first."""
    return tuple(range(count))[::-1][:NUM_MAPS]


class FPNDecoder(AbstractPixelDecoder):
    """A `FeaturePyramid` on the backbone's maps; the memory is its coarsest one."""

    def __init__(
        self,
        *,
        feature_dims: tuple[int, ...],
        embed_dim: int,
        num_groups: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = embed_dim
        self.memory_dim = feature_dims[-1]
        self.map_levels = map_levels(len(feature_dims))
        self.pyramid = FeaturePyramid(
            feature_dims, embed_dim, num_groups=num_groups, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> PixelFeatures:
        maps, masks = self.pyramid(features)
        return PixelFeatures(masks, maps[:NUM_MAPS], features[-1])

    def macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        return self.pyramid.macs(grids)
