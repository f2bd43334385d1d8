"""One row of weights per class."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import Array, Float


class GroupWiseLinear(nnx.Module):
    """Each class query against its own row: s_c = <W_c, q_c> + b_c."""

    def __init__(self, num_classes: int, embed_dim: int, *, rngs: nnx.Rngs):
        bound = embed_dim**-0.5

        def uniform(shape):
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        self.weight = nnx.Param(uniform((num_classes, embed_dim)))
        self.bias = nnx.Param(uniform((num_classes,)))

    def __call__(self, class_queries: Float[Array, "B C D"]) -> Float[Array, "B C"]:
        products = class_queries.astype(jnp.float32) * self.weight[...][None]
        return jnp.sum(products, axis=-1) + self.bias[...][None]

    def macs(self) -> Macs:
        """The paper counted C x C x D, as of an ordinary linear layer."""
        num_classes, embed_dim = self.weight.shape
        return Macs(num_classes * embed_dim, num_classes**2 * embed_dim)
