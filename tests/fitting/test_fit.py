"""Time: what fits into it, what is used of it, what a second command finds."""

import dataclasses
import json
import types

import jax
import pytest
from etils import epath
from tiny import OVERRIDES, tiny_config

from configs import own_data, query2label, segmenter
from input_pipeline.datasets.open import open_dataset
from mlseg_jax.errors import UserError
from mlseg_jax.fitting import clock as clocks
from mlseg_jax.fitting import fit
from mlseg_jax.fitting import measure as measuring
from mlseg_jax.fitting.clock import Clock
from mlseg_jax.fitting.facts import Machine
from mlseg_jax.fitting.measure import Timing
from mlseg_jax.fitting.schedule import plan
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.training import loop

TIMING = Timing(compiling=10.0, step=0.5, example=0.1)


def test_a_plan_uses_the_time_and_no_more():
    planned = plan(
        TIMING, left=570.0, total=600.0, reading=5.0,
        num_validation=30, num_test=100, keeps_best=True, evaluates=False,
    )  # fmt: skip
    assert planned.evaluations == 8
    last = planned.steps * 0.5 + 8 * 30 * 0.1 + 100 * 0.1 + 5.0
    assert 0.9 * 570 < last < 570
    # No time at all is a step all the same, and an evaluation.
    assert plan(
        TIMING, left=1.0, total=60.0, reading=5.0,
        num_validation=30, num_test=100, keeps_best=False, evaluates=False,
    ).steps == 1  # fmt: skip


def test_where_evaluations_would_take_the_time_they_are_of_fewer_pictures():
    left = {"left": 570.0, "total": 600.0, "reading": 5.0}
    many = {"num_validation": 5_000, "num_test": 20_000}
    best = {"keeps_best": True, "evaluates": False}
    cut = plan(TIMING, **left, **many, **best, cuts_validation=True, cuts_test=True)
    assert 1_000 < cut.num_test < 1_850 and 50 < cut.num_validation < 300
    assert cut.evaluations >= 4
    # The last evaluation of validation pictures is in the reserve.
    evaluations = (cut.evaluations - 1) * cut.num_validation * 0.1
    used = cut.steps * 0.5 + evaluations + cut.reserve
    assert 400 < used < 570
    # What was given is looked at whole; few are never fewer.
    whole = plan(TIMING, **left, **many, **best)
    assert (whole.num_validation, whole.num_test) == (5_000, 20_000)
    slow = dataclasses.replace(TIMING, example=100.0)
    few = {"num_validation": 3, "num_test": 10} | best
    cut = plan(slow, **left, **few, cuts_validation=True, cuts_test=True)
    assert (cut.num_validation, cut.num_test) == (2, 8)


def test_a_clock_goes_on_where_the_process_before_has_stopped(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now[0])
    clock = Clock(str(tmp_path), 1.0, already=20.0)
    clock.reserve = 15.0
    now[0] += 2.0
    assert not clock.is_over() and clock.used() == 22.0
    now[0] += 1000.0  # Nobody works on it.
    again = Clock(str(tmp_path), 1.0, already=22.9)
    assert again.reserve == 15.0 and not again.is_over()
    now[0] += 0.2
    assert again.is_over()
    # Several processes are not ended, nor is what has no limit.
    assert not Clock(str(tmp_path), 1.0, already=26.0, stops=False).is_over()
    assert not Clock(str(tmp_path), 0.0, already=26.0).is_over()


def test_steps_are_fitted_to_the_pace_that_there_is(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now[0])
    clock = Clock(str(tmp_path), 10.0)
    clock.reserve = 50.0
    assert clock.fitted(1, 100) == 100  # From here on.
    now[0] = 30.0
    assert clock.fitted(31, 100) == 100  # The steps were given.
    clock.chosen = frozenset({"train.steps"})
    assert clock.fitted(20, 100) == 100  # Too few, to know.
    assert clock.fitted(31, 100) == 31 + 520
    assert clock.fitted(31, 540) == 540  # That is close enough.
    now[0] = 400.0  # It has become slower.
    assert clock.fitted(41, 540) == 41 + 15
    now[0] = 560.0
    assert clock.fitted(50, 540) == 50


@pytest.fixture
def trained(monkeypatch):
    """Configurations that the loop was given, in place of training them."""
    configs = []
    monkeypatch.setattr(fit, "measure", lambda *_: TIMING)
    monkeypatch.setattr(
        loop, "train", lambda config, workdir, clock=None: configs.append(config) or {}
    )
    return configs


def test_choices_are_made_once(trained, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fit, "Clock", lambda *x, **y: seen.append(Clock(*x, **y)) or seen[-1]
    )

    def config(batch_size=8):
        made = own_data.get_config("dataset=sign_scenes").unlock()
        made.data.update(num_classes=20, train_examples=12, eval_examples=4)
        made.train.batch_size = batch_size
        return made

    workdir, keys = str(tmp_path), ("data.num_classes", "train.batch_size")
    fit.train(config(), workdir, given=keys, minutes=10.0)
    (first,) = trained
    # 600 s less 10 s of compiling and what is kept; no step was measured for real.
    assert 800 < first.train.steps < 1200 and first.train.eval_every
    assert first.selection.name == "top_k" and first.train.batch_size == 8
    told = json.loads((tmp_path / fit.FILE).read_text())
    assert told["looked_at"]["pictures"] == 12 and "train.steps" in told["keys"]
    # Validation is of the training pictures; four evaluations in vain are enough.
    assert first.data.train_split == "train[0:10]"
    assert first.data.validation_split == "train[10:12]"
    assert first.train.patience == 3 and first.train.checkpoint_every <= 360
    # The second command finds a checkpoint, and takes what was chosen.
    claim_workdir(first, workdir, open_dataset(first.data, train=True).info)
    # It was killed before its first checkpoint: the time and the choices stay ...
    spent = json.loads((tmp_path / clocks.FILE).read_text())
    fit.train(config(), workdir, given=keys, minutes=10.0, already=300.0)
    assert trained.pop().to_json() == first.to_json()
    left = json.loads((tmp_path / clocks.FILE).read_text())
    assert left["seconds"] > spent["seconds"] + 299 and left["reserve"] > 0
    # ... but not for other minutes, for then it begins anew.
    path = epath.Path(workdir) / fit.FILE
    assert not fit._goes_on(config(), path, frozenset(keys), 20.0)
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    fit.train(config(), workdir, given=keys, minutes=5.0)
    assert trained[1].to_json() == first.to_json()
    # Another batch size is no longer what was chosen: the loop will say so.
    fit.train(config(4), workdir, given=keys)
    assert trained[2].train.batch_size == 4
    assert trained[2].train.steps == first.train.steps
    # Steps that are given are not fitted, and a part of what was chosen whole stays.
    other = config()
    other.train.steps = 300
    other.model.backbone.embed_dim = 48
    anew = (*keys, "train.steps", "model.backbone.embed_dim")
    fit.train(other, workdir, given=anew)
    backbones = [trained[i].model.backbone.to_dict() for i in (3, 0)]
    assert backbones[0] == backbones[1] | {"embed_dim": 48}
    assert trained[3].train.steps == 300
    assert ["train.steps" in clock.chosen for clock in seen] == [True] * 4 + [False]
    assert "train.eval_every" in seen[-1].chosen


def test_all_processes_choose_what_the_first_one_found(trained, tmp_path, monkeypatch):
    """The second has another machine, sees fewer pictures and is slower."""
    laptop = Machine("cpu", "cpu", 2, 2, 8 << 30, 100 << 30)
    slower = Timing(compiling=99.0, step=9.0, example=9.0)
    look, sent, written = fit.look_at_data, [], []
    monkeypatch.setattr(fit, "write_json", lambda *values: written.append(values))
    monkeypatch.setattr(fit, "machine_flops", lambda *_: 1e11)
    monkeypatch.setattr(fit, "look_at_machine", lambda _: laptop)
    monkeypatch.setattr(fit.jax, "process_count", lambda: 2)

    def gather_as_first(value):
        sent.append(value)
        return [value, None]

    def train():
        made = own_data.get_config("dataset=sign_scenes").unlock()
        made.data.update(num_classes=20, train_examples=12, eval_examples=4)
        fit.train(made, str(tmp_path), given=("data.num_classes",), minutes=10.0)

    monkeypatch.setattr(fit, "gather", gather_as_first)
    train()
    monkeypatch.setattr(fit.jax, "process_index", lambda: 1)
    monkeypatch.setattr(fit, "machine_flops", lambda *_: 1e9)
    monkeypatch.setattr(fit, "look_at_data", lambda config, _: look(config, -1.0))
    monkeypatch.setattr(
        fit, "look_at_machine", lambda _: dataclasses.replace(laptop, cores=64)
    )
    monkeypatch.setattr(fit, "measure", lambda *_: slower)
    monkeypatch.setattr(fit, "gather", lambda value: [sent.pop(0), value])
    train()
    first, second = trained
    assert second.to_json() == first.to_json() and first.data.num_threads == 2
    assert len(written) == 1 and not sent


@pytest.mark.parametrize("recipe", [query2label, segmenter])
def test_settings_are_chosen_for_recipes_that_leave_them_open(recipe, tmp_path):
    config = recipe.get_config("dataset=sign_scenes,backbone=vit_demo").unlock()
    config.choose_settings = True
    with pytest.raises(UserError, match="is of configs/own_data.py"):
        fit.train(config, str(tmp_path), minutes=10.0)


def test_a_run_within_its_minutes_from_end_to_end(tmp_path, monkeypatch):
    """Looks, chooses, measures, trains, keeps the best; its programs are those of
    `test_train`.
    """
    workdir, programs = tmp_path / "run", []
    monkeypatch.setattr(fit, "MEASURING", 0.0)
    own = {"eval.checkpoint": "best", "train.steps": 6, "train.eval_every": 2}
    given = {*OVERRIDES, *own, "model", "selection.name"}
    config = tiny_config(own | {"choose_settings": True})

    def listen(event: str, seconds: float, fun_name: str = "", **_) -> None:
        programs.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        metrics = fit.train(config, str(workdir), given=given, minutes=60.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # What compares checkpoints runs what the evaluation at the end runs.
    assert {"jit(train_step)", "jit(encode)", "jit(classify)"} < set(programs)
    assert "jit(predict)" not in programs
    assert json.loads((workdir / "metrics.json").read_text()) == metrics
    told = json.loads((workdir / fit.FILE).read_text())
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["data"]["validation_split"] == "train[22:24]"
    assert told["looked_at"]["of"] == 24 and "data.validation_split" in told["keys"]
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    scores = {x["step"]: x["eval/mIoU"] for x in lines if "eval/mIoU" in x}
    # Validation, which the last step has too, has said which checkpoint it is.
    assert list(scores) == [2, 4, 6]
    assert scores[metrics["step"]] == max(scores.values())
    assert json.loads((workdir / clocks.FILE).read_text())["reserve"] > 0


def test_minutes_fit_the_schedule_of_any_recipe(trained, tmp_path):
    config = tiny_config({"train.steps": 1000, "optimizer.warmup_steps": 100})
    fit.train(config, str(tmp_path), minutes=10.0, already=60.0)
    (fitted,) = trained
    assert 800 < fitted.train.steps < 1080
    assert fitted.optimizer.warmup_steps == round(fitted.train.steps / 10)
    assert fitted.model.to_json() == config.model.to_json()
    # It keeps its evaluations, and has checkpoints every few minutes.
    assert 100 < fitted.train.eval_every < fitted.train.steps / 7
    assert fitted.train.checkpoint_every <= fitted.train.eval_every
    for minutes in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="finite number above 0"):
            fit.train(config, str(tmp_path), minutes=minutes)


@pytest.mark.usefixtures("quick_compiles")
def test_measuring_ends_with_its_seconds(monkeypatch):
    """A new program, a step and two batches are the least; both weights count."""
    config = tiny_config({"optimizer.ema_decay": 0.9, "eval.weights": "better"})
    evaluated, evaluate = [], measuring.evaluate

    def noted(evaluation, engine, source, *rest):
        evaluated.append(len(source))
        now[0] += 10.0
        return evaluate(evaluation, engine, source, *rest)

    now = [0.0]

    def step(state, batch, lengths):
        assert batch["image"].shape[0] == config.train.batch_size
        now[0] += 7.0
        return state, {}

    monkeypatch.setattr(measuring, "evaluate", noted)
    monkeypatch.setattr(measuring, "make_train_step", lambda *_: step)
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(measuring, "time", clock)
    timing = measuring.measure(config, 20, 1.0)
    size = evaluated[0]
    assert evaluated == [size, size]
    assert timing == Timing(compiling=7.0 + 10.0, step=7.0, example=2 * 10.0 / size)
