"""Curves for Weights & Biases and MLflow, which stand in for themselves here."""

import sys
import types

import pytest
from tiny import tiny_config

from mlseg_jax.errors import UserError
from mlseg_jax.runs.progress import MetricWriter


class Recorder(types.ModuleType):
    """A module that remembers how it was used."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        self.info = types.SimpleNamespace(run_id="abc")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


def write(workdir, logger, start=0):
    config = tiny_config({"train.logger": logger})
    writer = MetricWriter(str(workdir), start, config)
    writer.write(start + 1, {"loss/total": 0.5})
    writer.close()


def test_weights_and_biases(tmp_path, monkeypatch):
    wandb = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    write(tmp_path / "run", "wandb")
    write(tmp_path / "run", "wandb", start=1)
    first, log, finish, again, *_ = wandb.calls
    write(tmp_path / "other", "wandb")
    assert wandb.calls[-3][2]["id"] != first[2]["id"]
    assert first[0] == "init" and first[2]["name"] == "run"
    assert first[2]["config"]["train"]["logger"] == "wandb"
    assert log == ("log", ({"loss/total": 0.5},), {"step": 1})
    assert finish[0] == "finish"
    assert again[2]["id"] == first[2]["id"] and again[2]["resume"] == "allow"


def test_mlflow(tmp_path, monkeypatch):
    mlflow = Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", "mlflow")
    write(tmp_path / "run", "mlflow", start=1)
    names = [name for name, *_ in mlflow.calls]
    assert names == ["start_run", "log_params", *["log_metrics", "end_run"]] + [
        *("start_run", "log_metrics", "end_run")
    ]
    assert mlflow.calls[0][2]["run_id"] is None
    assert mlflow.calls[4][2]["run_id"] == "abc"  # taken up
    assert mlflow.calls[1][1][0]["train.steps"] == "4"


def test_a_package_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=f"{sys.executable} -m pip install wandb"):
        write(tmp_path, "wandb")
    write(tmp_path, "tensorboard")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
