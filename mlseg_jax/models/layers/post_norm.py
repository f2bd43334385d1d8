"""DETR's transformer as multi-label heads use it: post-norm, and no self-attention
among the class queries (method.md sections 5 and 8.1).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.distributed.sharding import on_every_device
from mlseg_jax.models.layers.attention import attention
from mlseg_jax.models.layers.block_stack import run_layers
from mlseg_jax.models.layers.dropout import dropout
from mlseg_jax.models.layers.long_sequences import over_rows
from mlseg_jax.models.layers.masked_attention import masked_attention
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import linear_init, split_rng
from mlseg_jax.models.macs import Macs, norm, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class CrossAttention(nnx.Module):
    """Attention whose queries, keys and values come from different tokens.

    Their three projections are one fused kernel, as in PyTorch's module, and keep its
    Xavier initialisation over all three.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout_rate: float,
        kernel_init: nnx.Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(nnx.Linear, embed_dim, dtype=dtype, rngs=rngs)
        xavier = nnx.initializers.glorot_uniform()
        self.query_key_value = linear(3 * embed_dim, kernel_init=xavier)
        self.out = linear(embed_dim, kernel_init=kernel_init)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.dtype = dtype

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        keys: Float[Array, "B L D"],
        values: Float[Array, "B L D"],
        key_mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None,
        rng: PRNGKeyArray | None,
    ) -> Float[Array, "B Q D"]:
        """A mask with a row for each query says what each may look at."""
        kernel = self.query_key_value.kernel[...].astype(self.dtype)
        # Their gradients are put together whole: shards of that end elsewhere.
        parts = jnp.split(on_every_device(kernel), 3, axis=1)
        kernels = list(map(on_every_device, parts))
        biases = jnp.split(self.query_key_value.bias[...].astype(self.dtype), 3)
        heads = [
            (tokens @ kernel + bias[None, None]).reshape(
                *tokens.shape[:2], self.num_heads, -1
            )
            for tokens, kernel, bias in zip(
                (queries, keys, values), kernels, biases, strict=True
            )
        ]
        if key_mask is not None and key_mask.ndim == 3:
            out = masked_attention(*heads, key_mask)
        else:
            out = attention(*heads, key_mask, dropout_rate=self.dropout_rate, rng=rng)
        return self.out(out.reshape(queries.shape))


def zero_biases(fan_in: int) -> nnx.Initializer:
    return nnx.initializers.zeros


class PostNormLayer(nnx.Module):
    """x = norm(x + attention); x = norm(x + mlp(x)), with a ReLU.

    Tokens look at a memory: at other tokens in a decoder, at themselves in an encoder.
    Positions are added to queries and keys, never to values. ``mlp_bias_init`` makes
    first values for so many inputs.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        dropout_rate: float,
        kernel_init: nnx.Initializer,
        mlp_bias_init: Callable[[int], nnx.Initializer] = zero_biases,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear, kernel_init=kernel_init, dtype=dtype, rngs=rngs
        )
        self.attention = CrossAttention(
            embed_dim,
            num_heads,
            dropout_rate=dropout_rate,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.mlp_in = linear(embed_dim, mlp_dim, bias_init=mlp_bias_init(embed_dim))
        self.mlp_out = linear(mlp_dim, embed_dim, bias_init=mlp_bias_init(mlp_dim))
        self.mlp_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        tokens: Float[Array, "B Q D"],
        positions: Float[Array, "B Q D"],
        memory: Float[Array, "B L D"],
        memory_positions: Float[Array, "B L D"],
        memory_mask: Bool[Array, "B L"] | None,
        rng: PRNGKeyArray | None,
    ) -> Float[Array, "B Q D"]:
        weight_rng, attention_rng, in_rng, out_rng = split_rng(rng, 4)
        branch = self.attention(
            tokens + positions,
            memory + memory_positions,
            memory,
            memory_mask,
            weight_rng,
        )
        branch = dropout(branch, self.dropout_rate, attention_rng)
        tokens = self.attention_norm(tokens + branch)
        hidden = dropout(jax.nn.relu(self.mlp_in(tokens)), self.dropout_rate, in_rng)
        branch = dropout(self.mlp_out(hidden), self.dropout_rate, out_rng)
        return self.mlp_norm(tokens + branch)

    def macs(self, num_tokens: int, num_memory: int) -> Macs:
        """The paper counted nothing of the attention."""
        width, hidden = self.mlp_in.in_features, self.mlp_in.out_features
        projections = 2 * (num_tokens + num_memory) * width * width
        attention = projections + 2 * num_tokens * num_memory * width
        mlp = 2 * product(num_tokens, width, hidden)
        return Macs(attention) + mlp + 2 * norm(num_tokens, width)


class PostNormTransformer(nnx.Module):
    """Class queries that look at image tokens, which may look at each other before.

    The queries are positions: what they gather starts at zero. As queries never look at
    each other, evaluation takes many of them in parts.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dropout_rate: float,
        kernel_init: nnx.Initializer = linear_init,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def layers(count: int) -> nnx.List:
            return nnx.List(
                [
                    PostNormLayer(
                        embed_dim,
                        num_heads,
                        mlp_dim,
                        dropout_rate=dropout_rate,
                        kernel_init=kernel_init,
                        dtype=dtype,
                        rngs=rngs,
                    )
                    for _ in range(count)
                ]
            )

        self.encoder = layers(num_encoder_layers)
        self.decoder = layers(num_decoder_layers)
        self.norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.remat = remat

    def __call__(
        self,
        memory: Float[Array, "B L D"],
        memory_positions: Float[Array | np.ndarray, "L D"],
        queries: Float[Array, "B C D"] | Float[Array, "C D"],
        memory_mask: Bool[Array, "B L"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B C D"]:
        """Image tokens, their positions and one query per class to class features."""
        encoder_rng, decoder_rng = split_rng(rng, 2)
        memory_positions = jnp.broadcast_to(
            jnp.asarray(memory_positions, memory.dtype), memory.shape
        )
        queries = jnp.broadcast_to(
            queries.astype(memory.dtype), (memory.shape[0], *queries.shape[-2:])
        )
        memory = encode(
            *(self.encoder, memory, memory_positions, memory_mask, encoder_rng),
            remat=self.remat,
        )

        def decode(tokens: Array, queries: Array) -> Array:
            def look(layer, place, tokens, rng):
                seen = memory, memory_positions, memory_mask
                return layer(tokens, queries, *seen, rng), None

            tokens, _ = run_layers(
                self.decoder, look, tokens, decoder_rng, remat=self.remat
            )
            return self.norm(tokens)

        tokens = jnp.zeros_like(queries)
        if rng is None:
            return over_rows(decode, tokens, queries)
        return decode(tokens, queries)

    def macs(self, num_tokens: int, num_queries: int) -> Macs:
        count = norm(num_queries, self.norm.scale.shape[0])
        for layer in self.encoder:
            count += layer.macs(num_tokens, num_tokens)
        for layer in self.decoder:
            count += layer.macs(num_queries, num_tokens)
        return count


def encode(
    layers: nnx.List,
    tokens: Float[Array, "B L D"],
    positions: Float[Array, "B L D"],
    mask: Bool[Array, "B L"] | None,
    rng: PRNGKeyArray | None,
    **how,
) -> Float[Array, "B L D"]:
    """Tokens that look at each other in every `PostNormLayer`; ``how`` as of
    `run_layers`.
    """

    def look(layer, place, tokens, rng):
        return layer(tokens, positions, tokens, positions, mask, rng), None

    return run_layers(layers, look, tokens, rng, **how)[0]
