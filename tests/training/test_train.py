"""Whole runs: stopped and taken up, and those that must not start or go on."""

import contextlib
import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from run_states import (
    assert_bitwise,
    fake_scores,
    read_lines,
    read_state,
    train_steps,
)
from tiny import tiny_config

from mlseg_jax.errors import UserError
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.progress import Stopwatch
from mlseg_jax.training import loop, reports
from mlseg_jax.training.loop import train
from mlseg_jax.training.reports import Reports


def preempt(config, workdir, at: int, monkeypatch) -> None:
    """Trains on; a SIGTERM comes while a step is logged."""

    def log_line(step, _):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(reports, "log_line", log_line)
        assert train(config, str(workdir)) == {}


def test_a_stopped_run_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    overrides = {"train.eval_every": 2}
    config = tiny_config(overrides)
    metrics = train(config, str(tmp_path / "unbroken"))
    assert json.loads((tmp_path / "unbroken/metrics.json").read_text()) == metrics
    stopping = tiny_config({**overrides, "train.stop_after": 1})
    # What is left of a run whose checkpoints are gone, then of one that was killed
    # after it had evaluated a step and before its checkpoint was complete.
    scores = tmp_path / "stopped/checkpoints/scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text('{"1": {"average": 0.9}, "2": {"average": 0.9}}')
    assert train(stopping, str(tmp_path / "stopped")) == {}
    assert not scores.exists()
    scores.write_text('{"2": {"average": 0.9}}')
    (tmp_path / "stopped/metrics.json").write_text("{}")  # `evaluate`, in between
    unfinished = tmp_path / "stopped/training.unfinished"
    for step in (2, 3):
        preempt(config, tmp_path / "stopped", step, monkeypatch)
    assert unfinished.exists()
    # What a kill in the middle of a write leaves behind.
    shutil.copytree(
        tmp_path / "stopped/checkpoints/3",
        tmp_path / "stopped/checkpoints/4.orbax-checkpoint-tmp",
    )
    with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/to')
    resumed = train(config, str(tmp_path / "stopped"))
    assert not unfinished.exists()
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


def waiting_for_steps_counts(monkeypatch):
    """Fails where steps are waited for while time is not counted."""
    is_paused, check = [], Reports.check_finite

    @contextlib.contextmanager
    def paused(_):
        is_paused.append(True)
        yield
        is_paused.pop()

    def check_finite(self):
        assert not (is_paused and self.pending)
        return check(self)

    monkeypatch.setattr(Stopwatch, "paused", paused)
    monkeypatch.setattr(Reports, "check_finite", check_finite)


def test_the_best_and_the_newest_checkpoint_are_kept(tmp_path, monkeypatch):
    waiting_for_steps_counts(monkeypatch)
    overrides = {
        "train.steps": 10,
        "train.eval_every": 2,
        "train.checkpoint_every": 1,
        "train.log_every": 0,
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


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"selection.name": "given"}, "selection 'given' needs labels"),
        ({"model.multilabel_head.name": "none"}, "needs label scores"),
        ({"selection.eval_name": "given"}, "selection 'given' needs labels"),
        ({"train.batch_size": 12}, "multiple of 8"),
        ({"selection.k": 0}, "selection.k is 0"),
        ({"selection.name": "tpo_k"}, "selection.name is 'tpo_k'"),
        ({"data.name": "nowhere"}, "no reader"),
        ({"data.num_classes": 5}, "20 to 1284"),
        ({"optimizer.name": "adam"}, "sgd or adamw"),
        ({"optimizer.schedule": "step"}, "poly, cosine"),
        ({"model.backbone.name": "vgg"}, "Unknown model.backbone.name"),
        ({"model.rank_norm.kind": "x"}, "model.rank_norm.kind"),
        ({"loss.multilabel": "focal"}, "asymmetric"),
        ({"loss.pixel_mean": "some"}, "pixel_mean is"),
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

        def poisoned(state, *more):
            state, metrics = step(state, *more)
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
