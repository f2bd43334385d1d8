"""The wheel: what it holds, and that it is found where no checkout is."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from tiny import ROOT

PACKAGES = ("mlseg_jax", "input_pipeline")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, for a build leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    program = "from setuptools import build_meta as b; print(b.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_every_file_and_is_found_alone(wheel, tmp_path):
    """Also pages, lists of names and recipes, which are no modules. Far from the
    checkout it is imported and reads recipes and pages; it trains nothing here, for its
    files are those with which all other tests do.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (tmp_path / "site" / path.relative_to(ROOT)).exists(), path
    program = """
import mlseg_jax
from mlseg_jax.cli.program import run
from mlseg_jax.serving.page_files import IN_BROWSER, page
from mlseg_jax.settings import recipes
assert recipes.load("configs/demo.py", {"train.steps": 7}).train.steps == 7
assert "const backend" in page(IN_BROWSER)
print(mlseg_jax.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(done.stdout.strip()).is_relative_to(tmp_path)
