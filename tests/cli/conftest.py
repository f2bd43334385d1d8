"""The program in this process, and what it has trained itself."""

import pytest
from main_program import as_process, run_here
from tiny import tiny_flags


@pytest.fixture
def program(capsys, monkeypatch):
    """Runs ``python main.py ...`` in this process."""
    return lambda *arguments: run_here(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Trained by the program itself."""
    path = tmp_path_factory.mktemp("life") / "run"
    result = as_process(
        "train", *tiny_flags({"train.eval_every": 2}), "--workdir", path
    )
    assert result.status == 0, result.err
    assert f"{path}/metrics.json" in result.out and "mIoU" in result.out
    return path
