"""Benchmarks still run; what they measure is not looked at here."""

import pathlib

import pytest
from tiny import tiny_config

from benchmarks import regions_memory, study_steps, throughput


def test_throughput():
    result = throughput.run(tiny_config(), repetitions=1, steps=1)
    assert result["C"] == 20 and 0 <= result["input_wait"] <= 1
    assert result["train_with_input_images_per_second"] > 0


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"
)
def test_regions_memory():
    rows = regions_memory.run((40, 50), num_queries=4, k=3, side=32)
    assert [row["task"] for row in rows] == ["panoptic", "semantic", "instance"]
    assert all(row["extra MB"] < 400 for row in rows)


def test_step_times_of_the_study():
    seconds = study_steps.measure(["baseline", "apart"], "toy", repetitions=1)
    assert list(seconds) == ["baseline", "apart"] and min(seconds.values()) > 0
