"""Small programs through the rules of ONNX and its runtime, against JAX."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from mlseg_jax.errors import UserError
from mlseg_jax.export import artifacts, parity
from mlseg_jax.export.onnx_files import write_onnx
from mlseg_jax.export.onnx_weights import Weights


def run_onnx(folder, function, arrays, opset=17, quantize=None, any_batch=False):
    """What ONNX Runtime makes of a function of arrays that returns some."""
    batch = artifacts.any_batch() if any_batch else None
    inputs = {
        f"x{i}": jax.ShapeDtypeStruct(
            (batch, *x.shape[1:]) if batch else x.shape, x.dtype
        )
        for i, x in enumerate(arrays)
    }

    def named(*given):
        return {f"y{i}": y for i, y in enumerate(function(*given))}

    with contextlib.closing(Weights(folder, quantize)) as weights:
        write_onnx(folder / "f.onnx", named, inputs, weights, opset=opset, batch=batch)
    session = onnxruntime.InferenceSession(folder / "f.onnx")
    return session.run(None, dict(zip(inputs, map(np.asarray, arrays), strict=True)))


def check(folder, function, *arrays, error=1e-6, **options):
    found = run_onnx(folder, function, arrays, **options)
    wanted = function(*map(jnp.asarray, arrays))
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=error, atol=error)


X = np.arange(-12, 12, dtype=np.float32).reshape(4, 6) / 4


def test_long_loops(tmp_path):
    def twice(x, rows):
        def body(carry, row):
            carry = 0.5 * carry + row
            return carry, carry

        return lax.scan(body, x, rows)

    def from_outside(x, rows):
        other = x * 3

        def body(carry, row):
            return carry + row, (other, row, row, carry)

        carry, kept = lax.scan(body, x, rows)
        return (carry, *kept)

    rows = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
    check(tmp_path, twice, X[0], rows)
    check(tmp_path, from_outside, X[0], rows)


def kept(x):
    """A function with a gradient of its own, of something that is constant."""
    return jax.nn.relu(x) * jax.nn.softplus(jax.nn.relu(jnp.asarray(X)))


def places(x, start):
    """Slices near the ends, whose place is known along some axes."""
    return (
        lax.dynamic_slice(x, (start[0], 5), (2, 3)),
        lax.dynamic_slice(x, (start[1], start[0]), (3, 2)),
        lax.dynamic_slice(x, (3, -9), (2, 3)),
    )


def whole_numbers(x):
    n = (x * 4).astype(jnp.int32)
    return n & 6, n | 3, ~n, n ^ 5, (n > 2) & ~(n > 5), (n > 2) ^ (n > 5)


def pooled(x):
    def sums(pads):
        return lax.reduce_window(
            x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), ((0, 0), *pads, (0, 0))
        )

    kernel = jnp.arange(8.0, dtype=jnp.float32).reshape(2, 2, 1, 2)
    convolved = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((-1, 2), (1, -2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return sums(((-1, 1), (0, -2))), convolved


def rounded(x):
    x = jnp.concatenate([x.ravel() * 2, jnp.float32([0.49999997, jnp.inf, -jnp.inf])])
    return lax.round(x), jnp.round(x), jnp.maximum(x > 0, x < -1)


def test_rules(tmp_path):
    check(tmp_path, lambda x: (kept(x), jax.checkpoint(jnp.sin)(x)), X)
    for start in ([-3, 9], [1, 3], [7, -1]):
        check(tmp_path, places, X, np.int32(start))
    check(tmp_path, whole_numbers, X, opset=18)
    check(tmp_path, pooled, X.reshape(1, 4, 6, 1))
    check(tmp_path, rounded, X)
    check(
        tmp_path,
        lambda x: (*lax.top_k(x * x, 2, axis=0), lax.tile(x, (2, 3)), x[9:, -1:]),
        X,
    )
    for any_batch in (True, False):
        check(
            tmp_path,
            lambda x: (jnp.arange(x.shape[0])[:, None] * x, lax.tile(x, (1, 2))),
            X,
            any_batch=any_batch,
        )


def test_what_has_no_rule_is_said(tmp_path):
    def product(x):
        return (lax.reduce(x, jnp.float32(0), lambda a, b: a * b + a, (0,)),)

    with pytest.raises(UserError, match="'reduce'"):
        run_onnx(tmp_path, product, [X])
    with pytest.raises(UserError, match="--opset=18"):
        run_onnx(tmp_path, whole_numbers, [X])

    def second(x):
        return (lax.dynamic_slice(x, (1, 0), (1, 6)),)

    with pytest.raises(UserError, match="--batch=1"):
        run_onnx(tmp_path, second, [X], any_batch=True)


def test_constants_of_loops_inside_loops_and_large_ones(tmp_path):
    """Loops too long to be laid out use large arrays two levels down."""
    table = jnp.asarray(np.random.default_rng(1).normal(size=(80, 80)), jnp.float32)
    masked = table.at[0, 0].set(-1e9)

    def nested(x):
        def inner(carry, row):
            return 0.9 * carry + jnp.tanh(row @ table), None

        def outer(carry, _):
            return lax.scan(inner, carry, masked[:70])[0], None

        return (lax.scan(outer, x, None, length=65)[0],)

    x = np.ones(80, np.float32)
    check(tmp_path, nested, x, error=1e-4)
    assert len(run_onnx(tmp_path, nested, [x], quantize="float16")) == 1
    (found,) = run_onnx(tmp_path, lambda x: (x + masked[0],), [x], quantize="float16")
    assert found[0] == np.float32(-1e9)


def test_files_that_say_something_else_are_an_error():
    found = {"largest_difference_of_scores": 9e-5, "largest_difference_of_logits": 1e-6}
    parity.judge(found, "out")
    for wrong in (2e-4, np.inf, np.nan):
        with pytest.raises(UserError, match="scores differ.*logits.*files are in out"):
            parity.judge(found | {"largest_difference_of_logits": wrong}, "out")


def test_one_line_for_files_of_several_sizes():
    one = {"pictures": "3 of noise", "pixels": 10, "different_pixels": 1}
    one |= {"largest_difference_of_scores": 1e-6, "milliseconds_here": 2.0}
    two = one | {"pixels": 30, "largest_difference_of_scores": np.nan}
    found = parity.together([one, two, one])
    assert found["pixels"] == 50 and found["milliseconds_here"] == 6
    assert found["pictures"] == "3 of noise"
    assert np.isnan(found["largest_difference_of_scores"])
