"""``mlseg_jax.train`` and ``mlseg_jax.evaluate``: recipes by path, changes by key."""

from pathlib import Path

import pytest
from tiny import tiny_config

import mlseg_jax
from mlseg_jax.errors import UserError
from mlseg_jax.settings import recipes
from mlseg_jax.training import loop


@pytest.fixture
def trained(monkeypatch):
    """What the loop was called with."""
    calls = []

    def train(config, workdir):
        calls.append((config, workdir))
        return {"mIoU": 0.5}

    monkeypatch.setattr(loop, "train", train)
    return calls


def test_a_recipe_by_its_path_with_changes(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # ours are found from everywhere
    arguments = "configs/segmenter.py:dataset=sign_scenes,backbone=vit_demo"
    changes = {"train.steps": 7, "data.crop_size": (48, 48)}
    assert mlseg_jax.train(arguments, tmp_path / "run", overrides=changes) == {
        "mIoU": 0.5
    }
    ((config, workdir),) = trained
    assert config.train.steps == 7 and config.data.crop_size == (48, 48)
    assert workdir == str(tmp_path / "run")
    # Twice, and with a configuration, which stays as it is.
    own = tiny_config()
    mlseg_jax.train(own, "x", overrides={"seed": 3})
    assert trained[1][0].seed == 3 and own.seed == 0


def test_wrong_ones_are_said(trained, tmp_path):
    for config, changes, words in (
        ("configs/dmeo.py", {}, "did you mean 'demo.py'"),
        ("configs/demo.py", {"train.stpes": 3}, "no key 'train.stpes'"),
        ("configs/demo.py", {"zzz.steps": 3}, "no key 'zzz.steps'"),
        (Path("configs/demo.py"), {"train.steps.x": 1}, "no key 'train.steps.x'"),
        ("configs/demo.py", {"train.steps": "many"}, "train.steps is 'many'"),
        ("configs/demo.py", {"train.steps": -3}, "train.steps is -3"),
    ):
        with pytest.raises(UserError, match=words):
            mlseg_jax.train(config, tmp_path, overrides=changes)
    with pytest.raises(UserError, match="not a work directory"):
        mlseg_jax.evaluate(tmp_path / "nowhere")
    assert not trained


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import demo\n"
        "def get_config(arg=None):\n"
        "    config = demo.get_config()\n"
        "    config.name = arg or 'mine'\n"
        "    return config\n"
    )
    assert recipes.load(str(path)).name == "mine"
    assert recipes.load(f"{path}:other").name == "other"
