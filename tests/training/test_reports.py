"""What the log says of several processes."""

from tiny import tiny_config

from mlseg_jax.training.reports import UNLOGGED_STEPS, Reports, who_is_slow


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
