"""What the log says of several processes."""

from mlseg_jax.training.reports import who_is_slow


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
