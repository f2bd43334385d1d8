"""The pixel classifier of convolutional decoders: a 1 x 1 convolution, row by row."""

import jax.numpy as jnp

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.typing import Array, Float


def dot_products(
    pixels: FeatureMap, class_queries: Float[Array, "B K D"]
) -> Float[Array, "B h w K"]:
    """Every pixel embedding with every class query, summed in float32."""
    grid = pixels.grid
    return jnp.einsum(
        "bhwd,bkd->bhwk",
        grid,
        class_queries.astype(grid.dtype),
        preferred_element_type=jnp.float32,
    )
