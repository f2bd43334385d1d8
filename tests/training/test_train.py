"""Training, resuming and stopping."""

import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from tiny import tiny_config

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.distributed.sharding import make_mesh, put_batch
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.runs.workdir import FREE_TO_CHANGE, claim_workdir
from mlseg_jax.tasks.table import TASKS
from mlseg_jax.training import final_evaluation, loop
from mlseg_jax.training.loop import train
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step

CLASSES = 20


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


def read_state(config, workdir, which="latest"):
    checkpoints = Checkpoints(str(workdir))
    abstract = abstract_state(config, CLASSES, make_mesh(config))
    state = checkpoints.restore(checkpoints.find(which), abstract)
    checkpoints.close()
    return jax.device_get(state)


def assert_bitwise(one, other):
    flat, tree = jax.tree.flatten(one)
    flat_other, tree_other = jax.tree.flatten(other)
    assert tree == tree_other
    for x, y in zip(flat, flat_other, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def read_lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def train_steps(lines):
    return [line["step"] for line in lines if "loss/total" in line]


def fake_scores(monkeypatch, scores):
    """Evaluations that take no time and give these scores, one after the other."""
    scores = iter(scores)

    def evaluate(*_, **__):
        return None, {"mIoU": next(scores), "examples": 1}

    faked = TASKS["semantic"]._replace(evaluate=evaluate)
    monkeypatch.setitem(TASKS, "semantic", faked)
    monkeypatch.setattr(final_evaluation, "write_evaluation", lambda *_: None)


# ------------------------------------------------------------------------ single steps


@pytest.fixture(scope="module")
def plain():
    return Setup()


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
    # The average follows.
    assert_bitwise(before["ema"], before["params"])
    for path, average in after["ema"].items():
        expected = 0.75 * before["params"][path] + 0.25 * after["params"][path]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)
    state = setup.start()
    assert evaluation_parameters(state) == {"average": state["ema"]}
    assert list(evaluation_parameters(state, "better")) == ["average", "latest"]
    assert list(evaluation_parameters(state, "latest")) == ["latest"]


# -------------------------------------------------------------------------- whole runs


def preempt(config, workdir, at: int, monkeypatch) -> None:
    """Trains on; a SIGTERM comes while a step is logged."""

    def log_line(step, _):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log_line", log_line)
        assert train(config, str(workdir)) == {}


def test_a_stopped_run_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    overrides = {"train.eval_every": 2}
    config = tiny_config(overrides)
    metrics = train(config, str(tmp_path / "unbroken"))
    assert json.loads((tmp_path / "unbroken/metrics.json").read_text()) == metrics
    stopping = tiny_config({**overrides, "train.stop_after": 1})
    assert train(stopping, str(tmp_path / "stopped")) == {}
    for step in (2, 3):
        preempt(config, tmp_path / "stopped", step, monkeypatch)
    assert not (tmp_path / "stopped/metrics.json").exists()
    # What a kill in the middle of a write leaves behind.
    shutil.copytree(
        tmp_path / "stopped/checkpoints/3",
        tmp_path / "stopped/checkpoints/4.orbax-checkpoint-tmp",
    )
    with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/to')
    resumed = train(config, str(tmp_path / "stopped"))
    timings = ("seconds", "images_per_second")
    assert {k: v for k, v in resumed.items() if k not in timings} == {
        k: v for k, v in metrics.items() if k not in timings
    }
    states = [read_state(config, tmp_path / name) for name in ("unbroken", "stopped")]
    assert int(states[0]["step"]) == 4
    assert_bitwise(*states)
    for name in ("unbroken", "stopped"):
        lines = read_lines(tmp_path / name)
        assert train_steps(lines) == [1, 2, 3, 4]
        assert [x["step"] for x in lines if "eval/mIoU" in x] == [2, 4]
        assert not list((tmp_path / name).glob("*.part"))
    # A run that is finished is only evaluated once more.
    again = train(config, str(tmp_path / "stopped"))
    assert again["mIoU"] == metrics["mIoU"]
    assert [x["step"] for x in read_lines(tmp_path / "stopped")] == [1, 2, 2, 3, 4, 4]


def test_the_best_and_the_newest_checkpoint_are_kept(tmp_path, monkeypatch):
    overrides = {
        "train.steps": 10,
        "train.eval_every": 2,
        "train.checkpoint_every": 1,
        "train.stop_after": 5,
    }
    fake_scores(monkeypatch, [0.2, 0.7, 0.3, 0.4, 0.6, 0.9])
    train(tiny_config(overrides), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert (checkpoints.steps(), checkpoints.find("best")) == ([4, 5], 4)
    checkpoints.close()
    # The best of the first process outlives the checkpoints of the second.
    train(tiny_config({**overrides, "train.stop_after": 4}), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert (checkpoints.steps(), checkpoints.find("best")) == ([4, 8, 9], 4)
    checkpoints.close()
    # The last evaluation counts as well.
    train(tiny_config({**overrides, "train.stop_after": 0}), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert (checkpoints.steps(), checkpoints.find("best")) == ([4, 9, 10], 4)
    checkpoints.score(10, {"average": 0.9})
    assert checkpoints.find("best") == 10
    checkpoints.close()


def test_never_evaluating_or_saving_in_between_is_allowed(tmp_path, monkeypatch):
    fake_scores(monkeypatch, [0.5])
    never = {"train.eval_every": 0, "train.checkpoint_every": 0, "train.log_every": 0}
    train(tiny_config(never), str(tmp_path))
    assert [line["step"] for line in read_lines(tmp_path)] == [4, 4]


# ---------------------------------------------------------------------------- refusals


@pytest.fixture
def claimed(tmp_path):
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, str(tmp_path), info)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    return tmp_path, info


def test_before_its_first_checkpoint_a_directory_may_be_used_anew(claimed):
    workdir, info = claimed
    (workdir / "checkpoints/2").rename(workdir / "checkpoints/2.orbax-checkpoint-tmp")
    claim_workdir(tiny_config({"train.steps": 5}), str(workdir), info)
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 5


@pytest.mark.parametrize(
    "key, value",
    [
        ("optimizer.learning_rate", 0.5),
        ("train.steps", 5),
        ("selection.k", 3),
        ("model.decoder.depth", 2),
        ("data.crop_size", (64, 32)),
    ],
)
def test_the_directory_of_another_run_is_refused(claimed, key, value):
    workdir, info = claimed
    with pytest.raises(UserError, match=f"{key} was .*, is ") as caught:
        claim_workdir(tiny_config({key: value}), str(workdir), info)
    assert str(workdir) in str(caught.value)


def test_what_changes_no_weight_may_change(claimed):
    workdir, info = claimed
    free = {
        "eval.flip": True,
        "eval.scales": (0.5, 1.0),
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "train.log_every": 7,
        "train.stop_after": 1,
        "train.keep_best": 3,
        "train.hang_minutes": 1.0,
        "train.profile_start": 2,
        "train.profile_steps": 2,
        "data.num_threads": 1,
        "data.on_bad_example": "skip",
    }
    assert {k for k in free if not k.startswith(("eval.", "mesh."))} | {
        "eval",
        "mesh",
    } == set(FREE_TO_CHANGE)
    claim_workdir(tiny_config(free), str(workdir), info)


def test_other_classes_are_refused(claimed):
    workdir, info = claimed
    names = (*info.class_names[1:], info.class_names[0])
    other = type(info)(info.name, names, info.is_thing)
    with pytest.raises(UserError, match="other classes"):
        claim_workdir(tiny_config(), str(workdir), other)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    with pytest.raises(UserError, match="Cannot write to the work directory"):
        claim_workdir(config, str(tmp_path / "file/run"), info)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"selection.name": "given"}, "selection 'given' needs labels"),
        ({"model.multilabel_head.name": "none"}, "needs label scores"),
        ({"selection.eval_name": "given"}, "selection 'given' needs labels"),
        ({"train.batch_size": 12}, "multiple of 8"),
        ({"selection.k": 0}, "selection.k is 0"),
        ({"selection.name": "tpo_k"}, "Unknown selection 'tpo_k'"),
        ({"data.name": "nowhere"}, "no reader"),
        ({"data.num_classes": 5}, "20 to 1284"),
        ({"optimizer.name": "adam"}, "sgd or adamw"),
        ({"optimizer.schedule": "step"}, "poly, cosine"),
        ({"model.backbone.name": "vgg"}, "Unknown model.backbone.name"),
        ({"model.rank_norm.kind": "x"}, "Unknown rank norm"),
        ({"loss.multilabel": "focal"}, "asymmetric"),
        ({"loss.pixel_mean": "some"}, "pixel mean"),
    ],
)
def test_a_wrong_setting_is_said_before_any_step(tmp_path, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny_config(overrides), str(tmp_path))
    assert not read_lines(tmp_path) if (tmp_path / "metrics.jsonl").exists() else True


def test_a_rate_that_is_far_too_high_stops_with_a_sentence(tmp_path):
    config = tiny_config({"optimizer.learning_rate": 1e30, "train.checkpoint_every": 1})
    with pytest.raises(UserError, match="diverged at step 1.*no checkpoint"):
        train(config, str(tmp_path))
    assert Checkpoints(str(tmp_path)).steps() == []


def test_nan_names_the_step_the_part_and_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    make = loop.make_train_step

    def make_poisoned(*args):
        step = make(*args)

        def poisoned(state, batch):
            state, metrics = step(state, batch)
            if int(state["step"]) == 5:
                metrics = {**metrics, "loss/pixel": np.float32("nan")}
            return state, metrics

        return poisoned

    monkeypatch.setattr(loop, "make_train_step", make_poisoned)
    config = tiny_config({"train.steps": 8, "train.log_every": 8})
    with pytest.raises(UserError, match="step 5: loss/pixel .*checkpoint 4,"):
        train(config, str(tmp_path))
    assert int(read_state(config, tmp_path)["step"]) == 4


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def save_until_full(self, step, *args, **kwargs):
        if step == 4:
            raise ValueError(
                'RESOURCE_EXHAUSTED: Error writing local file "/x": Failed to write '
                "48969 bytes: No space left on device [os_error_code='28']"
            )
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_until_full)
    config = tiny_config({"train.steps": 6})
    with pytest.raises(OSError) as caught:
        train(config, str(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert int(read_state(config, tmp_path)["step"]) == 2
    monkeypatch.undo()
    fake_scores(monkeypatch, [0.5])
    train(config, str(tmp_path))
    assert int(read_state(config, tmp_path)["step"]) == 6
    assert train_steps(read_lines(tmp_path)) == [1, 2, 3, 4, 5, 6]
