"""Softmax attention whose memory is linear in the number of tokens.

The scores ``[queries, keys]`` exist for a few heads and one block of queries at a time;
the backward pass makes them again from the saved row log-sum-exps. XLA alone would keep
them for every head of every layer, which at 10,000 class tokens is most of the memory,
and on CPU its batched form is several times slower than one head after the other
(``benchmarks/`` has the figures). Where an accelerator has a kernel of its own for the
whole of it (``flash``), that one is taken.
"""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.distributed.sharding import by_platform, on_each_device, platform
from mlseg_jax.models.layers.dropout import keep_scale, number_values
from mlseg_jax.models.layers.flash import find_flash
from mlseg_jax.typing import Array, Bool, Float, PRNGKeyArray

MASKED = -1e30
"""Score of a masked key. Finite, so that a row with every key masked is not NaN."""

_SCORE_BYTES = 4 * 2**20
"""Scores made at a time on CPU: about what its last-level cache holds."""

_QUERY_BLOCK = 2048
"""Most queries of one head whose scores exist at a time; fewer with many keys."""


def attention(
    query: Float[Array, "B L heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
    key_mask: Bool[Array, "B M"] | None = None,
    *,
    dropout_rate: float = 0.0,
    rng: PRNGKeyArray | None = None,
) -> Float[Array, "B L heads d"]:
    """Scaled dot-product attention; keys where ``key_mask`` is False get no weight.

    With ``rng``, weights are dropped at ``dropout_rate`` after the softmax.
    """
    batch, num_queries, num_heads, head_dim = query.shape
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    drops = rng is not None and dropout_rate > 0
    flash = None
    if not drops:
        flash = find_flash(platform(), query, key, masked=key_mask is not None)
    if flash is not None:
        return on_each_device(flash)(scaled, key, value, key_mask)

    return _in_blocks(
        scaled, key, value, key_mask, dropout_rate, rng if drops else None
    )[0]


def attention_with_own(
    query: Float[Array, "B L heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
    own_key: Float[Array, "B L heads d"],
    own_value: Float[Array, "B L heads d"],
    key_mask: Bool[Array, "B M"] | None = None,
    *,
    dropout_rate: float = 0.0,
    rng: PRNGKeyArray | None = None,
) -> Float[Array, "B L heads d"]:
    """As `attention`, but each query also sees a key of its own, which no other sees.

    Linear in the queries. With ``rng`` the weights of the shared keys are dropped.
    """
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    drops = rng is not None and dropout_rate > 0
    shared, lse = _in_blocks(
        scaled, key, value, key_mask, dropout_rate, rng if drops else None
    )
    score = jnp.sum((scaled * own_key).astype(jnp.float32), axis=-1)
    # The softmax of one more key, from what the others add up to.
    weight = jax.nn.sigmoid(score - lse)[..., None].astype(shared.dtype)
    return shared + weight * (own_value - shared)


def _in_blocks(scaled, key, value, key_mask, dropout_rate, rng):
    """Attention of scaled queries, and the row log-sum-exps ``[B L heads]``; ``rng``
    where weights are dropped.
    """
    batch, num_queries, num_heads, head_dim = scaled.shape

    def heads_first(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(batch * num_heads, -1, head_dim)

    bias = None
    if key_mask is not None:
        bias = jnp.where(key_mask, 0.0, MASKED).astype(jnp.float32)
        bias = jnp.repeat(bias, num_heads, axis=0)[:, None, :]
    seeds = None
    if rng is not None:
        seeds = jax.random.bits(rng, (batch * num_heads,))
    out, lse = on_each_device(functools.partial(_attend, dropout_rate))(
        heads_first(scaled), heads_first(key), heads_first(value), bias, seeds
    )
    out = out.reshape(batch, num_heads, num_queries, head_dim)
    lse = lse.reshape(batch, num_heads, num_queries)
    return out.transpose(0, 2, 1, 3), lse.transpose(0, 2, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(dropout_rate, query, key, value, bias, seeds):
    """Attention over ``[n, tokens, d]``, n being (example, head) pairs, and the row
    log-sum-exps of its scores.
    """
    return _forward(dropout_rate, query, key, value, bias, seeds)[0]


def _forward(dropout_rate, query, key, value, bias, seeds):
    head = functools.partial(_forward_head, dropout_rate=dropout_rate)
    out, lse = _over_heads(head, query, key)(query, key, value, bias, seeds)
    return (out, lse), (query, key, value, bias, seeds, out, lse)


def _backward(dropout_rate, residuals, grads):
    query, key, value, bias, seeds, out, lse = residuals
    out_grad, lse_grad = grads
    # The gradient of a log-sum-exp are the weights themselves.
    delta = jnp.sum((out_grad * out).astype(jnp.float32), axis=-1) - lse_grad
    head = functools.partial(_backward_head, dropout_rate=dropout_rate)
    grads = _over_heads(head, query, key)(
        query, key, value, bias, seeds, lse, delta, out_grad
    )
    return *grads, None, None


_attend.defvjp(_forward, _backward)


def _over_heads(function, query: Array, key: Array):
    """Maps ``function`` over the leading axis, a cache-sized group at a time on CPU."""
    scores = min(query.shape[1], _query_block(key.shape[1])) * key.shape[1] * 4
    group = _SCORE_BYTES // scores

    def on_cpu(*args):
        # A group of one would still become a batched, slower product.
        batch_size = group if group > 1 else None
        return jax.lax.map(lambda row: function(*row), args, batch_size=batch_size)

    def elsewhere(*args):
        # Accelerators want every head at once; long sequences are still blocked.
        return jax.vmap(function)(*args)

    return by_platform(cpu=on_cpu, default=elsewhere)


def _scores(query, key, bias):
    scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + bias


def _forward_head(query, key, value, bias, seed, *, dropout_rate):
    """One head: ``[L d], [M d], [M d], [1 M]`` to the output and row log-sum-exps."""

    keys = jnp.arange(key.shape[0])

    def block(query, rows):
        scores = _scores(query, key, bias)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if seed is not None:
            index = number_values(rows[:, None], keys[None])
            weights *= keep_scale(seed, index, dropout_rate)
        out = jnp.matmul(
            weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        return (out / total).astype(value.dtype), (top + jnp.log(total))[:, 0]

    return _over_query_blocks(block, query, _query_block(key.shape[0]))


def _backward_head(
    query, key, value, bias, seed, lse, delta, out_grad, *, dropout_rate
):
    keys = jnp.arange(key.shape[0])

    def block(rows, query, lse, delta, out_grad):
        # Keys down, queries across: two of the three gradients are then plain products
        # and one has a transposed factor, which is slower; the other way it is two.
        weights = jnp.exp(_scores(key, query, bias) - lse[None])
        weight_grad = jnp.matmul(value, out_grad.T, preferred_element_type=jnp.float32)
        dropped = weights
        if seed is not None:
            index = number_values(rows[None], keys[:, None])
            scale = keep_scale(seed, index, dropout_rate)
            dropped, weight_grad = weights * scale, weight_grad * scale
        value_grad = jnp.matmul(
            dropped.astype(value.dtype), out_grad, preferred_element_type=jnp.float32
        )
        score_grad = (weights * (weight_grad - delta[None])).astype(key.dtype)
        query_grad = jnp.matmul(score_grad.T, key, preferred_element_type=jnp.float32)
        key_grad = jnp.matmul(score_grad, query, preferred_element_type=jnp.float32)
        return query_grad.astype(query.dtype), (key_grad, value_grad)

    bias = None if bias is None else bias.T
    num_queries, size = query.shape[0], _query_block(key.shape[0])
    rows = jnp.arange(num_queries)
    if num_queries <= size:
        query_grad, (key_grad, value_grad) = block(rows, query, lse, delta, out_grad)
    else:
        blocks = [_split_queries(x, size) for x in (rows, query, lse, delta, out_grad)]

        def step(sums, args):
            query_grad, grads = block(*args)
            return jax.tree.map(jnp.add, sums, grads), query_grad

        zeros = (jnp.zeros(key.shape, jnp.float32),) * 2
        (key_grad, value_grad), query_grad = jax.lax.scan(step, zeros, tuple(blocks))
        query_grad = query_grad.reshape(-1, query.shape[1])[:num_queries]
    return query_grad, key_grad.astype(key.dtype), value_grad.astype(value.dtype)


def _query_block(num_keys: int) -> int:
    """Queries of a block: they have at most one and a half million scores.

    A multiple of 128: with 156 rows of 10,000 keys the products on CPU take half as
    long again as with 128 or 256.
    """
    return max(128, min(_QUERY_BLOCK, 3 * 2**19 // num_keys // 128 * 128))


def _over_query_blocks(block, query, size: int):
    num_queries = query.shape[0]
    rows = jnp.arange(num_queries)
    if num_queries <= size:
        return block(query, rows)
    outputs = jax.lax.map(
        lambda args: block(*args),
        (_split_queries(query, size), _split_queries(rows, size)),
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_queries], outputs)


def _split_queries(x: Array, size: int) -> Array:
    """``[L ...]`` to ``[blocks, block, ...]``, zero-padded at the end."""
    num_blocks = -(-x.shape[0] // size)
    block = -(-x.shape[0] // num_blocks)
    padding = [(0, num_blocks * block - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(num_blocks, block, *x.shape[1:])
