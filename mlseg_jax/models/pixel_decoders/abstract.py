"""What a pixel decoder is to the decoder of regions that stands on it."""

import abc
import dataclasses

import jax
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelFeatures:
    """What a pixel decoder makes of the backbone's maps.

    Attributes:
      mask_features: what masks are products with, on the finest grid; in float32.
      maps: what object queries may look at, from coarse to fine, all of one width.
      memory: the one map that queries look at which look at one only.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    mask_features: FeatureMap
    maps: tuple[FeatureMap, ...]
    memory: FeatureMap


class AbstractPixelDecoder(nnx.Module):
    """The backbone's maps to features of pixels, for a decoder of regions.

    Attributes:
      embed_dim: width of ``PixelFeatures.maps`` and of the mask features.
      memory_dim: width of ``PixelFeatures.memory``.
      map_levels: which of the backbone's maps has the grid of each of ``maps``.
    """

    embed_dim: int
    memory_dim: int
    map_levels: tuple[int, ...]

    @abc.abstractmethod
    def __call__(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None
    ) -> PixelFeatures:
        """``rng=None`` is evaluation."""

    @abc.abstractmethod
    def macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """For one picture whose backbone maps have these grids."""
