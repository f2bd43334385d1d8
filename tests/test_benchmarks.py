"""Benchmarks still run; what they measure is not looked at here."""

import pathlib

import numpy as np
import pytest
from scipy import ndimage
from tiny import tiny_config

from benchmarks import connected_components, regions_memory, study_steps, throughput


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
    seconds = study_steps.measure(["apart"], "toy", repetitions=1)
    assert list(seconds) == ["apart"] and seconds["apart"] > 0


def test_connected_segments():
    """Against SciPy's labels: stuff is one, things are pieces, small ones are void."""
    random = np.random.default_rng(0)
    cells = random.integers(-1, 4, (6, 7))
    label_map = np.kron(cells, np.ones((3, 3), int))
    label_map[0, 0] = 3 if label_map[0, 0] != 3 else 2
    is_thing = np.array([False, True, True, True])
    for least in (0, 9, 10):
        found, classes = connected_components.connected_segments(
            label_map, is_thing, least
        )
        expected = set()
        for c in range(4):
            pieces, count = label_map == c, 1
            if is_thing[c]:
                pieces, count = ndimage.label(pieces, np.ones((3, 3)))
            for i in range(1, count + 1):
                mask = pieces == i
                if mask.sum() >= max(least, 1):
                    expected.add((c, mask.tobytes()))
        made = {(c, (found == i).tobytes()) for i, c in classes.items()}
        assert made == expected and len(classes) == len(expected)
        assert set(np.unique(found)) - {0} == set(classes)
