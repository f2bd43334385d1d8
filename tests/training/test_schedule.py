"""Schedules of the learning rate against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from test_optimizer import configure

from configs import mask2former, segmenter
from mlseg_jax.training.schedule import make_schedule, schedule_lengths


def test_poly_is_the_papers():
    config = segmenter.get_config("dataset=coco_stuff")
    schedule = make_schedule(config)
    for i in (0, 1, 1000, 20_000, 39_999, 40_000, 50_000):
        # method.md 12.1: (lr0 - min) (1 - i / N)^p + min
        left = max(0.0, 1 - i / 40_000)
        expected = (1e-3 - 1e-5) * left**0.9 + 1e-5
        assert float(schedule(i)) == pytest.approx(expected, rel=2e-5)


def test_cosine_after_a_warm_up():
    schedule = make_schedule(
        configure(
            schedule="cosine",
            learning_rate=0.5,
            end_learning_rate=0.1,
            warmup_steps=20,
            steps=120,
        )
    )
    for i in (0, 5, 19, 20, 21, 70, 119, 120, 500):
        if i < 20:
            expected = 0.5 * i / 20
        else:
            share = min(1.0, (i - 20) / 100)
            expected = 0.1 + (0.5 - 0.1) * 0.5 * (1 + np.cos(np.pi * share))
        assert float(schedule(i)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_warm_up_multiplies_poly():
    """As mmcv's and Detectron2's: after it the rate is the one without a warm-up."""
    values = dict(schedule="poly", learning_rate=0.5, end_learning_rate=0.1)
    schedule = make_schedule(configure(**values, warmup_steps=20, steps=120))
    for i in (0, 5, 19, 20, 21, 70, 119, 120):
        usual = 0.1 + (0.5 - 0.1) * (1 - i / 120) ** 0.9
        expected = usual * min(1.0, i / 20)
        assert float(schedule(i)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_steps_of_coco():
    """masks.md 5.3."""
    for backbone, last, falls in (
        ("resnet50", 368_750, (327_778, 355_092)),
        ("swin_l", 737_500, (655_556, 710_184)),
    ):
        config = mask2former.get_config(
            f"dataset=coco_panoptic,backbone={backbone},task=panoptic"
        )
        schedule = make_schedule(config)
        assert config.train.steps == last
        for step, rate in zip(
            (0, falls[0] - 1, falls[0], falls[1] - 1, falls[1], last),
            (1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6),
            strict=True,
        ):
            assert float(schedule(step)) == pytest.approx(rate)


@pytest.mark.parametrize("name", ["poly", "cosine", "steps", "one_cycle"])
def test_trainings_of_any_length_are_one_program(name):
    rate = jax.jit(
        lambda config, lengths, step: make_schedule(config, lengths)(step),
        static_argnums=0,
    )
    programs = []
    for steps, warm in ((100, 10), (120, 0)):
        config = configure(
            schedule=name, steps=steps, warmup_steps=warm, falls_at=(0.5, 0.9)
        )
        config = ml_collections.FrozenConfigDict(config)
        lengths = jax.tree.map(jnp.asarray, schedule_lengths(config))
        programs.append(rate.lower(config, lengths, 0).as_text())
        expected = [float(make_schedule(config)(i)) for i in (0, 5, 50, 90, 130)]
        found = [float(rate(config, lengths, i)) for i in (0, 5, 50, 90, 130)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
        assert len(set(expected)) > 2
    assert programs[0] == programs[1]


def test_constant_schedule():
    assert float(make_schedule(configure(schedule="constant"))(77)) == pytest.approx(
        3e-3
    )
