"""The decoder layer of MaskFormer and Mask2Former: object queries look at a picture and
at each other (masks.md 2.1 and 3.2).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.layers.deformable_attention import detr_linear, xavier
from mlseg_jax.models.layers.dropout import dropout
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.post_norm import CrossAttention
from mlseg_jax.models.layers.transformer import split_rng
from mlseg_jax.models.macs import Macs, activation, norm, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class QueryLayer(nnx.Module):
    """Attention to the picture, among the queries, and an MLP; a norm after each.

    ``picture_first`` as in Mask2Former; MaskFormer's queries look at each other first.
    Positions are added to queries and keys, never to values.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        picture_first: bool,
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attention = functools.partial(
            CrossAttention,
            embed_dim,
            num_heads,
            dropout_rate=dropout_rate,
            kernel_init=xavier,
            dtype=dtype,
            rngs=rngs,
        )
        self.cross_attention = attention()
        self.cross_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.self_attention = attention()
        self.self_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.mlp_in = detr_linear(embed_dim, mlp_dim, dtype, rngs)
        self.mlp_out = detr_linear(mlp_dim, embed_dim, dtype, rngs)
        self.mlp_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.picture_first = picture_first
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        queries: Float[Array, "B N D"],
        positions: Float[Array, "1 N D"],
        keys: Float[Array, "B L D"],
        values: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | Bool[Array, "B N L"] | None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B N D"]:
        """``mask`` says which keys are real, or which each query may look at."""
        cross_rng, self_rng, mlp_rng = split_rng(rng, 3)
        if self.picture_first:
            queries = self._look(queries, positions, keys, values, mask, cross_rng)
            queries = self._mix(queries, positions, self_rng)
        else:
            queries = self._mix(queries, positions, self_rng)
            queries = self._look(queries, positions, keys, values, mask, cross_rng)
        in_rng, out_rng = split_rng(mlp_rng, 2)
        hidden = dropout(jax.nn.relu(self.mlp_in(queries)), self.dropout_rate, in_rng)
        branch = dropout(self.mlp_out(hidden), self.dropout_rate, out_rng)
        return self.mlp_norm(queries + branch)

    def _look(self, queries, positions, keys, values, mask, rng) -> Array:
        weight_rng, out_rng = split_rng(rng, 2)
        asking = queries + positions
        branch = self.cross_attention(asking, keys, values, mask, weight_rng)
        branch = dropout(branch, self.dropout_rate, out_rng)
        return self.cross_norm(queries + branch)

    def _mix(self, queries, positions, rng) -> Array:
        weight_rng, out_rng = split_rng(rng, 2)
        asking = queries + positions
        branch = self.self_attention(asking, asking, queries, None, weight_rng)
        branch = dropout(branch, self.dropout_rate, out_rng)
        return self.self_norm(queries + branch)

    def macs(self, num_queries: int, num_keys: int) -> Macs:
        """All attention counts, as in the paper's table 9."""
        width, hidden = self.mlp_in.in_features, self.mlp_in.out_features
        count = product(2 * (num_queries + num_keys), width, width)
        count += product(4 * num_queries, width, width)
        count += product(num_queries, num_queries + num_keys, 2 * width)
        count += 2 * product(num_queries, width, hidden)
        count += activation(num_queries, hidden)
        return count + 3 * norm(num_queries, width)
