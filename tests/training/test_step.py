"""Single steps of training: repeatable, restored bitwise, accumulated and averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_states import CLASSES, assert_bitwise, read_state
from tiny import tiny_config

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.distributed.sharding import make_mesh, put_batch
from mlseg_jax.losses.reduce import Mean
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step, put_lengths


class Setup:
    """A configuration's step function, its state at step 0 and some batches."""

    def __init__(self, overrides=None, num_batches=2):
        self.config = tiny_config(overrides)
        self.mesh = make_mesh(self.config)
        model = FunctionalModel.build(self.config, CLASSES)
        self.step = make_train_step(self.config, model, self.mesh)
        batches = train_batches(
            open_dataset(self.config.data, train=True),
            seed=0,
            batch_size=self.config.train.batch_size,
            augment=make_augment(self.config.data),
        )
        self.batches = [put_batch(self.mesh, next(batches)) for _ in range(num_batches)]
        batches.close()

    def start(self):
        return initialise(self.config, CLASSES, self.mesh)

    def run(self, state, batches):
        losses = []
        for batch in batches:
            state, metrics = self.step(state, batch)
            losses.append(float(metrics["loss/total"]))
        return state, losses


@pytest.fixture(scope="module")
def plain():
    # A weight under which the label loss, which falls first, shows in the total.
    return Setup({"loss.multilabel_weight": "10"})


def test_the_loss_falls(plain):
    _, losses = plain.run(plain.start(), plain.batches * 15)
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_steps_are_repeatable_and_survive_a_checkpoint_bitwise(plain, tmp_path):
    four, _ = plain.run(plain.start(), plain.batches * 2)
    checkpoints = Checkpoints(str(tmp_path))
    two, _ = plain.run(plain.start(), plain.batches)
    expected = jax.tree.map(np.array, jax.device_get(two))
    checkpoints.save(2, two)
    # The step donates its state while it is still being written in the background.
    plain.run(two, plain.batches)
    checkpoints.wait()
    checkpoints.close()
    restored = read_state(plain.config, tmp_path)
    assert_bitwise(restored, expected)
    state = jax.device_put(
        restored,
        jax.tree.map(
            lambda x: x.sharding, abstract_state(plain.config, CLASSES, plain.mesh)
        ),
    )
    resumed, _ = plain.run(state, plain.batches)
    assert int(resumed["step"]) == 4
    assert_bitwise(jax.device_get(resumed), jax.device_get(four))


def test_dropout_depends_on_the_step_and_the_seed_alone():
    dropping = Setup(
        {"model.backbone.drop_path_rate": 0.5, "model.decoder.dropout_rate": 0.5}
    )
    batch = dropping.batches[0]
    start = jax.device_get(dropping.start())
    losses = []
    for step in (0, 0, 1):
        state = {**start, "step": np.int32(step)}
        _, metrics = dropping.step(state, batch)
        losses.append(float(metrics["loss/total"]))
    assert losses[0] == losses[1] != losses[2]


def test_accumulation_clipping_and_averaging():
    results = []
    for parts in (1, 2):
        setup = Setup(
            {
                "optimizer.name": "sgd",
                "optimizer.learning_rate": 1.0,
                "optimizer.momentum": 0.0,
                "optimizer.weight_decay": 0.0,
                "optimizer.clip_norm": 0.25,
                "optimizer.ema_decay": 0.75,
                "train.batch_size": 16,
                "train.accumulate": parts,
                # Each part draws its own.
                "selection.scatter_present": False,
                # Pixels whose class is not selected are not valid: the divisor is
                # known once all parts have selected.
                "loss.pixel_mean": "valid",
            },
            1,
        )
        before = jax.device_get(setup.start())
        results.append(jax.device_get(setup.step(setup.start(), setup.batches[0])))
    # Two accumulated parts are one batch.
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-6)
    # The update is as long as the limit.
    after, metrics = results[0]
    moved = sum(
        float(np.sum((after["params"][path] - before["params"][path]) ** 2))
        for path in before["params"]
    )
    assert metrics["train/gradient_norm"] > 1.0
    assert np.sqrt(moved) == pytest.approx(0.25, rel=1e-3)
    # The average follows, and soon forgets the random start.
    assert_bitwise(before["ema"], before["params"])
    for path, average in after["ema"].items():
        expected = 0.1 * before["params"][path] + 0.9 * after["params"][path]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
    state = setup.start()
    assert evaluation_parameters(state) == {"average": state["ema"]}
    assert list(evaluation_parameters(state, "better")) == ["average", "latest"]
    assert list(evaluation_parameters(state, "latest")) == ["latest"]


def test_annealing_follows_the_lengths_that_the_step_is_given(plain, monkeypatch):
    """Not those it was compiled with: the length of a training may be fitted anew."""

    class Told:
        def means(self, model, batch, config, rng, priors):
            progress = batch["progress"]
            return {
                "progress": Mean(
                    progress.sum(), jnp.ones_like(progress).sum(), weight=1.0
                )
            }

    monkeypatch.setattr("mlseg_jax.training.step.find_task", lambda config: Told())
    model = FunctionalModel.build(plain.config, CLASSES)
    step = make_train_step(plain.config, model, plain.mesh)
    for steps in (8, 40):
        config = plain.config.copy_and_resolve_references().unlock()
        config.train.steps = steps
        state = {**jax.device_get(plain.start()), "step": np.int32(4)}
        _, metrics = step(state, plain.batches[0], put_lengths(config, plain.mesh))
        assert metrics["progress"] == pytest.approx(4 / steps)
    assert step._cache_size() == 1
