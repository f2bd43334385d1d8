"""Losses of regions against those of transformers, with the same points."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import close, load

from mlseg_jax.losses.regions.loss import reduce_region_losses, region_losses
from mlseg_jax.losses.regions.mask import MASK2FORMER, MASKFORMER
from mlseg_jax.losses.regions.targets import Targets

pytestmark = pytest.mark.usefixtures("quick_compiles")

CASES = {
    "region_points": dataclasses.replace(MASK2FORMER, num_points=40),
    "region_pixels": MASKFORMER,
}
LEAVES = "class_logits", "embeddings", "features"


def as_bits(ids, num_segments):
    """The same segments as a stack of bits."""
    masks = ids[:, None] == np.arange(num_segments)[None, :, None, None]
    return np.packbits(masks, axis=-1)


def file_points(cost_points, points, prediction, image, stream, count):
    """The points of the file, where a step would draw some."""
    own = points[prediction, image, jnp.maximum(stream - 1, 0)]
    if count != points.shape[3]:
        own = cost_points[prediction, image]
    return own[:count]


@pytest.mark.parametrize(
    "case, stack", [("region_points", False), ("region_pixels", True)]
)
def test_losses_and_gradients(case, stack):
    golden, settings = load(f"frameworks/{case}"), CASES[case]
    inputs = {k[6:]: v for k, v in golden.items() if k.startswith("input:")}
    ids, ranks = inputs["ids"], inputs["ranks"]
    masks = as_bits(ids, ranks.shape[1]) if stack else ids
    targets = Targets(
        jnp.asarray(ranks), jnp.asarray(ranks >= 0), jnp.asarray(masks), None,
        ids.shape[1:],
    )  # fmt: skip
    drawn = [jnp.asarray(v) for k, v in inputs.items() if "points" in k]
    draw = jax.tree_util.Partial(file_points, *drawn)  # none for pixels

    @jax.jit
    def run(leaves, targets, draw):
        def loss(leaves):
            losses = region_losses(settings, *leaves, targets, draw)
            total, parts = reduce_region_losses(settings, losses)
            return total, (parts, losses)

        return jax.value_and_grad(loss, has_aux=True)(leaves)

    leaves = tuple(jnp.asarray(inputs[name]) for name in LEAVES)
    (total, (parts, losses)), grads = run(leaves, targets, draw)
    np.testing.assert_array_equal(losses.queries, golden["output:queries"])
    for name, part in parts.items():
        close(part, golden[f"output:{name}"])
    close(total, golden["output:loss"])
    for name, grad in zip(LEAVES, grads, strict=True):
        expected = golden[f"grad:{name}"]
        atol = 3e-5 * np.abs(expected).max()
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=atol)
    np.testing.assert_array_equal(losses.num_targets, (ranks >= 0).sum(axis=1))
    assert not np.any(losses.bad_costs)
