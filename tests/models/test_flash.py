"""Kernels of accelerators: the TPU's on an interpreter, and which is taken when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mlseg_jax.distributed.sharding import make_mesh, within
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

    def spy(platform, query, key, *, masked):
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


@pytest.mark.parametrize(
    "tokens, width, masked", [(1025, 64, True), (1297, 80, False), (4097, 64, False)]
)
def test_splash_attention_of_the_sizes_of_pictures(tokens, width, masked):
    """512, 576, 1,024 pixels by 16 and a class token; heads of ViT-L and ViT-H."""
    kernel = functools.partial(flash.tpu_attention, interpret=True)
    error = jax.jit(
        lambda: flash._try(kernel, tokens, tokens, width, "bfloat16", masked)
    )()
    assert error < flash._TOLERANCE / 2


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with a GPU that nobody has asked for its kernel."""
    flash._runs.cache_clear()
    flash._said.clear()
    monkeypatch.setattr(attention_module, "platform", lambda: "gpu")
    monkeypatch.setattr(flash, "_is_here", lambda platform: True)
    yield monkeypatch
    flash._runs.cache_clear()


def plain(query, key, value, mask=None):
    return jax.nn.dot_product_attention(query, key, value, scale=1.0)


def raises(query, key, value, mask=None):
    """Traces and compiles, as cuDNN's do whose engines are not there at run time."""

    def fail(query):
        raise RuntimeError("No valid engine configs")

    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return plain(jax.pure_callback(fail, out, jax.lax.stop_gradient(query)), key, value)


def is_wrong(query, key, value, mask=None):
    return 1.2 * plain(query, key, value)


@pytest.mark.parametrize("kernel", [raises, is_wrong, plain])
def test_a_kernel_is_run_before_it_is_taken(gpu, caplog, kernel):
    """In the middle of tracing a step. One that fails is said once, and not taken."""
    runs = []

    def counted(*args):
        runs.append(1)
        return kernel(*args)

    gpu.setattr(flash, "gpu_attention", counted)
    inputs = [x.astype(jnp.bfloat16) for x in make_inputs(queries=9, keys=9)[:3]]
    out = jax.jit(lambda *x: attention(*x) + attention(*x))(*inputs)
    expected = 2 * plain(inputs[0] * 8**-0.5, *inputs[1:])
    np.testing.assert_allclose(
        *(x.astype(jnp.float32) for x in (out, expected)), atol=0.05
    )
    longer = [x[:, :7] for x in inputs]
    attention(*longer)
    said = [r.getMessage() for r in caplog.records if r.name == flash.logger.name]
    if kernel is plain:
        assert not said and len(runs) == 5  # one trial of each length, and three uses
        return
    assert len(said) == 1 and len(runs) == 2
    assert (
        "JaxRuntimeError: INTERNAL" if kernel is raises else "it is wrong by 0.2"
    ) in said[0]
    assert "9 queries, 9 keys and heads of 8 in bfloat16" in said[0]


def test_masks_and_full_precision_are_not_for_cudnn(gpu):
    gpu.setattr(flash, "_try", None)
    query = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    assert flash.find_flash("gpu", query, query, masked=True) is None
    query = query.astype(jnp.float32)
    assert flash.find_flash("gpu", query, query, masked=False) is None


def test_a_planned_machine_is_asked_by_tracing(gpu):
    gpu.setattr(flash, "_is_here", lambda platform: False)
    gpu.setattr(flash, "gpu_attention", raises)
    query = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    assert flash.find_flash("gpu", query, query, masked=False) is raises

    def no_cudnn(*_, **__):
        raise RuntimeError("cuDNN is not detected.")

    gpu.setattr(flash, "gpu_attention", no_cudnn)
    assert flash.find_flash("gpu", query, query, masked=False) is None


def test_processes_take_the_kernel_together(gpu):
    """Where it fails in one, no other takes it: their programs must be the same."""
    flash._runs_everywhere.cache_clear()
    gpu.setattr(flash, "gpu_attention", plain)
    gpu.setattr(flash.processes, "are_connected", lambda: True)
    told = []

    def tell_all(name, value, seconds):
        told.append((name, value))
        return [value, "False"]

    gpu.setattr(flash.processes, "tell_all", tell_all)
    query = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    with within(make_mesh(tiny_config())):
        # A mesh of this process alone is nobody else's business.
        assert flash.find_flash("gpu", query, query, masked=False) is plain
        assert not told
        gpu.setattr(jax, "local_device_count", lambda: 4)
        assert flash.find_flash("gpu", query, query, masked=False) is None
    assert told == [("kernel/gpu-4-4-64-bfloat16-False", "True")]
    flash._runs_everywhere.cache_clear()
