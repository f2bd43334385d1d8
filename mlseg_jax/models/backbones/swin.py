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
from mlseg_jax.models.layers.transformer import (
    TransformerBlock,
    linear_init,
    split_rng,
)
from mlseg_jax.models.layers.window_attention import WindowAttention
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

    ``shift_small_maps``: what becomes of maps whose shorter side is not larger than the
    window. Segmentation's Swin shifts and pads them as all others; the classifiers
    (Query2Label, the original, Hugging Face's, timm's for square pictures) do not shift
    and take windows of the shorter side, so that a square map is one window. Those
    windows depend on the map, so such a model has no padded canvases.
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
        shift_small_maps: bool = True,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.feature_dims = tuple(embed_dim * 2**i for i in range(len(depths)))
        self.any_canvas = shift_small_maps
        self.patch_projection = nnx.Linear(
            PATCH_SIZE**2 * 3,
            embed_dim,
            kernel_init=linear_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_norm = LayerNorm(embed_dim, epsilon=EPSILON)
        rates = np.linspace(0.0, drop_path_rate, sum(depths)).reshape(-1, 2)
        stages = []
        for width, depth, heads in zip(
            self.feature_dims, depths, num_heads, strict=True
        ):
            make_pair = functools.partial(
                SwinPair,
                width,
                heads,
                mlp_ratio * width,
                window_size,
                shift_small_maps,
                dtype,
            )
            pairs = depth // 2
            stage = BlockStack(
                make_pair,
                pairs,
                drop_path_rate=tuple(map(tuple, rates[:pairs].tolist())),
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
            if not self.any_canvas:
                raise ValueError("This Swin has no padded canvases: see any_canvas.")
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
        shift_small_maps: bool,
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
                    *args,
                    window_size=window_size,
                    shift=shift,
                    shift_small_maps=shift_small_maps,
                    **kwargs,
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
        side, _ = block.attention.windows(grid)
        padded = math.prod(-(-length // side) * side for length in grid)
        linear = product(padded, width, 4 * width)
        products = product(padded, side * side, 2 * width, in_paper=False)
        mlp = product(tokens, width, 2 * hidden)
        return 2 * (linear + products + mlp + 2 * norm(tokens, width))


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
