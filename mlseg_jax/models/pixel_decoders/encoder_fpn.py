"""MaskFormer's pixel decoder with an encoder before its pyramid (masks.md 3.1)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import Conv
from mlseg_jax.models.layers.group_norm import xavier_fill
from mlseg_jax.models.layers.position_embedding import map_positions
from mlseg_jax.models.layers.post_norm import PostNormLayer, encode
from mlseg_jax.models.layers.transformer import torch_uniform
from mlseg_jax.models.macs import Macs
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder, PixelFeatures
from mlseg_jax.models.pixel_decoders.fpn import NUM_MAPS, FeaturePyramid, map_levels
from mlseg_jax.typing import DTypeLike, PRNGKeyArray


class EncoderFPNDecoder(AbstractPixelDecoder):
    """DETR's encoder on the coarsest map, which is the memory, and a pyramid on it."""

    def __init__(
        self,
        *,
        feature_dims: tuple[int, ...],
        embed_dim: int,
        num_groups: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        dropout_rate: float,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = self.memory_dim = embed_dim
        self.map_levels = map_levels(len(feature_dims))
        *fine, last = feature_dims
        self.input_projection = Conv(
            last, embed_dim, kernel_init=xavier_fill, dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List(
            [
                PostNormLayer(
                    embed_dim,
                    num_heads,
                    mlp_dim,
                    dropout_rate=dropout_rate,
                    kernel_init=nnx.initializers.glorot_uniform(),
                    mlp_bias_init=torch_uniform,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )
        self.pyramid = FeaturePyramid(
            (*fine, embed_dim), embed_dim, num_groups=num_groups, dtype=dtype, rngs=rngs
        )
        self.scan = scan
        self.remat = remat

    def __call__(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> PixelFeatures:
        *fine, last = features
        last = self.input_projection(last)
        shape = last.grid.shape
        tokens = last.grid.reshape(shape[0], -1, shape[-1])
        positions = map_positions(last, shape[-1]).astype(tokens.dtype)
        positions = positions.reshape(positions.shape[0], *tokens.shape[1:])
        positions = jnp.broadcast_to(positions, tokens.shape)
        mask = None if last.mask is None else last.mask.reshape(shape[0], -1)
        how = {"scan": self.scan or rng is not None, "remat": self.remat}
        tokens = encode(self.layers, tokens, positions, mask, rng, **how)
        memory = FeatureMap(tokens.reshape(shape), last.grid_size)
        maps, masks = self.pyramid((*fine, memory))
        return PixelFeatures(masks, maps[:NUM_MAPS], memory)

    def macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        count = self.input_projection.macs(grids[-1]) + self.pyramid.macs(grids)
        tokens = grids[-1][0] * grids[-1][1]
        return sum((layer.macs(tokens, tokens) for layer in self.layers), count)
