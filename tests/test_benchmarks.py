"""Benchmarks still run; what they measure is not looked at here."""

from tiny import tiny_config

from benchmarks import throughput


def test_throughput():
    result = throughput.run(tiny_config(), repetitions=1, steps=1)
    assert result["C"] == 20 and 0 <= result["input_wait"] <= 1
    assert result["train_with_input_images_per_second"] > 0
