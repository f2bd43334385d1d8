"""The auxiliary head of convolutional frameworks (method.md section 9.1).

It classifies an earlier map among all C labels, in training alone. Its logits are never
made as a whole: `losses/pixel.py` takes embeddings and class rows.
"""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import ConvUnit
from mlseg_jax.models.layers.dropout import channel_dropout
from mlseg_jax.typing import DTypeLike, PRNGKeyArray


class FCNHead(nnx.Module):
    """One convolution, and a row of weights and a bias for every class."""

    def __init__(
        self,
        num_classes: int,
        *,
        level: int,
        feature_dim: int,
        embed_dim: int,
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.level = level
        self.conv = ConvUnit(feature_dim, embed_dim, 3, dtype=dtype, rngs=rngs)
        initial = nnx.initializers.normal(0.01)
        self.class_weights = nnx.Param(initial(rngs.params(), (num_classes, embed_dim)))
        self.class_biases = nnx.Param(jnp.zeros(num_classes))
        self.dropout_rate = dropout_rate

    def __call__(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> FeatureMap:
        """Pixel embeddings, to be compared with the class weights."""
        pixels = self.conv(features[self.level], rng is not None)
        grid = channel_dropout(pixels.grid, self.dropout_rate, rng)
        return FeatureMap(grid, pixels.grid_size)
