"""Maps of four sizes out of one (Li et al. 2022, "ViTDet")."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import max_pool
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import gelu, linear_init
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.typing import Array, DTypeLike, Float, Length

EPSILON = 1e-6


class SimplePyramid(nnx.Module):
    """One map four times as fine, twice as fine, as it is, and half as fine; each with
    a layer norm.

    Finer maps are narrower. No cell of the larger ones sees another's neighbours, and
    an odd row or column is kept in the smaller one.
    """

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        half, quarter = embed_dim // 2, embed_dim // 4
        self.feature_dims = (quarter, half, embed_dim, embed_dim)
        common = {"dtype": dtype, "rngs": rngs}
        self.up4_first = DoubleSize(embed_dim, half, **common)
        self.up4_norm = LayerNorm(half, epsilon=EPSILON)
        self.up4_second = DoubleSize(half, quarter, **common)
        self.up2 = DoubleSize(embed_dim, half, **common)
        self.norms = nnx.List(
            [LayerNorm(width, epsilon=EPSILON) for width in self.feature_dims]
        )

    def __call__(self, features: FeatureMap) -> tuple[FeatureMap, ...]:
        grid, size = features.grid, features.grid_size
        finest = self.up4_second(gelu(self.up4_norm(self.up4_first(grid))))
        maps = (
            FeatureMap(finest, None if size is None else 4 * size),
            FeatureMap(self.up2(grid), None if size is None else 2 * size),
            features,
            max_pool(features, 3, stride=2, padding=1),
        )
        return tuple(
            FeatureMap(norm(each.grid), each.grid_size)
            for norm, each in zip(self.norms, maps, strict=True)
        )

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        """Rows (or columns) of the maps for so many of the one."""
        return (4 * length, 2 * length, length, -(-length // 2))

    def macs(self, num_cells: int) -> Macs:
        quarter, half, width, _ = self.feature_dims
        return product(4 * num_cells, width, 2 * half) + product(
            16 * num_cells, half, quarter
        )


class DoubleSize(nnx.Module):
    """A transposed convolution of stride 2 whose 2x2 kernels do not overlap."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: nnx.Initializer = linear_init,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (2, 2, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_features))
        self.dtype = dtype

    def __call__(self, grid: Float[Array, "B h w D"]) -> Float[Array, "B _ _ E"]:
        batch, height, width, _ = grid.shape
        kernel = self.kernel[...].astype(self.dtype)
        out = jnp.einsum("bhwd,yxde->bhywxe", grid.astype(self.dtype), kernel)
        out = out.reshape(batch, 2 * height, 2 * width, -1)
        return out + self.bias[...].astype(self.dtype)[None, None, None]
