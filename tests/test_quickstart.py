"""docs/quickstart.ipynb, cell after cell, with a model of milliseconds."""

import json
import sys

import jaxtyping
import pytest
from tiny import OVERRIDES, ROOT


@pytest.fixture
def cells():
    book = json.loads((ROOT / "docs/quickstart.ipynb").read_text())
    assert book["nbformat"] == 4
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    # As a reader finds them: nothing has run yet.
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    return ["".join(cell["source"]) for cell in code]


@pytest.fixture
def without_shape_checks():
    """As for all exports: jaxtyping takes symbolic lengths for numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_the_notebook_runs(cells, tmp_path, monkeypatch, without_shape_checks):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert "pip" in cells[0]  # installs, where there is something to install
    space = {}
    for cell in cells:
        exec(compile(cell, "cell", "exec"), space)
        if "overrides = " in cell:
            space["overrides"] |= OVERRIDES
    assert 0 <= space["scores"]["mIoU"] <= 1
    label_map, shape = space["few"].label_map, space["image"].shape[:2]
    assert label_map.shape == shape and len(space["few"].labels) == 2
    assert (tmp_path / "runs/own/metrics.json").exists()
    assert (tmp_path / "exported/predict.py").exists()
    assert not sys.modules.pop("predictor").__file__.startswith(str(ROOT))
