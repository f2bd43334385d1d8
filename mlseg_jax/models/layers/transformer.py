"""The pre-norm transformer block and stacks of it."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.layers.attention import attention
from mlseg_jax.models.layers.dropout import drop_path, dropout
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.sharding import gather_weights, pin_examples
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray

linear_init = nnx.initializers.normal(0.02)
"""PyTorch's ``trunc_normal_(std=0.02)`` truncates at +-2, a hundred deviations out."""

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What a block keeps for its backward pass: everything, matrix products, nothing."""


LONG_SEQUENCE = 4096
"""Tokens above which evaluation works in parts, so that wide arrays never exist."""


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, x Phi(x); its gradient needs x alone."""
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) * (2.0 * math.pi) ** -0.5
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def over_rows(
    function: Callable[..., Array],
    tokens: Float[Array, "B L D"],
    *others: Float[Array, "B L _"],
) -> Float[Array, "B L D"]:
    """A token-wise function of one or more sequences, in parts where they are long."""
    length, size = tokens.shape[1], LONG_SEQUENCE // 4
    if length <= LONG_SEQUENCE:
        return function(tokens, *others)

    def part(start: Array | int, out: Array, size: int) -> Array:
        rows = function(
            *(
                jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
                for x in (out, *others)
            )
        )
        return jax.lax.dynamic_update_slice_in_dim(out, rows, start, axis=1)

    # In place: what is made replaces what it was made of.
    num_parts, rest = divmod(length, size)
    out = jax.lax.fori_loop(0, num_parts, lambda i, x: part(i * size, x, size), tokens)
    return part(num_parts * size, out, rest) if rest else out


class MultiHeadAttention(nnx.Module):
    """Self-attention with one fused projection to queries, keys and values."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear, kernel_init=linear_init, dtype=dtype, rngs=rngs
        )
        self.query_key_value = linear(embed_dim, 3 * embed_dim)
        self.out = linear(embed_dim, embed_dim)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        batch, length, width = tokens.shape
        weight_rng, out_rng = split_rng(rng, 2)
        fused = self.query_key_value(tokens)
        fused = fused.reshape(batch, length, 3, self.num_heads, -1)
        query, key, value = (fused[:, :, i] for i in range(3))
        out = attention(
            query,
            key,
            value,
            token_mask,
            dropout_rate=self.dropout_rate,
            rng=weight_rng,
        )
        out = self.out(out.reshape(batch, length, width))
        return dropout(out, self.dropout_rate, out_rng)

    def add_head_by_head(
        self,
        residual: Float[Array, "B L D"],
        tokens: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"] | None,
    ) -> Float[Array, "B L D"]:
        """Residual + attention of the tokens, with one head in memory at a time."""
        width, heads = tokens.shape[-1], self.num_heads
        dtype = tokens.dtype

        kernel = self.query_key_value.kernel[...].reshape(width, 3, heads, -1)
        bias = self.query_key_value.bias[...].reshape(3, heads, -1)
        out_kernel = self.out.kernel[...].reshape(heads, -1, width)

        def take(x: Array, head: Array, axis: int) -> Array:
            return jax.lax.dynamic_index_in_dim(x, head, axis, False).astype(dtype)

        def add_head(head: Array, total: Array) -> Array:
            kernels, biases = take(kernel, head, 2), take(bias, head, 1)
            query, key, value = (
                (tokens @ kernels[:, i] + biases[None, None, i])[:, :, None]
                for i in range(3)
            )
            out = attention(query, key, value, token_mask)[:, :, 0]
            part = take(out_kernel, head, 0)
            return over_rows(lambda rows, out: rows + out @ part, total, out)

        total = jax.lax.fori_loop(0, heads, add_head, residual)
        return total + self.out.bias[...].astype(dtype)[None, None]


class TransformerBlock(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with the exact GELU."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        epsilon: float,
        dropout_rate: float = 0.0,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear,
            kernel_init=linear_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention_norm = LayerNorm(embed_dim, epsilon=epsilon)
        self.attention = MultiHeadAttention(
            embed_dim, num_heads, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = LayerNorm(embed_dim, epsilon=epsilon)
        self.mlp_in = linear(embed_dim, mlp_dim)
        self.mlp_out = linear(mlp_dim, embed_dim)
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"] | None = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        """``token_mask`` hides padding tokens from all others."""
        if rng is None and tokens.shape[1] > LONG_SEQUENCE:
            normalised = over_rows(self.attention_norm, tokens)
            tokens = self.attention.add_head_by_head(tokens, normalised, token_mask)
            return over_rows(lambda rows: rows + self._mlp(rows), tokens)
        attention_rng, path_rng, mlp_rng, mlp_path_rng = split_rng(rng, 4)
        branch = self.attention(self.attention_norm(tokens), token_mask, attention_rng)
        tokens = tokens + drop_path(branch, drop_path_rate, path_rng)
        branch = self._mlp(tokens, mlp_rng)
        return tokens + drop_path(branch, drop_path_rate, mlp_path_rng)

    def _mlp(self, tokens: Array, rng: PRNGKeyArray | None = None) -> Array:
        in_rng, out_rng = split_rng(rng, 2)
        hidden = gelu(self.mlp_in(self.mlp_norm(tokens)))
        hidden = dropout(hidden, self.dropout_rate, in_rng)
        return dropout(self.mlp_out(hidden), self.dropout_rate, out_rng)


class BlockStack(nnx.Module):
    """``depth`` equal blocks, unrolled or as one scan over stacked weights.

    A scan compiles once whatever the depth; unrolled, XLA may fuse across blocks.
    Drop path rises linearly from 0 to ``drop_path_rate`` over the depth.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], TransformerBlock],
        depth: int,
        *,
        drop_path_rate: float = 0.0,
        scan: bool = False,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if remat not in REMAT_POLICIES:
            raise UserError(
                f"Unknown rematerialisation {remat!r}; choose one of "
                f"{', '.join(REMAT_POLICIES)}."
            )
        if scan:
            make = nnx.vmap(make_block, in_axes=0, out_axes=0)
            self.blocks = make(rngs.split(depth))
        else:
            self.blocks = nnx.List([make_block(rngs) for _ in range(depth)])
        self.depth = depth
        self.drop_path_rate = drop_path_rate
        self.scan = scan
        self.remat = remat

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        graph, _ = nnx.split(self.blocks if self.scan else self.blocks[0])
        drops = self.drop_path_rate > 0.0

        def run_block(tokens, weights, rate, rng):
            block = nnx.merge(graph, gather_weights(weights, tokens.dtype))
            tokens = block(tokens, token_mask, rate if drops else 0.0, rng)
            return pin_examples(tokens)

        if self.remat != "none":
            run_block = jax.checkpoint(
                run_block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan
            )
        tokens = pin_examples(tokens)
        rates = np.linspace(0.0, self.drop_path_rate, self.depth, dtype=np.float32)
        block_rngs = None if rng is None else jax.random.split(rng, self.depth)
        if self.scan:
            tokens, _ = jax.lax.scan(
                lambda tokens, layer: (run_block(tokens, *layer), None),
                tokens,
                (nnx.state(self.blocks), rates, block_rngs),
            )
            return tokens
        for i, block in enumerate(self.blocks):
            block_rng = None if rng is None else block_rngs[i]
            tokens = run_block(tokens, nnx.state(block), float(rates[i]), block_rng)
        return tokens


def split_rng(rng: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """``count`` keys, or as many ``None`` when there is none to split."""
    return [None] * count if rng is None else list(jax.random.split(rng, count))


def join_masks(
    grid_mask: Bool[Array, "B h w"] | None,
    class_mask: Bool[Array, "B K"] | None,
    patches_shape: tuple[int, int, int],
    classes_shape: tuple[int, int, int],
) -> Bool[Array, "B L"] | None:
    """Mask of [patches ; classes]; ``None`` when every token is real."""
    if grid_mask is None and class_mask is None:
        return None
    batch = patches_shape[0]
    if grid_mask is None:
        grid_mask = jnp.ones(patches_shape[:2], bool)
    if class_mask is None:
        class_mask = jnp.ones(classes_shape[:2], bool)
    return jnp.concatenate([grid_mask.reshape(batch, -1), class_mask], axis=1)
