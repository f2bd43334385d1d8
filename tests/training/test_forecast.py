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
    monkeypatch.setattr(forecast, "machine_flops", lambda: speeds["slow"])
    with pytest.raises(UserError, match=r"40,000 steps .* hours .*--minutes=60"):
        forecast.refuse_what_cannot_end(config, model, 0)
    # Nearly done, or wanted all the same, or quick enough.
    forecast.refuse_what_cannot_end(config, model, 39_990)
    config.train.max_hours = 0.0
    forecast.refuse_what_cannot_end(config, model, 0)
    config.train.max_hours = 24.0
    monkeypatch.setattr(forecast, "machine_flops", lambda: speeds["fast"])
    forecast.refuse_what_cannot_end(config, model, 0)


def test_accelerators_are_warned_and_small_trainings_cost_no_time(
    paper, monkeypatch, caplog
):
    config, model = paper

    class Chip:
        platform, device_kind = "tpu", "TPU v5e"

    monkeypatch.setattr(forecast, "machine_flops", lambda: 1e9)
    monkeypatch.setattr(forecast.jax, "devices", lambda: [Chip])
    with caplog.at_level(logging.WARNING):
        forecast.refuse_what_cannot_end(config, model, 0)
    assert "would take about" in caplog.text
    monkeypatch.setattr(forecast, "machine_flops", pytest.fail)
    config.train.steps = 1
    forecast.refuse_what_cannot_end(config, model, 0)


def test_this_machine_has_a_speed():
    assert 1e6 < forecast.machine_flops() < 1e15
