"""What cannot end does not begin."""

import logging

import pytest

from configs import segmenter
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.training import forecast


@pytest.fixture(scope="module")
def paper():
    """40,000 steps of ViT-S on crops of 512, as a folder gets them, and the model."""
    config = segmenter.get_config("dataset=folder,backbone=vit_s16")
    config.model.backbone.scan = True
    return config, FunctionalModel.build(config, 11)


def test_days_on_a_processor_are_refused(paper, monkeypatch):
    config, model = paper
    speeds = {"slow": 4e10, "fast": 1e13}
    monkeypatch.setattr(forecast, "machine_flops", lambda _: speeds["slow"])
    with pytest.raises(UserError, match=r"40,000 steps .* hours .*--minutes=60"):
        forecast.refuse_what_cannot_end(config, model, 0)
    # Nearly done, or wanted all the same, or quick enough.
    forecast.refuse_what_cannot_end(config, model, 39_990)
    config.train.max_hours = 0.0
    forecast.refuse_what_cannot_end(config, model, 0)
    config.train.max_hours = 24.0
    monkeypatch.setattr(forecast, "machine_flops", lambda _: speeds["fast"])
    forecast.refuse_what_cannot_end(config, model, 0)


def test_accelerators_are_warned_and_small_trainings_cost_no_time(
    paper, monkeypatch, caplog
):
    config, model = paper

    class Chip:
        platform, device_kind = "tpu", "TPU v5e"

    monkeypatch.setattr(forecast, "machine_flops", lambda _: 1e9)
    monkeypatch.setattr(forecast.jax, "devices", lambda: [Chip])
    with caplog.at_level(logging.WARNING):
        forecast.refuse_what_cannot_end(config, model, 0)
    assert "would take about" in caplog.text
    monkeypatch.setattr(forecast, "machine_flops", pytest.fail)
    config.train.steps = 1
    forecast.refuse_what_cannot_end(config, model, 0)


def test_the_speed_is_that_of_the_fastest_product(monkeypatch):
    """Half of what a product of matrices reaches that takes a millisecond."""
    ticks = iter([0.0, 0.003, 1.0, 1.001, 2.0, 2.009, 3.0, 3.002, 4.0, 4.005])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(forecast, "SIDE", {"cpu": 8})
    assert forecast.machine_flops() == pytest.approx(0.5 * 2 * 8**3 / 1e-3)
