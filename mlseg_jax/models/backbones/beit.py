"""BEiT with a feature pyramid, as UPerNet uses it (method.md 9.2)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.conv import max_pool
from mlseg_jax.models.layers.norm import BatchNorm
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.pyramid import DoubleSize
from mlseg_jax.models.layers.relative_position import (
    biased_attention,
    relative_position_bias,
)
from mlseg_jax.models.layers.resize import bilinear_matrix, resample
from mlseg_jax.models.layers.transformer import (
    TransformerBlock,
    gelu,
    linear_init,
)
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.typing import Array, DTypeLike, Float, Int, Length, PRNGKeyArray


class Beit(AbstractBackbone):
    """A vision transformer whose positions are biases in every attention.

    ``image_size`` is the training crop, whose grid the tables of biases have; on other
    grids they are resized (bilinear, as in the transformers library). Tokens after the
    four blocks ``taps`` become a pyramid of strides 4, 8, 16 and 32 with a patch of 16.
    """

    any_canvas = False

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        taps: tuple[int, ...],
        layer_scale: float,
        drop_path_rate: float = 0.0,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.taps = taps
        self.feature_dims = (embed_dim,) * 4
        self.patch_projection = nnx.Linear(
            patch_size * patch_size * 3,
            embed_dim,
            kernel_init=linear_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.class_token = nnx.Param(linear_init(rngs.params(), (embed_dim,)))
        make_attention = functools.partial(
            BeitAttention,
            table_grid=tuple(-(-side // patch_size) for side in image_size),
        )
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                mlp_dim,
                epsilon=1e-6,
                make_attention=make_attention,
                layer_scale=layer_scale,
                dtype=dtype,
                rngs=rngs,
            ),
            depth,
            drop_path_rate=drop_path_rate,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )
        self.pyramid = FeaturePyramid(embed_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        if image_size is not None:
            raise ValueError("BEiT has no padded canvases: see any_canvas.")
        grid = self.patch_projection(patchify(images, self.patch_size))
        batch, height, width, embed_dim = grid.shape
        class_token = self.class_token[...].astype(grid.dtype)
        tokens = jnp.concatenate(
            [
                jnp.broadcast_to(class_token, (batch, 1, embed_dim)),
                grid.reshape(batch, height * width, embed_dim),
            ],
            axis=1,
        )
        outputs = self.blocks.after(self.taps, tokens, (height, width), rng)
        grids = [x[:, 1:].reshape(batch, height, width, -1) for x in outputs]
        return self.pyramid(grids, train=rng is not None)

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        cells = -(-length // self.patch_size)
        coarse = jnp.maximum if isinstance(length, jax.Array) else max
        return (4 * cells, 2 * cells, cells, coarse(cells // 2, 1))

    def macs(self, size: tuple[int, int]) -> Macs:
        """The paper counted of the attention only the projection that follows it."""
        heights, widths = map(self.grid_lengths, size)
        cells, dim = heights[2] * widths[2], self.feature_dims[0]
        blocks = self.blocks.macs(cells + 1, attention_in_paper=False)
        out = product(cells + 1, dim, dim)
        patches = product(cells, self.patch_projection.in_features, dim)
        # Transposed convolutions of 1, 4 and 1 times as many cells.
        pyramid = 6 * product(cells, 4 * dim, dim)
        return patches + blocks + self.blocks.depth * Macs(0, out.paper) + pyramid


class BeitAttention(nnx.Module):
    """Self-attention with biases for queries and values, and for relative positions.

    The last three entries of the table are class token to patch, patch to class token,
    and class token to itself.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        table_grid: tuple[int, int],
        dropout_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del dropout_rate  # BEiT has none here.
        linear = functools.partial(
            nnx.Linear, kernel_init=linear_init, dtype=dtype, rngs=rngs
        )
        self.query_key_value = linear(embed_dim, 3 * embed_dim, use_bias=False)
        self.query_bias = nnx.Param(jnp.zeros(embed_dim))
        self.value_bias = nnx.Param(jnp.zeros(embed_dim))
        self.out = linear(embed_dim, embed_dim)
        differences = (2 * table_grid[0] - 1) * (2 * table_grid[1] - 1)
        self.relative_position_bias_table = nnx.Param(
            linear_init(rngs.params(), (differences + 3, num_heads))
        )
        self.num_heads = num_heads
        self.table_grid = table_grid

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        grid: tuple[int, int],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        batch, length, embed_dim = tokens.shape
        query, key, value = jnp.split(self.query_key_value(tokens), 3, axis=-1)
        query = query + self.query_bias[...].astype(query.dtype)[None, None]
        value = value + self.value_bias[...].astype(value.dtype)[None, None]
        # One window: the whole picture.
        shape = (batch, 1, length, self.num_heads, embed_dim // self.num_heads)
        out = biased_attention(
            *(x.reshape(shape) for x in (query, key, value)),
            self.relative_position_bias_table[...].astype(tokens.dtype),
            lambda table: self._bias(table, grid),
        )
        return self.out(out.reshape(tokens.shape))

    def _bias(
        self, table: Float[Array, "entries heads"], grid: tuple[int, int]
    ) -> Float[Array, "heads L L"]:
        table, others = table[:-3], table[-3:]
        if grid != self.table_grid:
            lengths_in = [2 * side - 1 for side in self.table_grid]
            lengths_out = [2 * side - 1 for side in grid]
            matrices = map(bilinear_matrix, lengths_out, lengths_in)
            table = resample(*matrices, table.reshape(1, *lengths_in, -1))
            table = table.reshape(-1, self.num_heads).astype(others.dtype)
        bias = relative_position_bias(table, *grid)
        to_patches, to_class, to_itself = others[:, :, None, None]
        bias = jnp.concatenate(
            [jnp.broadcast_to(to_class, (*bias.shape[:2], 1)), bias], axis=2
        )
        first = jnp.broadcast_to(to_patches, (self.num_heads, 1, bias.shape[1]))
        first = jnp.concatenate([to_itself, first], axis=2)
        return jnp.concatenate([first, bias], axis=1)


class FeaturePyramid(nnx.Module):
    """Four maps of one size to one four times as fine, twice as fine, as it is, and
    half as fine, without an odd row or column but where it is the only one.
    """

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up4_first = DoubleSize(embed_dim, embed_dim, dtype=dtype, rngs=rngs)
        self.up4_norm = BatchNorm(embed_dim)
        self.up4_second = DoubleSize(embed_dim, embed_dim, dtype=dtype, rngs=rngs)
        self.up2 = DoubleSize(embed_dim, embed_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, grids: list[Float[Array, "B h w D"]], train: bool
    ) -> tuple[FeatureMap, ...]:
        finest, fine, same, coarse = grids
        # Repeated here, and not padding of the picture, which would get pixels of it.
        short = [max(0, 2 - side) for side in coarse.shape[1:3]]
        coarse = jnp.pad(coarse, [(0, 0), *((0, n) for n in short), (0, 0)], "edge")
        finest = gelu(self.up4_norm(self.up4_first(finest), train))
        return (
            FeatureMap(self.up4_second(finest)),
            FeatureMap(self.up2(fine)),
            FeatureMap(same),
            max_pool(FeatureMap(coarse), 2, stride=2),
        )
