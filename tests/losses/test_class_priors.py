"""Class weights and logit adjustment against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import NUM_CLASSES, random_parameters, segmenter_config

from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.losses.class_priors import MAX_CLASS_WEIGHT, class_priors
from mlseg_jax.losses.reduce import mean_over_pixels
from mlseg_jax.metrics.label_recall import label_histogram
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.tasks import semantic

PIXELS = np.array([10_000, 5, 300, 0, 77, 1_000, 20, 20, 4, 900, 50])


def test_weights_and_offsets_are_those_of_numpy():
    priors = class_priors(PIXELS, "inverse_sqrt", 0.7)
    share = (PIXELS + 1) / (PIXELS + 1).sum()
    weights = (1 / np.sqrt(share)) / np.sum(share * (1 / np.sqrt(share)))
    np.testing.assert_allclose(
        priors.weights, np.minimum(weights, MAX_CLASS_WEIGHT), rtol=1e-6
    )
    np.testing.assert_allclose(priors.offsets, 0.7 * np.log(share), rtol=1e-6)
    equal = class_priors(np.full(5, 40), "inverse_sqrt", 0.0)
    np.testing.assert_allclose(equal.weights, 1.0, rtol=1e-6)
    assert equal.offsets is None
    assert class_priors(PIXELS, "none", 0.0).weights is None
    assert class_priors(None, "none", 0.0).offsets is None


@pytest.mark.parametrize("over", ["all", "valid"])
def test_weighted_means(over):
    rng = np.random.default_rng(0)
    valid = rng.random((2, 3, 4)) < 0.6
    losses = np.where(valid, rng.random((2, 3, 4)), 0.0)
    weights = rng.random((2, 3, 4)) + 0.5
    got = mean_over_pixels(
        jnp.float32(losses), jnp.asarray(valid), over, jnp.float32(weights)
    )
    total = (losses * weights).sum()
    divisor = losses.size if over == "all" else weights[valid].sum()
    np.testing.assert_allclose(got.value(), total / divisor, rtol=1e-6)
    nothing = mean_over_pixels(
        jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2), bool), over, jnp.ones((1, 2, 2))
    )
    assert nothing.value() == 0.0


def numpy_pixel_loss(logits, class_ids, label_map, priors, over):
    """Pixel by pixel; the grid of the logits is that of the labels."""
    total = divisor = 0.0
    for b, y, x in np.ndindex(label_map.shape):
        ranks = {c: k for k, c in enumerate(class_ids[b].tolist())}
        label = int(label_map[b, y, x])
        divisor += over == "all"
        if label not in ranks:
            continue
        values = logits[b, y, x].astype(np.float64)
        if priors.offsets is not None:
            values = values + priors.offsets[class_ids[b]]
        loss = np.log(np.exp(values).sum()) - values[ranks[label]]
        weight = 1.0 if priors.weights is None else priors.weights[label]
        total += weight * loss
        divisor += weight if over == "valid" else 0.0
    return total / divisor


@pytest.mark.parametrize("over", ["all", "valid"])
@pytest.mark.parametrize(
    "weighting, adjustment",
    [("inverse_sqrt", 0.0), ("none", 1.0), ("inverse_sqrt", 0.5)],
)
def test_the_loss_of_the_task(weighting, adjustment, over, quick_compiles):
    config = segmenter_config()
    config.loss.pixel_mean = over
    model = FunctionalModel.build(config, NUM_CLASSES)
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    bound = model.bind(parameters)
    rng = np.random.default_rng(1)
    # One label a patch: a label map of the size of the grid, so nothing is upsampled.
    label_map = rng.integers(-1, NUM_CLASSES, (2, 6, 6)).astype(np.int32)
    images = rng.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    batch = {"image": jnp.asarray(images), "label_map": jnp.asarray(label_map)}
    priors = class_priors(PIXELS, weighting, adjustment)
    policy = SelectionPolicy(config.selection.name, config.selection.k)
    select = policy.select(histogram=label_histogram(batch["label_map"], NUM_CLASSES))
    output = bound(batch["image"], select, rng=None)
    _, logged = semantic.loss(bound, batch, config, None, priors)
    expected = numpy_pixel_loss(
        np.asarray(output.logits),
        np.asarray(output.selection.class_ids),
        label_map,
        priors,
        over,
    )
    np.testing.assert_allclose(logged["loss/pixel"], expected, rtol=1e-4)
    _, plain = semantic.loss(bound, batch, config, None)
    assert abs(float(plain["loss/pixel"]) - expected) > 1e-3
    # The label loss knows nothing of it.
    assert jax.device_get(plain["loss/multilabel"]) == logged["loss/multilabel"]
