"""Small programs through the rules of ONNX and its runtime, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from mlseg_jax.export import artifacts
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

    weights = Weights(folder, quantize)
    write_onnx(folder / "f.onnx", named, inputs, weights, opset=opset, batch=batch)
    weights.close()
    session = onnxruntime.InferenceSession(folder / "f.onnx")
    return session.run(None, dict(zip(inputs, map(np.asarray, arrays), strict=True)))


def check(folder, function, *arrays, **options):
    found = run_onnx(folder, function, arrays, **options)
    wanted = function(*map(jnp.asarray, arrays))
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


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
