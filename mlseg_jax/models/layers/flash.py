"""Attention kernels of accelerators: scores never leave the chip.

cuDNN's on NVIDIA GPUs, Pallas' splash attention on TPUs. Neither drops weights, and
cuDNN's knows no mask of keys; `attention.attention` goes by blocks then.
"""

import functools
import logging
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlseg_jax.distributed import processes
from mlseg_jax.typing import Array, Bool, Float

logger = logging.getLogger(__name__)

TPU_BLOCKS = (512, 384, 256)
"""Tokens of a block of queries or keys on TPU; multiples of its 128 lanes."""

Flash = Callable[[Array, Array, Array, Array | None], Array]


def find_flash(
    platform: str,
    query: Float[Array, "B L heads d"],
    key: Float[Array, "B M heads d"],
    *,
    masked: bool,
) -> Flash | None:
    """The kernel for scaled queries like ``query`` on a platform; None without any.

    It takes queries, keys, values and, where ``masked``, the mask of keys. Before the
    first use with such heads and so many tokens it is run once (`_runs`).
    """
    kernels = {"tpu": tpu_attention, "gpu": gpu_attention}
    if platform not in kernels or (platform == "gpu" and masked):
        return None
    shape = query.shape[1], key.shape[1], query.shape[-1]
    asked = platform, *shape, query.dtype.name, masked
    works = _runs(kernels[platform], *asked)
    mesh = jax.sharding.get_abstract_mesh()
    if processes.are_connected() and mesh.size > jax.local_device_count():
        works = _runs_everywhere(works, *asked)
    return kernels[platform] if works else None


@functools.cache
def _runs_everywhere(works: bool, *asked) -> bool:
    """Programs of several processes must be the same one, so all take it or none."""
    name = "kernel/" + "-".join(map(str, asked))
    return all(word == "True" for word in processes.tell_all(name, str(works), 600.0))


@functools.cache
def _runs(kernel, platform, num_queries, num_keys, head_dim, dtype, masked) -> bool:
    """Whether a kernel works: by running it, with its gradient, on one small head.

    Tracing cannot tell: engines that cuDNN lacks, and what a driver or another version
    refuses, show when the program is compiled or run. A failure is said once for heads
    of a kind. For a machine that is only planned with, the kernel is traced.
    """
    if platform == "gpu" and dtype not in ("bfloat16", "float16"):
        return False
    arguments = num_queries, num_keys, head_dim, dtype, masked
    if not _is_here(platform):
        try:
            jax.eval_shape(functools.partial(_try, kernel, *arguments))
        except (RuntimeError, NotImplementedError):
            return False
        return True
    reason: list[str] = []

    def run() -> None:
        try:
            with jax.default_device(jax.local_devices()[0]):
                error = float(jax.jit(functools.partial(_try, kernel, *arguments))())
            if not error < _TOLERANCE:
                reason.append(f"it is wrong by {error:.2g}")
        except Exception as error:  # noqa: BLE001 - whatever it is, there are blocks
            words = str(error).strip().split("\n")[0][:300]
            reason.append(f"{type(error).__name__}: {words}")

    # A thread of its own, as this one is in the middle of tracing another program.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    kind = platform, head_dim, dtype, masked
    if reason and kind not in _said:
        _said.add(kind)
        logger.warning(
            "The attention kernel of this %s does not work for %d queries, %d keys and "
            "heads of %d in %s (%s); attention goes by blocks there, which is slower.",
            *(platform.upper(), *arguments[:-1], reason[0]),
        )
    return not reason


_said: set[tuple] = set()

_TOLERANCE = 0.05
"""Of outputs and gradients in bfloat16, relative to the largest."""


def _is_here(platform: str) -> bool:
    """Whether this process has such devices, or plans for others."""
    return jax.default_backend() == platform


def _try(kernel, num_queries, num_keys, head_dim, dtype, masked) -> Float[Array, ""]:
    """How far a kernel's outputs, and gradients by the queries, are from the plain
    softmax's; of one head, and of the first queries alone, whose scores are few.
    """

    def draw(seed: int, length: int) -> Array:
        shape = (1, length, 1, head_dim)
        return jax.random.normal(jax.random.key(seed), shape).astype(dtype)

    query, key, value = draw(0, num_queries), draw(1, num_keys), draw(2, num_keys)
    query *= jnp.asarray(head_dim**-0.5, dtype)
    mask = jnp.arange(num_keys)[None] % 3 < 2 if masked else None
    few = min(num_queries, 128)

    def plain(query: Array, key: Array, value: Array) -> Array:
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        scores = jnp.einsum("blhd,bmhd->bhlm", query, key)
        if masked:
            scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
        return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), value)

    def results(attend, query: Array) -> list[Array]:
        def total(query: Array, key: Array, value: Array):
            out = attend(query, key, value)[:, :few].astype(jnp.float32)
            return jnp.sum(out * jnp.cos(jnp.arange(few))[None, :, None, None]), out

        grads, out = jax.grad(total, (0, 1, 2), has_aux=True)(query, key, value)
        return [out, *(grad.astype(jnp.float32) for grad in grads)]

    def error(ours: Array, theirs: Array) -> Array:
        difference = jnp.abs(ours[:, : theirs.shape[1]] - theirs)
        return jnp.max(difference) / jnp.max(jnp.abs(theirs))

    ours = results(lambda *x: kernel(*x, mask), query)
    theirs = results(plain, query[:, :few])
    return jnp.max(jnp.stack([error(*pair) for pair in zip(ours, theirs, strict=True)]))


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
