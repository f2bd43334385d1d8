"""Swin's attention inside windows of a map (Liu et al., ICCV 2021)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.models.interfaces import inside_mask
from mlseg_jax.models.layers.relative_position import (
    biased_attention,
    relative_position_bias,
)
from mlseg_jax.models.layers.transformer import linear_init
from mlseg_jax.typing import Array, DTypeLike, Float, Int, PRNGKeyArray


class WindowAttention(nnx.Module):
    """Self-attention inside windows with a bias for each relative position."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: int,
        shift: int,
        shift_small_maps: bool = True,
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
        self.shift_small_maps = shift_small_maps

    def windows(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Side of the windows of such a map, and by how much they are shifted."""
        if self.shift_small_maps or min(grid) > self.window_size:
            return self.window_size, self.shift
        return min(grid), 0

    def __call__(
        self,
        grid: Float[Array, "B h w D"],
        grid_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w D"]:
        batch, height, width, embed_dim = grid.shape
        side, shift = self.windows((height, width))
        if grid_size is not None:
            # What lies beside a picture is as if the canvas had ended there.
            inside = inside_mask((height, width), grid_size)
            grid = jnp.where(inside[..., None], grid, 0)
        grid = jnp.pad(grid, [(0, 0), (0, -height % side), (0, -width % side), (0, 0)])
        canvas = grid.shape[1:3]
        groups = self._groups(canvas, shift, grid_size)
        grid = jnp.roll(grid, (-shift, -shift), (1, 2)) if shift else grid
        fused = self.query_key_value(_to_windows(grid, side))
        fused = fused.reshape(*fused.shape[:3], 3, self.num_heads, -1)
        out = biased_attention(
            *(fused[:, :, :, i] for i in range(3)),
            self.relative_position_bias_table[...],
            lambda table: relative_position_bias(
                _of_smaller_window(table, self.window_size, side), side, side
            ),
            groups,
        )
        out = self.out(out.reshape(*out.shape[:3], embed_dim))
        out = _from_windows(out, side, canvas)
        out = jnp.roll(out, (shift, shift), (1, 2)) if shift else out
        return out[:, :height, :width]

    def _groups(
        self, canvas: tuple[int, int], shift: int, grid_size: Int[Array, "B 2"] | None
    ) -> Int[np.ndarray | Array, "#B windows L"] | None:
        """Tokens that may see each other have the same number; ``None``: all may.

        Shifting brings the first rows behind the last ones, and a picture on a larger
        canvas ends with the last of its own windows.
        """
        if not shift and grid_size is None:
            return None

        def along(axis: int) -> Int[np.ndarray | Array, "#B length"]:
            length = canvas[axis]
            source = (np.arange(length) + shift) % length
            groups = (np.arange(length) >= length - shift).astype(np.int32)[None]
            if grid_size is None:
                return groups
            end = -(-grid_size[:, axis] // self.window_size) * self.window_size
            return jnp.where(source[None] < end[:, None], groups, 2)

        groups = 3 * along(0)[:, :, None, None] + along(1)[:, None, :, None]
        return _to_windows(groups, self.window_size)[..., 0]


def _of_smaller_window(table: Array, window_size: int, side: int) -> Array:
    """The entries of a window's table that a smaller one has: those in its middle."""
    if side == window_size:
        return table
    length, rest = 2 * window_size - 1, window_size - side
    table = table.reshape(length, length, -1)[
        rest : length - rest, rest : length - rest
    ]
    return table.reshape((2 * side - 1) ** 2, -1)


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
