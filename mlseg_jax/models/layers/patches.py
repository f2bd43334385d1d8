"""Images cut into patches."""

import jax.numpy as jnp

from mlseg_jax.typing import Array, Float


def patchify(images: Float[Array, "B H W D"], size: int) -> Float[Array, "B h w patch"]:
    """Flattened patches, the sides zero-padded up to a multiple of ``size``.

    A convolution of stride = kernel is a product of these with a matrix.
    """
    batch, height, width, channels = images.shape
    images = jnp.pad(images, [(0, 0), (0, -height % size), (0, -width % size), (0, 0)])
    rows, columns = images.shape[1] // size, images.shape[2] // size
    patches = images.reshape(batch, rows, size, columns, size, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
