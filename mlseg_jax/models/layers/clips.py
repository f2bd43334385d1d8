"""Clips as pictures: backbones and pixel decoders see frames, one after the other.

Only the decoder of regions knows of time (masks.md 6.1): a map of a clip has an axis of
frames behind that of the examples, ``[B T h w D]``.
"""

import jax.numpy as jnp

from mlseg_jax.models.interfaces import FeatureMap


def to_frames(features: FeatureMap) -> FeatureMap:
    """``[B T h w D]`` as ``[B*T h w D]``; maps of pictures as they are."""
    if features.grid.ndim == 4:
        return features
    num_frames = features.grid.shape[1]
    size = features.grid_size
    if size is not None:
        size = jnp.repeat(size, num_frames, axis=0)
    return FeatureMap(features.grid.reshape(-1, *features.grid.shape[2:]), size)


def to_clip(features: FeatureMap, num_frames: int | None) -> FeatureMap:
    """``[B*T h w D]`` as ``[B T h w D]``; None is pictures, which stay as they are.

    The frames of a clip have one size.
    """
    if num_frames is None:
        return features
    grid, size = features.grid, features.grid_size
    grid = grid.reshape(-1, num_frames, *grid.shape[1:])
    return FeatureMap(grid, None if size is None else size[::num_frames])


def side_by_side(features: FeatureMap) -> FeatureMap:
    """The frames of a clip below each other, as one tall picture ``[B T*h w D]``."""
    if features.grid.ndim == 4:
        return features
    batch, _, _, *rest = features.grid.shape
    return FeatureMap(features.grid.reshape(batch, -1, *rest))
