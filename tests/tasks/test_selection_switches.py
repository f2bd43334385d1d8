"""Switches of training that the paper has not: what they do to the loss of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mlseg_jax.models.build import FunctionalModel, initial_parameters
from mlseg_jax.settings.resolve import resolve
from mlseg_jax.tasks import semantic
from mlseg_jax.tasks.engines import evaluation_policy
from mlseg_jax.typing import IGNORE

NUM_CLASSES = 20


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 7, 13, IGNORE], (2, 32, 32)).astype(np.int32)
    labels[1, :, :20] = 5
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    return {"image": jnp.asarray(images), "label_map": jnp.asarray(labels)}


def means_of(batch, rng=None, **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    config = resolve(tiny_config(overrides), NUM_CLASSES)
    model = FunctionalModel.build(config, NUM_CLASSES)
    parameters = initial_parameters(config, NUM_CLASSES, jax.random.key(0))[0]

    def run(batch):
        return semantic.means(model.bind(parameters), batch, config, rng)

    return jax.jit(run)(batch)


def test_present_labels_are_selected_and_nothing_is_missed(batch):
    plain = means_of(batch, loss__missed_weight=2.0, selection__with_present=False)
    joined = means_of(batch, loss__missed_weight=2.0, selection__with_present=True)
    # What the scores alone find is logged under either; where all are selected, all.
    every = means_of(batch, selection__name="complete", selection__with_present=True)
    assert every["train/image_recall_at_k"].value() == 1.0
    fewer = means_of(
        batch, selection__minimum_score=0.999, selection__with_present=True
    )["train/image_recall_at_k"]
    assert fewer.value() < joined["train/image_recall_at_k"].value()
    for recall in ("train/pixel_recall_at_k", "train/image_recall_at_k"):
        assert plain[recall].value() == joined[recall].value() < 1.0
    assert plain["loss/missed"].value() > 0.0 == joined["loss/missed"].value()
    assert plain["loss/missed"].weight == 2.0
    for name in ("loss/multilabel",):
        np.testing.assert_array_equal(plain[name].total, joined[name].total)
    assert "loss/missed" not in means_of(batch)


def test_all_labels_come_in_the_order_that_ranks_were_trained_in():
    for name, found in {"top_k": "top_k", "complete": "complete"}.items():
        config = tiny_config(
            {"selection.name": name, "selection.eval_name": "complete"}
        )
        policy = evaluation_policy(config, NUM_CLASSES)
        assert (policy.name, policy.k) == (found, NUM_CLASSES)


def test_noise_changes_what_is_selected_in_training_alone(batch):
    rng = jax.random.key(0)
    options = {"selection__k": 2, "loss__missed_weight": 1.0}
    quiet, noisy = (
        means_of(batch, rng, selection__noise=x, **options) for x in (0.0, 9.0)
    )
    assert quiet["loss/missed"].total != noisy["loss/missed"].total
    # Dropout, where there is any, draws the same numbers.
    np.testing.assert_array_equal(
        quiet["loss/multilabel"].total, noisy["loss/multilabel"].total
    )
    still = [means_of(batch, None, selection__noise=x, **options) for x in (0.0, 9.0)]
    np.testing.assert_array_equal(*(each["loss/missed"].total for each in still))
