"""What training says of its own settings."""

import logging

import pytest
from tiny import tiny_config

from input_pipeline.info import DatasetInfo
from mlseg_jax.doctor.checks import Finding
from mlseg_jax.errors import UserError
from mlseg_jax.training.checks import check_labels, warmup_note
from mlseg_jax.training.schedule import make_schedule

INFO = DatasetInfo("made up", tuple(map(str, range(20))), (False,) * 20)


def configure(warmup, steps, **optimizer):
    config = tiny_config({"optimizer.warmup_steps": warmup, "train.steps": steps})
    config.optimizer.update(optimizer)
    return config


@pytest.mark.parametrize("warmup, steps", [(0, 4), (3, 4), (1, 1000)])
def test_a_warmup_that_ends_is_no_matter(warmup, steps):
    assert warmup_note(configure(warmup, steps)) == ""


@pytest.mark.parametrize("warmup, steps", [(4, 4), (100, 4), (2, 1)])
def test_a_warmup_that_does_not_end(warmup, steps):
    config = configure(warmup, steps, learning_rate=0.5)
    reached = float(make_schedule(config)(steps - 1))
    assert f"gets to {reached:.2g} of 0.5; lower it" in warmup_note(config)
    # A schedule that has its own.
    assert warmup_note(configure(warmup, steps, schedule="one_cycle")) == ""


@pytest.mark.parametrize("steps", [4, 6, 12, 13])
def test_a_backbone_that_warms_up_after_the_rest(steps):
    config = configure(4, steps, learning_rate=0.5, backbone_warmup_steps=8)
    note = warmup_note(config)
    reached = float(make_schedule(config, of_backbone=True)(steps - 1))
    if steps == 4:
        assert reached == 0 and note.endswith("does not move at all.")
    elif steps < 13:
        assert f"backbone's learning rate gets to {reached:.2g} of 0.5" in note
    else:
        assert note == "" and reached == 0.5


def test_train_says_it_in_a_line(caplog):
    caplog.set_level(logging.INFO, "mlseg_jax")
    check_labels(configure(0, 4), INFO, INFO)
    assert not caplog.records
    check_labels(configure(100, 4), INFO, INFO)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("optimizer.warmup_steps is 100, but training has 4")
    assert lines[1].endswith("learning rate of 0: step 1 changes nothing")


def test_the_best_checkpoint_must_be_kept():
    config = configure(0, 4)
    config.train.keep_best = 0
    check_labels(config, INFO, INFO)
    config.eval.checkpoint = "best"
    with pytest.raises(UserError, match="set train.keep_best to 1"):
        check_labels(config, INFO, INFO)
    config.train.eval_every = 0  # Nothing is scored, and the newest is the best.
    check_labels(config, INFO, INFO)


def test_doctor_finds_it(monkeypatch):
    from mlseg_jax.doctor import checks

    class Split:
        source, info, name, good = True, INFO, "train", ()

    for name in ("faults", "labels", "copies", "leaks", "classes", "selection"):
        monkeypatch.setattr(checks, f"_check_{name}", lambda *_: ())
    assert list(checks.check_splits(configure(2, 4), Split, Split)) == []
    (found,) = checks.check_splits(configure(9, 4), Split, Split)
    assert isinstance(found, Finding) and found.kind == "warmup"
    assert not found.is_error
