"""Attention kernels of accelerators: scores never leave the chip.

cuDNN's on NVIDIA GPUs, Pallas' splash attention on TPUs. Neither drops weights, and
cuDNN's knows no mask of keys; `attention.attention` goes by blocks then.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Bool, Float

TPU_BLOCKS = (512, 384, 256)
"""Tokens of a block of queries or keys on TPU; multiples of its 128 lanes."""

Flash = Callable[[Array, Array, Array, Array | None], Array]


def find_flash(
    platform: str, query: Float[Array, "B L heads d"], *, masked: bool
) -> Flash | None:
    """The kernel for scaled queries like ``query`` on a platform; None without any.

    It takes queries, keys, values and, where ``masked``, the mask of keys.
    """
    if platform == "tpu":
        return tpu_attention
    takes = functools.partial(_cudnn_takes, query.shape[-1], query.dtype.name)
    return gpu_attention if platform == "gpu" and not masked and takes() else None


def gpu_attention(
    query: Float[Array, "B L heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
    key_mask: None = None,
) -> Float[Array, "B L heads d"]:
    """cuDNN's fused attention, whose gradient takes even numbers of tokens alone."""
    del key_mask
    num_queries, num_keys = query.shape[1], key.shape[1]
    lengths = None
    if num_keys % 2:
        lengths = jnp.full(key.shape[0], num_keys, jnp.int32)
    out = jax.nn.dot_product_attention(
        *(_pad(x, x.shape[1] % 2) for x in (query, key, value)),
        scale=1.0,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :num_queries]


@functools.cache
def _cudnn_takes(head_dim: int, dtype: str) -> bool:
    """cuDNN says no by an exception: it is not there, or not for such heads."""
    if dtype not in ("bfloat16", "float16"):
        return False
    if jax.default_backend() == "gpu":  # else the program is compiled for another one
        capability = getattr(jax.local_devices()[0], "compute_capability", "0")
        if float(capability) < 8.0:
            return False
    heads = jax.ShapeDtypeStruct((1, 128, 1, head_dim), dtype)
    try:
        jax.eval_shape(gpu_attention, heads, heads, heads)
    except RuntimeError:
        return False
    return True


def tpu_attention(
    query: Float[Array, "B L heads d"],
    key: Float[Array, "B M heads d"],
    value: Float[Array, "B M heads d"],
    key_mask: Bool[Array, "B M"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B L heads d"]:
    """Splash attention; sequences are padded to whole blocks, which no query sees."""
    # Here, because importing Pallas takes a second that nobody else need wait for.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as splash_mask,
    )

    batch, num_queries, num_heads, _ = query.shape
    num_keys = key.shape[1]
    block_q, padded_queries = whole_blocks(num_queries)
    block_k, padded_keys = whole_blocks(num_keys)
    if key_mask is None:
        key_mask = jnp.ones((batch, num_keys), bool)
    # Tokens see those with the same number: queries are all 1, hidden keys 0.
    segments = splash.SegmentIds(
        jnp.ones((batch, padded_queries), jnp.int32),
        jnp.pad(key_mask.astype(jnp.int32), [(0, 0), (0, padded_keys - num_keys)]),
    )
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask(
            [splash_mask.FullMask((padded_queries, padded_keys))] * num_heads
        ),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def heads_first(x: Array, length: int) -> Array:
        return _pad(x, length - x.shape[1]).transpose(0, 2, 1, 3)

    out = jax.vmap(kernel)(
        heads_first(query, padded_queries),
        heads_first(key, padded_keys),
        heads_first(value, padded_keys),
        segments,
    )
    return out.transpose(0, 2, 1, 3)[:, :num_queries]


def _pad(x: Array, count: int) -> Array:
    """So many zero tokens after the others."""
    return jnp.pad(x, [(0, 0), (0, count), (0, 0), (0, 0)])


def whole_blocks(length: int) -> tuple[int, int]:
    """The block that pads a sequence least, and the padded length."""
    return min(
        ((block, -(-length // block) * block) for block in TPU_BLOCKS),
        key=lambda pair: pair[1],
    )
