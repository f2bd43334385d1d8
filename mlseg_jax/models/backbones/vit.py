"""Vision transformer (method.md section 2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.resize import bicubic_matrix, resample
from mlseg_jax.models.layers.transformer import (
    BlockStack,
    TransformerBlock,
    linear_init,
)
from mlseg_jax.models.macs import Macs, norm, product
from mlseg_jax.typing import (
    Array,
    Bool,
    DTypeLike,
    Float,
    Int,
    Length,
    PRNGKeyArray,
)


class ViT(AbstractBackbone):
    """Patch tokens through ``depth`` pre-norm blocks, then one layer norm.

    A class token takes part in all blocks and is dropped at the end. ``image_size`` is
    the training crop, whose grid is that of the position table; other grids get the
    table resized with PyTorch's bicubic.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        drop_path_rate: float = 0.0,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.feature_dims = (embed_dim,)
        self.table_grid = tuple(-(-side // patch_size) for side in image_size)
        self.patch_projection = nnx.Linear(
            patch_size * patch_size * 3,
            embed_dim,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
            dtype=dtype,
            rngs=rngs,
        )
        num_patches = self.table_grid[0] * self.table_grid[1]
        self.class_token = nnx.Param(linear_init(rngs.params(), (embed_dim,)))
        # The first row is the class token's.
        self.position_table = nnx.Param(
            linear_init(rngs.params(), (num_patches + 1, embed_dim))
        )
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                mlp_dim,
                epsilon=1e-6,
                bias_init=nnx.initializers.normal(1e-6),
                dtype=dtype,
                rngs=rngs,
            ),
            depth,
            drop_path_rate=drop_path_rate,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )
        self.norm = LayerNorm(embed_dim, epsilon=1e-6)
        self.dtype = dtype

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap]:
        """One map of stride ``patch_size``; sides are padded up to a multiple of
        it.
        """
        patches = patchify(images, self.patch_size)
        batch, height, width, _ = patches.shape
        grid_size = None
        if image_size is not None:
            (grid_size,) = self.grid_lengths(image_size)
        grid = self.patch_projection(patches)
        grid = grid + self.positions(height, width, grid_size).astype(grid.dtype)
        table = self.position_table[...]
        class_token = (self.class_token[...] + table[0]).astype(grid.dtype)
        class_token = jnp.broadcast_to(class_token, (batch, 1, grid.shape[-1]))
        tokens = jnp.concatenate(
            [class_token, grid.reshape(batch, height * width, -1)], axis=1
        )
        mask = _token_mask(FeatureMap(grid, grid_size).mask)
        tokens = self.norm(self.blocks(tokens, mask, rng))
        grid = tokens[:, 1:].reshape(batch, height, width, -1)
        return (FeatureMap(grid, grid_size),)

    def grid_lengths(self, length: Length) -> tuple[Length]:
        return (-(-length // self.patch_size),)

    def macs(self, size: tuple[int, int]) -> Macs:
        (height,), (width,) = map(self.grid_lengths, size)
        embed_dim = self.feature_dims[0]
        num_tokens = height * width + 1
        patches = product(height * width, self.patch_projection.in_features, embed_dim)
        blocks = self.blocks.macs(num_tokens, attention_in_paper=False)
        return patches + blocks + norm(num_tokens, embed_dim)

    def positions(
        self, height: int, width: int, grid_size: Int[Array, "B 2"] | None
    ) -> Float[Array, "B h w D"]:
        """The position table at a grid, or at each example's part of a canvas."""
        table = self.position_table[1:].reshape(1, *self.table_grid, -1)
        if grid_size is None and (height, width) == self.table_grid:
            return table
        table_height, table_width = self.table_grid
        if grid_size is None:
            rows = bicubic_matrix(height, table_height)
            return resample(rows, bicubic_matrix(width, table_width), table)
        rows = jax.vmap(lambda n: bicubic_matrix(height, table_height, n))
        columns = jax.vmap(lambda n: bicubic_matrix(width, table_width, n))
        return resample(rows(grid_size[:, 0]), columns(grid_size[:, 1]), table)


def _token_mask(grid_mask: Bool[Array, "B h w"] | None) -> Bool[Array, "B L"] | None:
    if grid_mask is None:
        return None
    flat = grid_mask.reshape(grid_mask.shape[0], -1)
    return jnp.pad(flat, [(0, 0), (1, 0)], constant_values=True)
