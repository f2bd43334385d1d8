"""The pre-norm transformer block."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.layers.attention import attention
from mlseg_jax.models.layers.contexts import PlacedTokens
from mlseg_jax.models.layers.dropout import drop_path, dropout
from mlseg_jax.models.layers.long_sequences import (
    is_long,
    over_rows,
    over_rows_in_training,
)
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.macs import Macs, norm, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

linear_init = nnx.initializers.normal(0.02)
"""PyTorch's ``trunc_normal_(std=0.02)`` truncates at +-2, a hundred deviations out."""


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's own for weights and biases of a linear layer: +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def initial(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initial


Context = Bool[Array, "B L"] | Int[Array, "B 2"] | tuple[int, int] | PlacedTokens | None
"""What an attention is told of its tokens: which are real, who sees whom, or the size
of grids.
"""


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


class MultiHeadAttention(nnx.Module):
    """Self-attention with one fused projection to queries, keys and values.

    Without ``key_bias`` only queries and values have one.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout_rate: float = 0.0,
        key_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear, kernel_init=linear_init, dtype=dtype, rngs=rngs
        )
        self.query_key_value = linear(embed_dim, 3 * embed_dim, use_bias=key_bias)
        self.query_bias = None if key_bias else nnx.Param(jnp.zeros(embed_dim))
        self.value_bias = None if key_bias else nnx.Param(jnp.zeros(embed_dim))
        self.out = linear(embed_dim, embed_dim)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        context: Bool[Array, "B L"] | PlacedTokens | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        weight_rng, out_rng = split_rng(rng, 2)
        query, key, value = self.project(tokens)
        drop = {"dropout_rate": self.dropout_rate, "rng": weight_rng}
        if isinstance(context, PlacedTokens):
            out = context.attend(query, key, value, **drop)
        else:
            out = attention(query, key, value, context, **drop)
        return self.join(out, out_rng)

    def project(
        self, tokens: Float[Array, "B L D"]
    ) -> list[Float[Array, "B L heads d"]]:
        """Queries, keys and values."""
        projected = self.query_key_value(tokens)
        if self.query_bias is not None:
            projected = projected + self._biases()[None, None].astype(projected.dtype)
        # Not sliced: the gradient is one concatenation, not a sum of padded ones.
        return [
            part.reshape(*part.shape[:2], self.num_heads, -1)
            for part in jnp.split(projected, 3, axis=-1)
        ]

    def join(
        self, out: Float[Array, "B L heads d"], rng: PRNGKeyArray | None
    ) -> Float[Array, "B L D"]:
        """What goes on of the heads' results."""
        out = self.out(out.reshape(*out.shape[:2], -1))
        return dropout(out, self.dropout_rate, rng)

    def _biases(self) -> Float[Array, "three_D"]:
        """Of queries, keys and values side by side."""
        if self.query_bias is None:
            return self.query_key_value.bias[...]
        query, value = self.query_bias[...], self.value_bias[...]
        return jnp.concatenate([query, jnp.zeros_like(query), value])

    def add_head_by_head(
        self,
        residual: Float[Array, "B L D"],
        tokens: Float[Array, "B L D"],
        context: Bool[Array, "B L"] | PlacedTokens | None,
        scale: Float[Array, "D"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Residual + attention of the tokens, with one head in memory at a time.

        ``scale`` is a factor on each channel of the attention (layer scale).
        """
        width, heads = tokens.shape[-1], self.num_heads
        dtype = tokens.dtype

        kernel = self.query_key_value.kernel[...].reshape(width, 3, heads, -1)
        bias = self._biases().reshape(3, heads, -1)
        out_kernel, out_bias = self.out.kernel[...], self.out.bias[...]
        if scale is not None:
            out_kernel, out_bias = out_kernel * scale[None], out_bias * scale
        out_kernel = out_kernel.reshape(heads, -1, width)

        def take(x: Array, head: Array, axis: int) -> Array:
            return jax.lax.dynamic_index_in_dim(x, head, axis, False).astype(dtype)

        def add_head(head: Array, total: Array) -> Array:
            kernels, biases = take(kernel, head, 2), take(bias, head, 1)
            query, key, value = (
                (tokens @ kernels[:, i] + biases[None, None, i])[:, :, None]
                for i in range(3)
            )
            if isinstance(context, PlacedTokens):
                out = context.attend(query, key, value, 0.0, None)[:, :, 0]
            else:
                out = attention(query, key, value, context)[:, :, 0]
            part = take(out_kernel, head, 0)
            return over_rows(lambda rows, out: rows + out @ part, total, out)

        total = jax.lax.fori_loop(0, heads, add_head, residual)
        return total + out_bias.astype(dtype)[None, None]


class TransformerBlock(nnx.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with the exact GELU.

    ``make_attention`` may be another than `MultiHeadAttention`. ``layer_scale`` is the
    initial value of one factor for each channel of both branches. ``gated`` makes the
    hidden layer silu(gate) x values (SwiGLU); the gate comes first.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        epsilon: float,
        dropout_rate: float = 0.0,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        make_attention: Callable[..., nnx.Module] = MultiHeadAttention,
        layer_scale: float | None = None,
        gated: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if embed_dim % num_heads:
            raise UserError(
                f"{num_heads} attention heads do not divide a width of {embed_dim}; "
                f"change num_heads or embed_dim."
            )
        linear = functools.partial(
            nnx.Linear,
            kernel_init=linear_init,
            bias_init=bias_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention_norm = LayerNorm(embed_dim, epsilon=epsilon)
        self.attention = make_attention(
            embed_dim, num_heads, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs
        )
        self.mlp_norm = LayerNorm(embed_dim, epsilon=epsilon)
        self.mlp_in = linear(embed_dim, 2 * mlp_dim if gated else mlp_dim)
        self.mlp_out = linear(mlp_dim, embed_dim)

        def scale():
            if layer_scale is None:
                return None
            return nnx.Param(jnp.full(embed_dim, layer_scale))

        self.attention_scale = scale()
        self.mlp_scale = scale()
        self.dropout_rate = dropout_rate
        self.gated = gated

    def __call__(
        self,
        tokens: Float[Array, "B *L D"],
        context: Context = None,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B *L D"]:
        """``context`` goes to the attention: a mask hides padding from all others."""
        long = tokens.ndim == 3 and is_long(tokens)
        if rng is None and long and isinstance(self.attention, MultiHeadAttention):
            normalised = over_rows(self.attention_norm, tokens)
            scale = self.attention_scale
            scale = None if scale is None else scale[...]
            tokens = self.attention.add_head_by_head(tokens, normalised, context, scale)
            return over_rows(lambda rows: rows + self.mlp(rows), tokens)
        attention_rng, *rngs = split_rng(rng, 4)
        branch = self.attention(self.attention_norm(tokens), context, attention_rng)
        return self.add_branches(tokens, branch, drop_path_rate, rngs)

    def add_branches(
        self,
        tokens: Float[Array, "B *L D"],
        branch: Float[Array, "B *L D"],
        drop_path_rate: float | Float[Array, ""],
        rngs: Sequence[PRNGKeyArray | None],
    ) -> Float[Array, "B *L D"]:
        """Tokens, what the attention gives of them, and the other branch of both."""
        path_rng, mlp_rng, mlp_path_rng = rngs
        branch = _scaled(branch, self.attention_scale)
        tokens = tokens + drop_path(branch, drop_path_rate, path_rng)
        if mlp_rng is not None and tokens.ndim == 3:
            branch = over_rows_in_training(self.mlp, tokens, mlp_rng)
        else:
            branch = self.mlp(tokens, mlp_rng)
        return tokens + drop_path(branch, drop_path_rate, mlp_path_rng)

    def macs(
        self, num_tokens: int, num_keys: int = 0, *, attention_in_paper: bool
    ) -> Macs:
        """The paper counted one of the two attention products, or nothing of it.

        ``num_keys``: what each token sees; 0 is all tokens.
        """
        width, hidden = self.mlp_in.in_features, self.mlp_out.in_features
        num_keys = num_keys or num_tokens
        attention = product(num_tokens, num_keys, width, in_paper=attention_in_paper)
        attention += product(num_tokens, num_keys, width, in_paper=False)
        attention += product(num_tokens, width, 4 * width, in_paper=attention_in_paper)
        mlp = product(num_tokens, width, self.mlp_in.out_features + hidden)
        return attention + mlp + 2 * norm(num_tokens, width)

    def mlp(self, tokens: Array, rng: PRNGKeyArray | None = None) -> Array:
        in_rng, out_rng = split_rng(rng, 2)
        hidden = self.mlp_in(self.mlp_norm(tokens))
        if self.gated:
            gate, hidden = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = gelu(hidden)
        hidden = dropout(hidden, self.dropout_rate, in_rng)
        branch = dropout(self.mlp_out(hidden), self.dropout_rate, out_rng)
        return _scaled(branch, self.mlp_scale)


def _scaled(branch: Array, scale: nnx.Param | None) -> Array:
    if scale is None:
        return branch
    return branch * scale[...].astype(branch.dtype).reshape(
        (1,) * (branch.ndim - 1) + (-1,)
    )


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
