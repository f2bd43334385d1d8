"""Positions of a grid as sines and cosines (method.md section 5)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.typing import Array, Float

TEMPERATURE = 10_000.0


def sine_positions(height: int, width: int, embed_dim: int) -> Float[np.ndarray, "L D"]:
    """DETR's table, normalised to 2 pi: half of the channels for rows, half for
    columns.

    Rows count from 1 to ``height``, so the last one is at (almost) 2 pi. Channels
    alternate between the sine and the cosine of one frequency.
    """
    half = embed_dim // 2
    rows = np.broadcast_to(_along(height, half)[:, None], (height, width, half))
    columns = np.broadcast_to(_along(width, half)[None], (height, width, half))
    table = np.concatenate([rows, columns], axis=-1)
    return table.reshape(height * width, 2 * half).astype(np.float32)


def map_positions(features: FeatureMap, embed_dim: int) -> Float[Array, "#B h w D"]:
    """The same for the grid of a map: for all examples alike, or for the real part of
    each example's canvas.

    The table is made where it is needed: as a constant, that of a large picture would
    be much of the program.
    """
    _, height, width, _ = features.grid.shape
    half = embed_dim // 2
    if features.grid_size is None:
        rows, columns = (
            jnp.asarray(_along(length, half), jnp.float32)[None]
            for length in (height, width)
        )
    else:
        rows, columns = (
            jax.vmap(lambda size, n=length: _along(n, half, size))(sizes)
            for length, sizes in zip((height, width), features.grid_size.T, strict=True)
        )
    shape = (rows.shape[0], height, width, half)
    rows = jnp.broadcast_to(rows[:, :, None], shape)
    columns = jnp.broadcast_to(columns[:, None], shape)
    return jnp.concatenate([rows, columns], axis=-1)


def time_positions(num_frames: int, embed_dim: int) -> Float[np.ndarray, "T D"]:
    """What `map_positions` gets added in each frame of a clip (masks.md 6.1).

    All channels are of the one axis, whose last frame is at (almost) 2 pi whatever the
    number of frames.
    """
    return _along(num_frames, embed_dim).astype(np.float32)


def _along(length: int, half: int, size: Array | int | None = None):
    """``[length half]``: in float64 where all is known, else in float32."""
    xp = np if size is None else jnp
    size = length if size is None else size
    frequency = TEMPERATURE ** (2.0 * (np.arange(half) // 2) / half)
    turns = xp.arange(1, length + 1) / (size + 1e-6) * 2.0 * math.pi
    angles = turns[:, None] / xp.asarray(frequency)[None]
    even = np.arange(half)[None] % 2 == 0
    return xp.where(even, xp.sin(angles), xp.cos(angles))
