"""Which run a work directory belongs to, and what of it may change."""

import json

import pytest
from tiny import tiny_config

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.errors import UserError
from mlseg_jax.runs.workdir import (
    FREE_TO_CHANGE,
    FREE_WITHOUT_EARLY_STOPPING,
    claim_workdir,
    load_config,
)
from mlseg_jax.settings.resolve import resolve

NO_SCORES = {"batch_size": 3, "font": "a.ttf", "oracle_k": 9}


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


def test_what_changes_no_weight_may_change(claimed, tmp_path):
    workdir, info = claimed
    free = {
        "eval.flip": True,
        "eval.scales": (0.5, 1.0),
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "train.log_every": 7,
        "train.logger": "mlflow",
        "train.stop_after": 1,
        "train.keep_best": 3,
        "train.hang_minutes": 1.0,
        "train.max_hours": 0.0,
        "train.profile_start": 2,
        "train.profile_steps": 2,
        "train.eval_every": 3,
        "data.path": str(tmp_path / "moved"),
        "data.cache": True,
        "data.num_threads": 1,
        "data.num_workers": 1,
        "data.on_bad_example": "skip",
    }
    both = {*FREE_TO_CHANGE, *FREE_WITHOUT_EARLY_STOPPING}
    assert {k for k in both if not k.startswith("eval.")} == {
        *(k for k in free if not k.startswith(("eval.", "mesh."))),
        *("mesh", "train.patience"),
    }
    claim_workdir(tiny_config(free), str(workdir), info)
    # The run is where its data is now.
    assert load_config(str(workdir)).data.path == str(tmp_path / "moved")
    # Early stopping counts evaluations.
    with pytest.raises(UserError, match="train.patience was 0, is 2"):
        claim_workdir(tiny_config({"train.patience": 2}), str(workdir), info)


@pytest.mark.parametrize(
    "compares, other",
    [
        ({"train.patience": 2}, {"train.eval_every": 3}),
        ({"train.patience": 2}, {"eval.flip": True}),
        ({"eval.checkpoint": "best"}, {"eval.weights": "latest"}),
    ],
)
def test_what_scores_are_compared_by_may_not_change(tmp_path, compares, other):
    config = tiny_config(compares)
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, str(tmp_path), info)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    free = {f"eval.{key}": value for key, value in NO_SCORES.items()}
    claim_workdir(tiny_config(compares | free), str(tmp_path), info)
    ((key, value),) = other.items()
    with pytest.raises(UserError, match=f"{key} was .*, is {value}"):
        claim_workdir(tiny_config(compares | other), str(tmp_path), info)


def test_for_more_steps_there_is_init(claimed):
    workdir, info = claimed
    with pytest.raises(UserError, match=f"--config.init={workdir}"):
        claim_workdir(tiny_config({"train.steps": 99}), str(workdir), info)
    with pytest.raises(UserError) as caught:
        claim_workdir(tiny_config({"selection.k": 3}), str(workdir), info)
    assert "config.init" not in str(caught.value)


def test_paths_are_said_from_the_root(claimed, monkeypatch):
    """So that a run is taken up and evaluated from any directory."""
    workdir, info = claimed
    (workdir / "checkpoints/2").rename(workdir / "elsewhere")
    monkeypatch.chdir(workdir)
    relative = tiny_config({"data.path": "some/data/", "init": "other"})
    claim_workdir(resolve(relative, info.num_classes), str(workdir), info)
    saved = load_config(str(workdir))
    assert saved.data.path == str(workdir / "some/data")
    assert saved.init == str(workdir / "other")
    assert resolve(saved, 3).data.path == saved.data.path
    bucket = resolve(tiny_config({"data.path": "gs://bucket/data/"}), 3)
    assert bucket.data.path == "gs://bucket/data"


def test_other_classes_are_refused(claimed):
    workdir, info = claimed
    names = (*info.class_names[1:], info.class_names[0])
    other = type(info)(info.name, names, info.is_thing)
    with pytest.raises(UserError, match="other classes"):
        claim_workdir(tiny_config(), str(workdir), other)


def test_damaged_classes_are_said(claimed):
    workdir, info = claimed
    (workdir / "dataset.json").write_text('{"name": "x", "cla')
    with pytest.raises(UserError, match="dataset.json, .* is missing or damaged"):
        claim_workdir(tiny_config(), str(workdir), info)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    with pytest.raises(UserError, match="Cannot write to the work directory"):
        claim_workdir(config, str(tmp_path / "file/run"), info)
