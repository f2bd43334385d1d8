"""Products of embeddings with class queries: dot products and cosines."""

import jax
import jax.numpy as jnp

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.typing import Array, Float


def dot_products(
    pixels: FeatureMap, class_queries: Float[Array, "B K D"]
) -> Float[Array, "B h w K"]:
    """Every pixel embedding with every class query, summed in float32: a 1 x 1
    convolution, row by row.
    """
    grid = pixels.grid
    return jnp.einsum(
        "bhwd,bkd->bhwk",
        grid,
        class_queries.astype(grid.dtype),
        preferred_element_type=jnp.float32,
    )


def unit_length(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / |x|. The floor only keeps a zero vector from becoming NaN."""
    wide = x.astype(jnp.float32)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)
