"""Swin transformer (method.md 9.2 and 11.1; Liu et al., ICCV 2021)."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap, inside_mask
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.relative_position import (
    biased_attention,
    relative_position_bias,
)
from mlseg_jax.models.layers.transformer import (
    TransformerBlock,
    linear_init,
    split_rng,
)
from mlseg_jax.models.macs import Macs, norm, product
from mlseg_jax.typing import Array, DTypeLike, Float, Int, Length, PRNGKeyArray

PATCH_SIZE = 4
EPSILON = 1e-5


class Swin(AbstractBackbone):
    """Four stages of strides 4, 8, 16 and 32, the outputs with their own layer norms.

    ``num_norms``: how many of the outputs, from the coarsest, have one; a classifier
    normalises its last one only.

    Blocks come in pairs: attention inside windows, then inside windows shifted by half
    their side. Pictures of any size are padded as PyTorch's segmentation toolboxes do:
    patches and mergings up to a multiple with zeros, and windows with zero tokens after
    the norm, which are seen as keys.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.0,
        num_norms: int = 4,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.feature_dims = tuple(embed_dim * 2**i for i in range(len(depths)))
        self.patch_projection = nnx.Linear(
            PATCH_SIZE**2 * 3,
            embed_dim,
            kernel_init=linear_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_norm = LayerNorm(embed_dim, epsilon=EPSILON)
        rates = np.linspace(0.0, drop_path_rate, sum(depths)).reshape(-1, 2).tolist()
        rates = list(map(tuple, rates))
        stages = []
        for width, depth, heads in zip(
            self.feature_dims, depths, num_heads, strict=True
        ):
            make_pair = functools.partial(
                SwinPair, width, heads, mlp_ratio * width, window_size, dtype
            )
            pairs = depth // 2
            stage = BlockStack(
                make_pair,
                pairs,
                drop_path_rate=tuple(rates[:pairs]),
                scan=scan,
                remat=remat,
                rngs=rngs,
            )
            stages.append(stage)
            rates = rates[pairs:]
        self.stages = nnx.List(stages)
        self.mergings = nnx.List(
            PatchMerging(width, dtype=dtype, rngs=rngs)
            for width in self.feature_dims[:-1]
        )
        self.norms = nnx.List(
            LayerNorm(width, epsilon=EPSILON)
            for width in self.feature_dims[len(depths) - num_norms :]
        )

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        sizes = (None,) * len(self.stages)
        if image_size is not None:
            sizes = self.grid_lengths(image_size)
        grid = self.patch_norm(self.patch_projection(patchify(images, PATCH_SIZE)))
        features = []
        for i, stage_rng in enumerate(split_rng(rng, len(self.stages))):
            if i > 0:
                grid = self.mergings[i - 1](grid, sizes[i - 1])
            grid = self.stages[i](grid, sizes[i], stage_rng)
            norm = i - len(self.stages) + len(self.norms)
            out = self.norms[norm](grid) if norm >= 0 else grid
            features.append(FeatureMap(pin_examples(out), sizes[i]))
        return tuple(features)

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        lengths = [-(-length // PATCH_SIZE)]
        for _ in self.mergings:
            lengths.append(-(-lengths[-1] // 2))
        return tuple(lengths)

    def macs(self, size: tuple[int, int]) -> Macs:
        """The paper counted linear layers and norms, with the padding of windows."""
        heights, widths = map(self.grid_lengths, size)
        count = product(
            heights[0] * widths[0],
            self.patch_projection.in_features,
            self.feature_dims[0],
        )
        count += norm(heights[0] * widths[0], self.feature_dims[0])
        for i, dim in enumerate(self.feature_dims):
            tokens = heights[i] * widths[i]
            if i > 0:
                count += norm(tokens, 2 * dim) + product(tokens, 2 * dim, dim)
            count += self.stages[i].macs((heights[i], widths[i])) + norm(tokens, dim)
        return count


class SwinPair(nnx.Module):
    """A block with plain windows, and one with shifted windows."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        window_size: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def block(shift: int) -> TransformerBlock:
            return TransformerBlock(
                embed_dim,
                num_heads,
                mlp_dim,
                epsilon=EPSILON,
                make_attention=lambda *args, **kwargs: WindowAttention(
                    *args, window_size=window_size, shift=shift, **kwargs
                ),
                dtype=dtype,
                rngs=rngs,
            )

        self.plain = block(0)
        self.shifted = block(window_size // 2)

    def __call__(
        self,
        grid: Float[Array, "B h w D"],
        grid_size: Int[Array, "B 2"] | None,
        drop_path_rate: float | list[float] | Float[Array, "2"] = 0.0,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w D"]:
        rates = drop_path_rate
        if isinstance(rates, float):
            rates = [rates, rates]
        plain_rng, shifted_rng = split_rng(rng, 2)
        grid = self.plain(grid, grid_size, rates[0], plain_rng)
        return self.shifted(grid, grid_size, rates[1], shifted_rng)

    def macs(self, grid: tuple[int, int]) -> Macs:
        block = self.plain
        tokens = math.prod(grid)
        width, hidden = block.mlp_in.in_features, block.mlp_out.in_features
        side = block.attention.window_size
        padded = math.prod(-(-length // side) * side for length in grid)
        linear = product(padded, width, 4 * width)
        products = product(padded, side * side, 2 * width, in_paper=False)
        mlp = product(tokens, width, 2 * hidden)
        return 2 * (linear + products + mlp + 2 * norm(tokens, width))


class WindowAttention(nnx.Module):
    """Self-attention inside windows with a bias for each relative position."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: int,
        shift: int,
        dropout_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del dropout_rate  # Swin has none here.

        def linear(features):
            return nnx.Linear(
                embed_dim, features, kernel_init=linear_init, dtype=dtype, rngs=rngs
            )

        self.query_key_value = linear(3 * embed_dim)
        self.out = linear(embed_dim)
        self.relative_position_bias_table = nnx.Param(
            linear_init(rngs.params(), ((2 * window_size - 1) ** 2, num_heads))
        )
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift

    def __call__(
        self,
        grid: Float[Array, "B h w D"],
        grid_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w D"]:
        batch, height, width, embed_dim = grid.shape
        side, shift = self.window_size, self.shift
        if grid_size is not None:
            # What lies beside a picture is as if the canvas had ended there.
            inside = inside_mask((height, width), grid_size)
            grid = jnp.where(inside[..., None], grid, 0)
        grid = jnp.pad(grid, [(0, 0), (0, -height % side), (0, -width % side), (0, 0)])
        canvas = grid.shape[1:3]
        groups = self._groups(canvas, grid_size)
        grid = jnp.roll(grid, (-shift, -shift), (1, 2)) if shift else grid
        fused = self.query_key_value(_to_windows(grid, side))
        fused = fused.reshape(*fused.shape[:3], 3, self.num_heads, -1)
        out = biased_attention(
            *(fused[:, :, :, i] for i in range(3)),
            self.relative_position_bias_table[...],
            lambda table: relative_position_bias(table, side, side),
            groups,
        )
        out = self.out(out.reshape(*out.shape[:3], embed_dim))
        out = _from_windows(out, side, canvas)
        out = jnp.roll(out, (shift, shift), (1, 2)) if shift else out
        return out[:, :height, :width]

    def _groups(
        self, canvas: tuple[int, int], grid_size: Int[Array, "B 2"] | None
    ) -> Int[np.ndarray | Array, "#B windows L"] | None:
        """Tokens that may see each other have the same number; ``None``: all may.

        Shifting brings the first rows behind the last ones, and a picture on a larger
        canvas ends with the last of its own windows.
        """
        if not self.shift and grid_size is None:
            return None

        def along(axis: int) -> Int[np.ndarray | Array, "#B length"]:
            length = canvas[axis]
            source = (np.arange(length) + self.shift) % length
            groups = (np.arange(length) >= length - self.shift).astype(np.int32)[None]
            if grid_size is None:
                return groups
            end = -(-grid_size[:, axis] // self.window_size) * self.window_size
            return jnp.where(source[None] < end[:, None], groups, 2)

        groups = 3 * along(0)[:, :, None, None] + along(1)[:, None, :, None]
        return _to_windows(groups, self.window_size)[..., 0]


def _to_windows(grid: Array | np.ndarray, side: int) -> Array | np.ndarray:
    """``[B h w D]`` to ``[B windows side*side D]``."""
    batch, height, width, dim = grid.shape
    grid = grid.reshape(batch, height // side, side, width // side, side, dim)
    return grid.swapaxes(2, 3).reshape(batch, -1, side * side, dim)


def _from_windows(windows: Array, side: int, canvas: tuple[int, int]) -> Array:
    height, width = canvas
    dim = windows.shape[-1]
    grid = windows.reshape(-1, height // side, width // side, side, side, dim)
    return grid.swapaxes(2, 3).reshape(-1, height, width, dim)


class PatchMerging(nnx.Module):
    """Four neighbours side by side, a layer norm, and half as many channels.

    Their order is Swin's own: upper left, lower left, upper right, lower right.
    """

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * embed_dim, epsilon=EPSILON)
        self.reduction = nnx.Linear(
            4 * embed_dim,
            2 * embed_dim,
            use_bias=False,
            kernel_init=linear_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, grid: Float[Array, "B h w D"], grid_size: Int[Array, "B 2"] | None
    ) -> Float[Array, "B _ _ _"]:
        if grid_size is not None:
            inside = inside_mask(grid.shape[1:3], grid_size)
            grid = jnp.where(inside[..., None], grid, 0)
        # Columns first: `patchify` takes rows first.
        patches = patchify(grid.swapaxes(1, 2), 2).swapaxes(1, 2)
        return self.reduction(self.norm(patches))
