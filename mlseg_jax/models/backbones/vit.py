"""Vision transformer (method.md section 2), DINOv2's and DINOv3's included."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap, TokenMap
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.contexts import PlacedTokens
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.pyramid import SimplePyramid
from mlseg_jax.models.layers.resize import POSITION_RESIZES, resample
from mlseg_jax.models.layers.rotary import grid_rotation
from mlseg_jax.models.layers.transformer import (
    MultiHeadAttention,
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

POSITIONS = ("table", "patches", "rotary")
"""A table with a row for the class token, a table of patches alone, turned queries and
keys (`layers.rotary`).
"""


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
    table is never resized with the offset of 0.1 cells of DINOv2's own code. DINOv3 has
    ``rotary`` positions instead, which training may stretch by a random factor of up to
    ``position_rescale``, and no ``key_bias`` (masks.md 7.3).

    A decoder may run the last ``held_back`` blocks itself, with tokens of its own among
    the patches (`join`). The backbone then hands on a `TokenMap` of what enters them.
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
        positions: str = "table",
        position_resize: str = "bicubic",
        position_rescale: float = 1.0,
        key_bias: bool = True,
        held_back: int = 0,
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
        self.class_token = nnx.Param(linear_init(rngs.params(), (embed_dim,)))
        # With "table" the first row is the class token's.
        num_rows = self.table_grid[0] * self.table_grid[1] + (positions == "table")
        table = linear_init(rngs.params(), (num_rows, embed_dim))
        self.position_table = None if positions == "rotary" else nnx.Param(table)
        self.position_rescale = position_rescale if positions == "rotary" else 1.0
        self.positions_of = positions
        self.head_dim = embed_dim // num_heads
        registers = linear_init(rngs.params(), (num_registers, embed_dim))
        self.register_tokens = nnx.Param(registers) if num_registers else None
        make_attention = functools.partial(MultiHeadAttention, key_bias=key_bias)
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                mlp_dim,
                epsilon=norm_epsilon,
                bias_init=nnx.initializers.normal(1e-6),
                make_attention=make_attention,
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
        self.multiple = patch_size if held_back else 2 * patch_size
        self.pyramid = (
            SimplePyramid(embed_dim, dtype=dtype, rngs=rngs) if pyramid else None
        )
        if pyramid:
            self.feature_dims = self.pyramid.feature_dims
        self.num_others = 1 + num_registers
        self.held_back = held_back
        self.dtype = dtype

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        """Maps of stride ``patch_size``; sides are padded up to a multiple of it."""
        scale, rng = self._draw_scale(rng)
        grid, tokens, context = self._tokens(images, image_size, scale)
        if self.held_back:
            last = self.blocks.depth - self.held_back - 1
            (tokens,) = self.blocks.after((last,), tokens, context, rng)
            others, patches = self.apart(tokens, grid)
            return (TokenMap(patches.grid, patches.grid_size, others, scale),)
        outputs = self.blocks.after(self.taps, tokens, context, rng)
        return self._maps([self.norm(tokens) for tokens in outputs], grid)

    def with_classes(
        self,
        images: Float[Array, "B H W 3"],
        class_embeddings: Float[Array, "C D"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[tuple[FeatureMap, ...], Float[Array, "B C D"]]:
        """The maps, and what became of class tokens that joined for the last block."""
        scale, rng = self._draw_scale(rng)
        grid, tokens, context = self._tokens(images, image_size, scale)
        last = self.blocks.depth - 1
        taps = (*self.taps[:-1], last - 1)
        *outputs, tokens = self.blocks.after(taps, tokens, context, rng)
        num_tokens = tokens.shape[1]
        others, patches = self.apart(tokens, grid)
        classes = class_embeddings.astype(tokens.dtype)[None]
        classes = jnp.broadcast_to(classes, (tokens.shape[0], *classes.shape[1:]))
        joined = TokenMap(patches.grid, patches.grid_size, others, scale)
        tokens, context = self.join(joined, classes)
        outputs += self.blocks.after((last,), tokens, context, rng, first=last)
        outputs = [self.norm(tokens) for tokens in outputs]
        return self._maps(outputs, grid), outputs[-1][:, num_tokens:]

    def join(
        self,
        tokens: TokenMap,
        joined: Float[Array, "B N D"],
        valid: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B L D"], PlacedTokens]:
        """All tokens with others ``joined`` after them, and what attention is told.

        Joined tokens that are not ``valid`` are seen by nobody.
        """
        patches = tokens.grid.reshape(joined.shape[0], -1, joined.shape[-1])
        own = [tokens.others, patches, joined.astype(patches.dtype)]
        mask = _token_mask(tokens.mask, self.num_others, joined.shape[1])
        if valid is not None:
            size = self.num_others + patches.shape[1]
            real = jnp.pad(valid, [(0, 0), (size, 0)], constant_values=True)
            mask = real if mask is None else mask & real
        return jnp.concatenate(own, axis=1), self._context(
            tokens, mask, tokens.position_scale
        )

    def apart(
        self, tokens: Float[Array, "B L D"], like: FeatureMap
    ) -> tuple[Float[Array, "B O D"], FeatureMap]:
        """Class token, registers and what was joined; and the patches as a map."""
        batch, height, width, _ = like.grid.shape
        ends = [self.num_others, self.num_others + height * width]
        others, patches, joined = jnp.split(tokens, ends, axis=1)
        patches = patches.reshape(batch, height, width, -1)
        others = jnp.concatenate([others, joined], axis=1)
        return others, FeatureMap(patches, like.grid_size)

    def _draw_scale(
        self, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""] | None, PRNGKeyArray | None]:
        """What coordinates are stretched by in training, one factor for a batch."""
        if rng is None or self.position_rescale == 1.0:
            return None, rng
        rng, own = jax.random.split(rng)
        most = math.log(self.position_rescale)
        return jnp.exp(jax.random.uniform(own, (), minval=-most, maxval=most)), rng

    def _tokens(
        self, images: Array, image_size: Array | None, scale: Array | None
    ) -> tuple[FeatureMap, Array, PlacedTokens]:
        """The grid of patches, all tokens (others first) and what attention is told."""
        patches = patchify(images, self.patch_size)
        batch, height, width, _ = patches.shape
        grid_size = None
        if image_size is not None:
            grid_size = -(-image_size // self.patch_size)
        grid = self.patch_projection(patches)
        class_token = self.class_token[...]
        if self.position_table is not None:
            grid = grid + self.positions(height, width, grid_size).astype(grid.dtype)
        if self.positions_of == "table":
            class_token = class_token + self.position_table[0]
        others = [class_token[None].astype(grid.dtype)]
        if self.register_tokens is not None:
            others.append(self.register_tokens[...].astype(grid.dtype))
        others = jnp.concatenate(others)[None]
        others = jnp.broadcast_to(others, (batch, *others.shape[1:]))
        tokens = jnp.concatenate(
            [others, grid.reshape(batch, height * width, -1)], axis=1
        )
        grid = FeatureMap(grid, grid_size)
        mask = _token_mask(grid.mask, self.num_others)
        return grid, tokens, self._context(grid, mask, scale)

    def _context(
        self, grid: FeatureMap, mask: Bool[Array, "B L"] | None, scale: Array | None
    ) -> PlacedTokens:
        _, height, width, _ = grid.grid.shape
        rotation = None
        if self.positions_of == "rotary":
            size = {"grid_size": grid.grid_size, "scale": scale}
            rotation = grid_rotation(height, width, self.head_dim, **size)
        return PlacedTokens(self.num_others, height * width, mask, rotation)

    def _maps(self, outputs: list[Array], grid: FeatureMap) -> tuple[FeatureMap, ...]:
        if self.pyramid is not None:
            return self.pyramid(self._map(outputs[-1], grid))
        return tuple(self._map(tokens, grid) for tokens in outputs)

    def _map(self, tokens: Array, grid: FeatureMap) -> FeatureMap:
        """The patches among the tokens, after the class token and the registers."""
        return self.apart(tokens, grid)[1]

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        length = -(-length // self.patch_size)
        if self.pyramid is not None:
            return self.pyramid.grid_lengths(length)
        return (length,) * len(self.taps)

    def macs(self, size: tuple[int, int], num_classes: int = 0) -> Macs:
        """``num_classes`` join for the last block (`with_classes`); those that are held
        back are the decoder's (`joint_macs`).
        """
        height, width = (-(-side // self.patch_size) for side in size)
        embed_dim = self.patch_projection.out_features
        num_patches = height * width
        num_tokens = num_patches + self.num_others
        count = product(num_patches, self.patch_projection.in_features, embed_dim)
        if self.held_back:
            return count + self._blocks_macs(num_tokens, -self.held_back)
        count += self._blocks_macs(num_tokens, -1)
        num_tokens += num_classes
        count += self._blocks_macs(num_tokens, 1)
        if self.pyramid is not None:
            count += self.pyramid.macs(num_patches)
        return count + len(self.taps) * norm(num_tokens, embed_dim)

    def joint_macs(self, num_patches: int, num_joined: int) -> Macs:
        """Of the blocks that are held back, and one norm after them."""
        num_tokens = num_patches + self.num_others + num_joined
        count = self._blocks_macs(num_tokens, self.held_back)
        return count + norm(num_tokens, self.patch_projection.out_features)

    def _blocks_macs(self, num_tokens: int, depth: int) -> Macs:
        return self.blocks.macs(num_tokens, depth=depth, attention_in_paper=False)

    def positions(
        self, height: int, width: int, grid_size: Int[Array, "B 2"] | None
    ) -> Float[Array, "B h w D"]:
        """The position table at a grid, or at each example's part of a canvas."""
        first = 1 if self.positions_of == "table" else 0
        table = self.position_table[first:].reshape(1, *self.table_grid, -1)
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
    grid_mask: Bool[Array, "B h w"] | None, num_before: int, num_after: int = 0
) -> Bool[Array, "B L"] | None:
    if grid_mask is None:
        return None
    flat = grid_mask.reshape(grid_mask.shape[0], -1)
    return jnp.pad(flat, [(0, 0), (num_before, num_after)], constant_values=True)
