"""Vision transformer (method.md section 2), DINOv2's included."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.pyramid import SimplePyramid
from mlseg_jax.models.layers.resize import POSITION_RESIZES, resample
from mlseg_jax.models.layers.transformer import (
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

    A class token, and ``num_registers`` after it, take part in all blocks and are
    dropped at the end. ``image_size`` is the training crop, whose grid is that of the
    position table; other grids get the table resized as PyTorch does
    (``position_resize``, a row of `POSITION_RESIZES`). ``taps`` are the blocks (from 0)
    after which the normalised tokens are handed on, by default the last one; with a
    ``pyramid`` only that one, as four maps of strides 4, 8, 16 and 32 with a patch of
    16.

    DINOv2 has a layer scale, its giant a gated MLP. As in the transformers library, the
    table is never resized with the offset of 0.1 cells of DINOv2's own code.
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
        taps: tuple[int, ...] = (),
        num_registers: int = 0,
        layer_scale: float = 0.0,
        gated: bool = False,
        pyramid: bool = False,
        norm_epsilon: float = 1e-6,
        position_resize: str = "bicubic",
        drop_path_rate: float = 0.0,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.position_resize = position_resize
        self.taps = taps or (depth - 1,)
        self.feature_dims = (embed_dim,) * len(self.taps)
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
        registers = linear_init(rngs.params(), (num_registers, embed_dim))
        self.register_tokens = nnx.Param(registers) if num_registers else None
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                mlp_dim,
                epsilon=norm_epsilon,
                bias_init=nnx.initializers.normal(1e-6),
                layer_scale=layer_scale or None,
                gated=gated,
                dtype=dtype,
                rngs=rngs,
            ),
            depth,
            drop_path_rate=drop_path_rate,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )
        self.norm = LayerNorm(embed_dim, epsilon=norm_epsilon)
        self.multiple = 2 * patch_size
        self.pyramid = (
            SimplePyramid(embed_dim, dtype=dtype, rngs=rngs) if pyramid else None
        )
        if pyramid:
            self.feature_dims = self.pyramid.feature_dims
        self.num_registers = num_registers
        self.dtype = dtype

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        """Maps of stride ``patch_size``; sides are padded up to a multiple of it."""
        grid, tokens, mask = self._tokens(images, image_size)
        outputs = self.blocks.after(self.taps, tokens, mask, rng)
        return self._maps([self.norm(tokens) for tokens in outputs], grid)

    def with_classes(
        self,
        images: Float[Array, "B H W 3"],
        class_embeddings: Float[Array, "C D"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[tuple[FeatureMap, ...], Float[Array, "B C D"]]:
        """The maps, and what became of class tokens that joined for the last block."""
        grid, tokens, mask = self._tokens(images, image_size)
        last = self.blocks.depth - 1
        taps = (*self.taps[:-1], last - 1)
        *outputs, tokens = self.blocks.after(taps, tokens, mask, rng)
        batch, num_tokens, embed_dim = tokens.shape
        num_classes = class_embeddings.shape[0]
        classes = jnp.broadcast_to(
            class_embeddings.astype(tokens.dtype), (batch, num_classes, embed_dim)
        )
        if mask is not None:
            mask = jnp.pad(mask, [(0, 0), (0, num_classes)], constant_values=True)
        tokens = jnp.concatenate([tokens, classes], axis=1)
        outputs += self.blocks.after((last,), tokens, mask, rng, first=last)
        outputs = [self.norm(tokens) for tokens in outputs]
        return self._maps(outputs, grid), outputs[-1][:, num_tokens:]

    def _tokens(
        self, images: Array, image_size: Array | None
    ) -> tuple[FeatureMap, Array, Array | None]:
        """The grid of patches, all tokens (others first) and which of them are real."""
        patches = patchify(images, self.patch_size)
        batch, height, width, _ = patches.shape
        grid_size = None
        if image_size is not None:
            grid_size = -(-image_size // self.patch_size)
        grid = self.patch_projection(patches)
        grid = grid + self.positions(height, width, grid_size).astype(grid.dtype)
        table = self.position_table[...]
        class_token = (self.class_token[...] + table[0]).astype(grid.dtype)
        others = [class_token[None]]
        if self.register_tokens is not None:
            others.append(self.register_tokens[...].astype(grid.dtype))
        others = jnp.concatenate(others)[None]
        num_others = others.shape[1]
        others = jnp.broadcast_to(others, (batch, *others.shape[1:]))
        tokens = jnp.concatenate(
            [others, grid.reshape(batch, height * width, -1)], axis=1
        )
        grid = FeatureMap(grid, grid_size)
        return grid, tokens, _token_mask(grid.mask, num_others)

    def _maps(self, outputs: list[Array], grid: FeatureMap) -> tuple[FeatureMap, ...]:
        if self.pyramid is not None:
            return self.pyramid(self._map(outputs[-1], grid))
        return tuple(self._map(tokens, grid) for tokens in outputs)

    def _map(self, tokens: Array, grid: FeatureMap) -> FeatureMap:
        """The patches among the tokens, after the class token and the registers."""
        batch, height, width, embed_dim = grid.grid.shape
        patches = tokens[:, 1 + self.num_registers :][:, : height * width]
        return FeatureMap(
            patches.reshape(batch, height, width, embed_dim), grid.grid_size
        )

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        length = -(-length // self.patch_size)
        if self.pyramid is not None:
            return self.pyramid.grid_lengths(length)
        return (length,) * len(self.taps)

    def macs(self, size: tuple[int, int], num_classes: int = 0) -> Macs:
        """``num_classes`` join for the last block (`with_classes`)."""
        height, width = (-(-side // self.patch_size) for side in size)
        embed_dim = self.patch_projection.out_features
        num_tokens = height * width + 1 + self.num_registers
        patches = product(height * width, self.patch_projection.in_features, embed_dim)
        blocks = self.blocks.macs(num_tokens, depth=-1, attention_in_paper=False)
        num_tokens += num_classes
        blocks += self.blocks.macs(num_tokens, depth=1, attention_in_paper=False)
        if self.pyramid is not None:
            blocks += self.pyramid.macs(height * width)
        return patches + blocks + len(self.taps) * norm(num_tokens, embed_dim)

    def positions(
        self, height: int, width: int, grid_size: Int[Array, "B 2"] | None
    ) -> Float[Array, "B h w D"]:
        """The position table at a grid, or at each example's part of a canvas."""
        table = self.position_table[1:].reshape(1, *self.table_grid, -1)
        if grid_size is None and (height, width) == self.table_grid:
            return table
        matrix = POSITION_RESIZES[self.position_resize]
        table_height, table_width = self.table_grid
        if grid_size is None:
            rows = matrix(height, table_height)
            return resample(rows, matrix(width, table_width), table)
        rows = jax.vmap(lambda n: matrix(height, table_height, n))
        columns = jax.vmap(lambda n: matrix(width, table_width, n))
        return resample(rows(grid_size[:, 0]), columns(grid_size[:, 1]), table)


def _token_mask(
    grid_mask: Bool[Array, "B h w"] | None, num_others: int
) -> Bool[Array, "B L"] | None:
    if grid_mask is None:
        return None
    flat = grid_mask.reshape(grid_mask.shape[0], -1)
    return jnp.pad(flat, [(0, 0), (num_others, 0)], constant_values=True)
