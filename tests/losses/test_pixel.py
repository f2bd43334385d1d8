"""Upsampled cross-entropy, in strips, against upsampling everything at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.losses import pixel
from mlseg_jax.losses.reduce import mean_over_pixels
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")


def slow_upsample(grid, height, width):
    """Bilinear, align_corners=False, one pixel at a time; float64 weights."""

    def taps(i, length_out, length_in):
        x = max((i + 0.5) * length_in / length_out - 0.5, 0.0)
        low = min(int(x), length_in - 1)
        return low, min(low + 1, length_in - 1), x - int(x)

    rows = []
    for y in range(height):
        top, bottom, fy = taps(y, height, grid.shape[1])
        row = []
        for x in range(width):
            left, right, fx = taps(x, width, grid.shape[2])
            upper = (1 - fx) * grid[:, top, left] + fx * grid[:, top, right]
            lower = (1 - fx) * grid[:, bottom, left] + fx * grid[:, bottom, right]
            row.append((1 - fy) * upper + fy * lower)
        rows.append(jnp.stack(row, axis=1))
    return jnp.stack(rows, axis=1)


def slow_loss(logits, labels):
    pixels = slow_upsample(logits, *labels.shape[1:])
    log_probability = jax.nn.log_softmax(pixels, axis=-1)
    picked = jnp.take_along_axis(
        log_probability, jnp.maximum(labels, 0)[..., None], axis=-1
    )[..., 0]
    return jnp.where(labels == IGNORE, 0.0, -picked)


@pytest.mark.parametrize(
    "batch, grid, size, strip_bytes",
    [
        (1, (3, 4), (7, 9), 1),  # strips of one row
        (3, (3, 2), (7, 5), 4 * 5 * 5 * 3),  # three rows: padded at the end
        (2, (5, 4), (8, 6), 2**20),  # one strip
        (1, (6, 7), (4, 5), 2**20),  # shrinking: no anti-aliasing
    ],
)
def test_against_plain_upsampling(monkeypatch, batch, grid, size, strip_bytes):
    monkeypatch.setattr(pixel, "STRIP_BYTES", strip_bytes)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(batch, *grid, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(-1, 5, (batch, *size)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(batch, *size)), jnp.float32)

    def run(function, logits):
        losses = function(logits, labels)
        return jnp.sum(losses * weights), losses

    results = [
        jax.jit(jax.value_and_grad(functools.partial(run, f), has_aux=True))(logits)
        for f in (pixel.upsampled_cross_entropy, slow_loss)
    ]
    ((_, losses), grad), ((_, expected), expected_grad) = results
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_ignored_everywhere():
    labels = jnp.full((2, 5, 6), IGNORE)
    logits = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    for over in ("all", "valid"):

        def loss(logits, over=over):
            losses = pixel.upsampled_cross_entropy(logits, labels)
            return mean_over_pixels(losses, labels != IGNORE, over=over).value()

        value, grad = jax.value_and_grad(loss)(logits)
        assert value == 0.0
        np.testing.assert_array_equal(grad, 0.0)


def test_extreme_logits():
    logits = jnp.asarray([-100.0, 300.0, -1e4, 0.0]).reshape(1, 1, 1, 4)
    labels = jnp.asarray([[[0, 1], [2, 3]]], jnp.int32)
    losses, grad = jax.value_and_grad(
        lambda x: jnp.sum(pixel.upsampled_cross_entropy(x, labels))
    )(logits)
    np.testing.assert_allclose(losses, 400.0 + 0.0 + 10300.0 + 300.0, rtol=1e-6)
    assert np.all(np.isfinite(grad))


def test_bfloat16_logits_are_widened():
    logits = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    labels = jnp.zeros((1, 4, 4), jnp.int32)
    losses = pixel.upsampled_cross_entropy(logits, labels)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, np.log(3.0), rtol=1e-6)


@pytest.mark.parametrize("num_nearest", [3, 40])
def test_nearest_classes(num_nearest):
    """One pixel at a time, with the places filled as the release does."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 3, 4, 9)).astype(np.float32)
    labels = rng.integers(-1, 9, (2, 7, 6)).astype(np.int32)
    expected = np.zeros(labels.shape)
    pixels = np.asarray(slow_upsample(logits, 7, 6))
    for where in np.ndindex(labels.shape):
        label, values = int(labels[where]), pixels[where]
        if label == IGNORE:
            continue
        best = np.argsort(-values)[:num_nearest].tolist()
        ids = [label, *(max(label - 1, 0) if c == label else c for c in best)]
        expected[where] = np.log(np.sum(np.exp(values[ids]))) - values[label]
    losses = jax.jit(
        lambda *args: pixel.nearest_class_cross_entropy(*args, num_nearest)
    )(logits, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
