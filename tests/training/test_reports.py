"""What the log says, of several processes too."""

import types

import jax.numpy as jnp
from tiny import tiny_config
from tqdm import tqdm

from mlseg_jax.runs.progress import Stopwatch
from mlseg_jax.training.reports import UNLOGGED_STEPS, Reports, who_is_slow
from mlseg_jax.training.watchdog import Watchdog

MEASURED = ("loss/total", "train/image_recall_at_k")


def test_the_process_that_others_wait_for_is_named():
    paces = {process: {"own": 0.1, "input": 0.05} for process in range(4)}
    paces[2] = {"own": 0.29, "input": 0.2}
    assert who_is_slow(paces, seconds=1.0) == (2, "")  # 0.19 s of 1 s
    paces[2] = {"own": 0.31, "input": 0.2}
    slowest, sentence = who_is_slow(paces, seconds=1.0)
    assert slowest == 2
    assert "Process 2 is behind the others" in sentence
    assert "0.31 s are its own" in sentence and "0.2 s of these for data" in sentence
    assert "0.1 s those of others" in sentence


def test_what_is_never_logged_is_looked_at_now_and_then():
    reports = Reports.__new__(Reports)
    reports.config = tiny_config({"train.log_every": 0})
    reports.pending, looked = [], []
    reports.check_finite = lambda: (looked.append(1), reports.pending.clear())
    for step in range(2 * UNLOGGED_STEPS):
        reports.add(step, {})
    assert len(looked) == 2 and not reports.pending
    reports.config = tiny_config({"train.log_every": 5000})
    for step in range(UNLOGGED_STEPS + 1):
        reports.add(step, {})
    assert len(looked) == 2


def test_a_line_is_of_all_steps_since_the_last_one(tmp_path, monkeypatch):
    """Also of those that were looked at before, for a checkpoint between two lines."""
    lines = []
    reports = Reports.__new__(Reports)
    reports.config, reports.pending, reports.fetched = tiny_config(), [], []
    reports.watch, reports.watchdog = Stopwatch(), Watchdog(0.0, str(tmp_path))
    reports.writer = types.SimpleNamespace(write=lambda _, line: lines.append(line))
    monkeypatch.setattr(reports, "_speed", lambda step: {})
    for step in range(1, 7):
        reports.add(step, {key: jnp.float32(step) for key in MEASURED})
        if step in (2, 5):
            reports.check_finite()
        if step in (3, 6):
            reports.log(step, tqdm(disable=True))
    assert [line["loss/total"] for line in lines] == [2.0, 5.0]
    reports.config.train.log_every = 0  # A line at the end alone, of the last steps.
    for step in range(2 * UNLOGGED_STEPS):
        reports.add(step, dict.fromkeys(MEASURED, jnp.float32(step)))
        if step % 100 == 0:
            reports.check_finite()
    assert len(reports.fetched) == UNLOGGED_STEPS
