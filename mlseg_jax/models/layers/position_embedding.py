"""Positions of a grid as sines and cosines (method.md section 5)."""

import math

import numpy as np

from mlseg_jax.typing import Float


def sine_positions(
    height: int, width: int, embed_dim: int, *, temperature: float = 10_000.0
) -> Float[np.ndarray, "L D"]:
    """DETR's table, normalised to 2 pi: half of the channels for rows, half for
    columns.

    Rows count from 1 to ``height``, so the last one is at (almost) 2 pi. Channels
    alternate between the sine and the cosine of one frequency.
    """
    half = embed_dim // 2
    frequency = temperature ** (2.0 * (np.arange(half) // 2) / half)

    def along(length: int) -> np.ndarray:
        positions = np.arange(1, length + 1)
        turns = positions / (length + 1e-6) * 2.0 * math.pi
        angles = turns[:, None] / frequency[None]
        even = np.arange(half)[None] % 2 == 0
        return np.where(even, np.sin(angles), np.cos(angles))

    rows = np.broadcast_to(along(height)[:, None], (height, width, half))
    columns = np.broadcast_to(along(width)[None], (height, width, half))
    table = np.concatenate([rows, columns], axis=-1)
    return table.reshape(height * width, 2 * half).astype(np.float32)
