"""Group normalisation of feature maps, and a convolution with it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import Conv
from mlseg_jax.models.macs import Macs, activation, norm
from mlseg_jax.typing import Array, DTypeLike

xavier_fill = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""Detectron2's for convolutions of pixel decoders: +-sqrt(3 / fan_in)."""


class GroupNorm(nnx.Module):
    """Normalises groups of channels over the real part of each picture.

    Statistics are float32 and take two passes, mean first: the difference of squares
    has no digits left where a group hardly varies.
    """

    def __init__(self, features: int, num_groups: int, *, epsilon: float = 1e-5):
        if features % num_groups:
            raise UserError(
                f"model.pixel_decoder.num_groups is {num_groups}, which does not "
                f"divide a width of {features}; change it or embed_dim."
            )
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.num_groups = num_groups
        self.epsilon = epsilon

    def __call__(self, features: FeatureMap) -> FeatureMap:
        grid = features.grid
        batch, height, width, dim = grid.shape
        shape = (batch, height * width, self.num_groups, dim // self.num_groups)
        values = grid.astype(jnp.float32).reshape(shape)
        mask = None
        count = jnp.full((1, 1, 1, 1), height * width)
        if features.mask is not None:
            mask = features.mask.reshape(batch, -1, 1, 1)
            count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)

        def mean(x: Array) -> Array:
            total = jnp.sum(x, axis=1, keepdims=True, where=mask)
            return jnp.mean(total, axis=3, keepdims=True) / count

        values = values - mean(values)
        values = values * jax.lax.rsqrt(mean(values * values) + self.epsilon)
        values = values.reshape(grid.shape) * self.scale[...][None, None, None]
        values = values + self.bias[...][None, None, None]
        return FeatureMap(values.astype(grid.dtype), features.grid_size)


class GroupNormUnit(nnx.Module):
    """A convolution, a group norm and, unless ``None``, an activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: int = 1,
        *,
        num_groups: int,
        use_bias: bool = False,
        kernel_init: nnx.Initializer = xavier_fill,
        activation: Callable[[Array], Array] | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            window,
            use_bias=use_bias,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = GroupNorm(out_features, num_groups)
        self.activation = activation

    def __call__(self, features: FeatureMap) -> FeatureMap:
        features = self.norm(self.conv(features))
        if self.activation is None:
            return features
        return FeatureMap(self.activation(features.grid), features.grid_size)

    def macs(self, size: tuple[int, int]) -> Macs:
        count = self.conv.macs(size) + norm(*size, self.conv.kernel.shape[-1])
        if self.activation is None:
            return count
        return count + activation(*size, self.conv.kernel.shape[-1])
