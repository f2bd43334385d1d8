"""Runs that are killed: the script of many kills, with a few."""

from benchmarks import kill_training


def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    found = kill_training.main(
        {"killed": (2, (1, 2))}, seed=0, folder=tmp_path, in_start=0.0
    )
    assert found["killed"]["kills"] == 2
    assert found["killed"]["largest_difference_of_weights"] < 1e-5
    # Of every step, in order: no example was seen twice or missed.
    assert found["killed"]["largest_relative_difference_of_losses"] < 1e-5
