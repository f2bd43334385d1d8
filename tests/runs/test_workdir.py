"""Which run a work directory belongs to, and what of it may change."""

import json

import pytest
from tiny import tiny_config

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.errors import UserError
from mlseg_jax.runs.workdir import FREE_TO_CHANGE, claim_workdir


@pytest.fixture
def claimed(tmp_path):
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, str(tmp_path), info)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    return tmp_path, info


def test_before_its_first_checkpoint_a_directory_may_be_used_anew(claimed):
    workdir, info = claimed
    (workdir / "checkpoints/2").rename(workdir / "checkpoints/2.orbax-checkpoint-tmp")
    claim_workdir(tiny_config({"train.steps": 5}), str(workdir), info)
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 5


@pytest.mark.parametrize(
    "key, value",
    [
        ("optimizer.learning_rate", 0.5),
        ("train.steps", 5),
        ("selection.k", 3),
        ("model.decoder.depth", 2),
        ("data.crop_size", (64, 32)),
    ],
)
def test_the_directory_of_another_run_is_refused(claimed, key, value):
    workdir, info = claimed
    with pytest.raises(UserError, match=f"{key} was .*, is ") as caught:
        claim_workdir(tiny_config({key: value}), str(workdir), info)
    assert str(workdir) in str(caught.value)


def test_what_changes_no_weight_may_change(claimed):
    workdir, info = claimed
    free = {
        "eval.flip": True,
        "eval.scales": (0.5, 1.0),
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "train.log_every": 7,
        "train.stop_after": 1,
        "train.keep_best": 3,
        "train.hang_minutes": 1.0,
        "train.profile_start": 2,
        "train.profile_steps": 2,
        "data.num_threads": 1,
        "data.on_bad_example": "skip",
    }
    assert {k for k in free if not k.startswith(("eval.", "mesh."))} | {
        "eval",
        "mesh",
    } == set(FREE_TO_CHANGE)
    claim_workdir(tiny_config(free), str(workdir), info)


def test_other_classes_are_refused(claimed):
    workdir, info = claimed
    names = (*info.class_names[1:], info.class_names[0])
    other = type(info)(info.name, names, info.is_thing)
    with pytest.raises(UserError, match="other classes"):
        claim_workdir(tiny_config(), str(workdir), other)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    with pytest.raises(UserError, match="Cannot write to the work directory"):
        claim_workdir(config, str(tmp_path / "file/run"), info)
