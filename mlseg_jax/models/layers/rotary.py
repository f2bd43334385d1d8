"""Rotary positions by axis (DINOv3; masks.md 7.3): a place in the picture turns queries
and keys, and a product of the two depends on the distance alone.
"""

import math

import jax.numpy as jnp
import numpy as np

from mlseg_jax.typing import Array, Float, Int

PERIOD = 100.0
"""The longest wave over the shortest."""

Rotation = tuple[Float[Array, "#B L half"], Float[Array, "#B L half"]]
"""Cosines and sines of every patch, in float32."""


def grid_rotation(
    height: int,
    width: int,
    head_dim: int,
    *,
    grid_size: Int[Array, "B 2"] | None = None,
    scale: Float[Array, ""] | None = None,
) -> Rotation:
    """Of the cells of a grid, row by row; ``scale`` stretches the coordinates.

    Each axis goes from -1 to 1 over the picture, whatever its sides: over the whole
    grid, or over each example's part of a canvas. A quarter of a head's channels are
    waves along rows, a quarter along columns; each turns a pair of channels that are
    half a head apart.
    """
    quarter = head_dim // 4
    waves = 2.0 * math.pi * PERIOD ** (-4.0 * np.arange(quarter) / head_dim)
    waves = jnp.asarray(waves, jnp.float32)

    def along(length: int, axis: int) -> Float[Array, "#B length quarter"]:
        cells = jnp.arange(length, dtype=jnp.float32)[None]
        size = jnp.full((1, 1), length, jnp.float32)
        if grid_size is not None:
            size = grid_size[:, axis, None].astype(jnp.float32)
        places = 2.0 * ((cells + 0.5) / size) - 1.0
        places = places if scale is None else places * scale.reshape(1, 1)
        return places[..., None] * waves[None, None]

    rows, columns = along(height, 0)[:, :, None], along(width, 1)[:, None]
    shape = (rows.shape[0], height, width, quarter)
    angles = jnp.concatenate(
        [jnp.broadcast_to(rows, shape), jnp.broadcast_to(columns, shape)], axis=-1
    )
    angles = angles.reshape(shape[0], height * width, 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "B L heads d"], rotation: Rotation
) -> Float[Array, "B L heads d"]:
    """Turns every pair of channels, in float32."""
    cosine, sine = (x[:, :, None] for x in rotation)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
