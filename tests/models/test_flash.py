"""Kernels of accelerators: the TPU's on an interpreter, and which is taken when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.models.layers import attention as attention_module
from mlseg_jax.models.layers import flash
from mlseg_jax.models.layers.attention import attention

pytestmark = pytest.mark.usefixtures("quick_compiles")


def make_inputs(batch=2, queries=133, keys=260, heads=2, width=8):
    random = np.random.default_rng(0)
    shapes = (queries, keys, keys, queries)
    return [
        jnp.asarray(random.normal(size=(batch, n, heads, width)), jnp.float32)
        for n in shapes
    ]


def value_and_grads(function, query, key, value, weights):
    def total(*inputs):
        out = function(*inputs)
        return jnp.sum(out * weights), out

    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = grad(query, key, value)
    return out, *grads


@pytest.mark.parametrize("masked", [False, True])
def test_splash_attention_is_attention(monkeypatch, masked):
    """Lengths that are no whole blocks, more than one block, hidden keys; gradients."""
    monkeypatch.setattr(flash, "TPU_BLOCKS", (256, 128))
    inputs = make_inputs()
    mask = None
    if masked:
        mask = jnp.asarray(np.random.default_rng(1).random((2, 260)) < 0.7)
    kernel = functools.partial(flash.tpu_attention, key_mask=mask, interpret=True)

    def scaled(query, key, value):
        return kernel(query * query.shape[-1] ** -0.5, key, value)

    expected = value_and_grads(functools.partial(attention, key_mask=mask), *inputs)
    for ours, blocked in zip(value_and_grads(scaled, *inputs), expected, strict=True):
        np.testing.assert_allclose(ours, blocked, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("queries, keys", [(6, 9), (7, 4)])
def test_odd_numbers_of_tokens_are_padded_for_cudnn(monkeypatch, queries, keys):
    plain = jax.nn.dot_product_attention

    def in_place_of_cudnn(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        assert query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
        return plain(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_place_of_cudnn)
    inputs = make_inputs(queries=queries, keys=keys)
    ours = value_and_grads(
        lambda query, *others: flash.gpu_attention(query * 8**-0.5, *others), *inputs
    )
    for padded, blocked in zip(ours, value_and_grads(attention, *inputs), strict=True):
        np.testing.assert_allclose(padded, blocked, rtol=1e-4, atol=2e-5)


def test_blocks_pad_little():
    assert flash.whole_blocks(1024) == (512, 1024)
    assert flash.whole_blocks(1025) == (384, 1152)
    assert flash.whole_blocks(1601) == (256, 1792)
    for length in (1, 77, 1074, 2308, 11_024):
        block, padded = flash.whole_blocks(length)
        assert padded % block == 0 and length <= padded < length + 256


def test_which_kernel_is_taken(monkeypatch):
    """Weights are dropped by the blocked form alone; no kernel runs on CPU."""
    taken = []

    def spy(platform, query, *, masked):
        taken.append((platform, masked))
        return (lambda query, key, value, mask: query) if platform == "tpu" else None

    monkeypatch.setattr(attention_module, "find_flash", spy)
    query, key, value, _ = make_inputs(queries=5, keys=5)
    jax.eval_shape(attention, query, key, value)
    assert taken == [("cpu", False)]
    monkeypatch.setattr(attention_module, "platform", lambda: "tpu")
    out = attention(query, key, value, jnp.ones((2, 5), bool))
    np.testing.assert_allclose(out, query * 8**-0.5)
    assert taken[1:] == [("tpu", True)]
    drop = functools.partial(attention, dropout_rate=0.1, rng=jax.random.key(0))
    jax.eval_shape(drop, query, key, value)
    assert len(taken) == 2


def test_cudnn_is_asked_first(monkeypatch):
    flash._cudnn_takes.cache_clear()
    half = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    asked = []

    def no_cudnn(query, *_, **__):
        asked.append(query.shape)
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", no_cudnn)
    assert flash.find_flash("gpu", half, masked=True) is None
    assert flash.find_flash("gpu", half.astype(jnp.float32), masked=False) is None
    assert not asked
    assert flash.find_flash("gpu", half, masked=False) is None
    assert len(asked) == 1
    flash._cudnn_takes.cache_clear()
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: q)
    assert flash.find_flash("gpu", half, masked=False) is flash.gpu_attention
    flash._cudnn_takes.cache_clear()
