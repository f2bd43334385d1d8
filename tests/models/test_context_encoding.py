"""EncNet's residual encoding against distances taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlseg_jax.models.layers.context_encoding import ContextEncoding

D, CODES = 6, 4

pytestmark = pytest.mark.usefixtures("quick_compiles")


def residuals(cells, codes, scales, mask):
    """``[B L D]`` to ``[B codes D]`` in double precision, a picture at a time."""
    results = []
    for picture, inside in zip(cells.astype(np.float64), mask, strict=True):
        differences = picture[inside][:, None] - codes.astype(np.float64)[None]
        exponents = scales * np.sum(differences**2, axis=-1)
        shares = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        results.append(np.einsum("ln,lnd->nd", shares, differences))
    return np.stack(results)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_residuals_far_from_zero(offset, batch):
    """Differences of squares of 100 would be off by a hundredth."""
    rng = np.random.default_rng(batch)
    module = ContextEncoding(D, CODES, rngs=nnx.Rngs(0))
    codes = (offset + rng.normal(size=(CODES, D))).astype(np.float32)
    module.codes[...] = jnp.asarray(codes)
    scales = np.asarray(module.code_scales[...], np.float64)
    cells = (offset + rng.normal(size=(batch, 15, D))).astype(np.float32)
    mask = np.ones((batch, 15), bool)
    expected = residuals(cells, codes, scales, mask)
    assert_close(module._residuals(jnp.asarray(cells), None), expected)
    # What lies beside a picture is no part of it.
    mask[0, 11:] = False
    cells[0, 11:] = 1e4
    found = module._residuals(jnp.asarray(cells), jnp.asarray(mask))
    assert_close(found, residuals(cells, codes, scales, mask))


def test_gradient():
    rng = np.random.default_rng(0)
    module = ContextEncoding(D, CODES, rngs=nnx.Rngs(0))
    scales = module.code_scales[...]
    cells = jnp.asarray(5 + rng.normal(size=(2, 7, D)), jnp.float32)
    codes = jnp.asarray(5 + rng.normal(size=(CODES, D)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, CODES, D)), jnp.float32)

    graph, state = nnx.split(module)

    def ours(cells, codes):
        bound = nnx.merge(graph, state, copy=True)
        bound.codes[...] = codes
        return jnp.sum(bound._residuals(cells, None) * weights)

    def plain(cells, codes):
        differences = cells[:, :, None] - codes[None, None]
        exponents = scales[None, None] * jnp.sum(differences**2, axis=-1)
        shares = jax.nn.softmax(exponents, axis=-1)
        return jnp.sum(jnp.einsum("bln,blnd->bnd", shares, differences) * weights)

    found, expected = (jax.grad(f, (0, 1))(cells, codes) for f in (ours, plain))
    for gradient, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
