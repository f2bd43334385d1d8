"""The recipes are found by path, from a checkout and from the wheel, whatever else is
called ``configs``.
"""

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile

import jax
import pytest
from tiny import ROOT, tiny_config

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.settings import recipes
from mlseg_jax.training.state import initialise

COMMAND = "from mlseg_jax.cli.program import run; run()"

SCRIPT = """
import configs
from configs import other
import sys
import mlseg_jax

assert mlseg_jax.load(sys.argv[1]).info.num_classes == 20

from mlseg_jax.settings import recipes

assert recipes.get("demo").get_config().name == "demo"
assert sys.modules["configs"] is configs and configs.OWNER == "somebody else"
assert sys.modules["configs.other"] is other and "configs.demo" not in sys.modules
"""

OWN_RECIPE = """
from configs import segmenter

def get_config(arg=None):
    config = segmenter.get_config(arg)
    config.name = "mine"
    return config
"""


@pytest.fixture
def project(tmp_path):
    """Somebody's folder with a package ``configs``; another one lies elsewhere."""
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        (place / "configs").mkdir(parents=True)
        (place / "configs/__init__.py").write_text('OWNER = "somebody else"\n')
    (folder / "configs/other.py").touch()
    (elsewhere / "configs/segmenter.py").write_text("raise ValueError('not this')\n")
    return folder


def python(project, *arguments, library=ROOT):
    """Runs Python in the project, whose own packages it finds first, as users do."""
    path = os.pathsep.join(map(str, (project, project.parent / "elsewhere", library)))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=project,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_load_beside_a_foreign_configs(project, tmp_path, quick_compiles):
    config, run = tiny_config(), tmp_path / "run"
    claim_workdir(config, str(run), open_dataset(config.data, train=True).info)
    checkpoints = Checkpoints(str(run))
    checkpoints.save(0, initialise(config, 20, make_mesh(config, jax.devices()[:1])))
    checkpoints.wait()
    checkpoints.close()
    (project / "script.py").write_text(SCRIPT)
    done = python(project, "script.py", run)
    assert done.returncode == 0, done.stderr


def test_the_command_beside_a_foreign_configs(project):
    recipe = "--config=configs/segmenter.py:dataset=sign_scenes,backbone=vit_demo"
    done = python(project, "-c", COMMAND, "summary", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_classes"] == 120


@pytest.mark.parametrize("kind", ["package", "plain folder"])
def test_ones_own_recipe_builds_on_ours(project, monkeypatch, kind):
    if kind == "plain folder":
        (project / "configs/__init__.py").unlink()
    (project / "configs/segmenter.py").write_text("raise ValueError('nor this')\n")
    (project / "mine.py").write_text(OWN_RECIPE)
    for name in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(project))
    theirs = importlib.import_module("configs.other")
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "configs"}
    with recipes.bound():
        mine = runpy.run_path(str(project / "mine.py"))
        config = mine["get_config"]("dataset=coco_stuff")
    assert config.name == "mine" and config.data.num_classes == 171
    with pytest.raises(ZeroDivisionError), recipes.bound():
        raise ZeroDivisionError
    after = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "configs"}
    assert after == before and after["configs.other"] is theirs


def build(kind, source, folder):
    """What `setuptools` makes of a source tree: the path of the one file."""
    folder.mkdir()
    program = (
        f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.iterdir()
    return path


def test_the_wheel_carries_the_recipes(project, tmp_path):
    source, library = tmp_path / "source", tmp_path / "library"
    no_leftovers = shutil.ignore_patterns("__pycache__")
    for name in ("mlseg_jax", "input_pipeline", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=no_leftovers)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as archive:
        archive.extractall(library)
    folders = {path.name for path in library.iterdir()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {
        "mlseg_jax",
        "input_pipeline",
    }
    for path in (ROOT / "configs").glob("*.py"):
        carried = library / "mlseg_jax/recipes" / path.name
        assert carried.read_text() == path.read_text()
    script = f"import mlseg_jax; print(mlseg_jax.__file__); {COMMAND}"
    summary = ("summary", "--config=configs/demo.py", "--json")
    done = python(project, "-c", script, *summary, library=library)
    assert done.returncode == 0, done.stderr
    used, line = done.stdout.splitlines()
    assert used == str(library / "mlseg_jax/__init__.py")
    assert json.loads(line)["parameters"] == 1_512_124


@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_foreign_input_pipeline_is_named(project, kind):
    foreign = project / "input_pipeline"
    if kind == "package":
        foreign.mkdir()
        (foreign / "__init__.py").touch()
    else:
        foreign = project / "input_pipeline.py"
        foreign.touch()
    sentence = f"`import input_pipeline` finds {foreign} and not {ROOT}/input_pipeline"
    done = python(project, "-c", "import mlseg_jax; mlseg_jax.load('runs/demo')")
    assert f"\nmlseg_jax.errors.UserError: {sentence}" in done.stderr
    if kind == "package":
        done = python(project, "-c", COMMAND, "predict", "--config=configs/demo.py")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith(f"error: {sentence}"), done.stderr


def test_a_plain_folder_of_that_name_is_in_nobodys_way(project):
    (project / "input_pipeline").mkdir()
    program = "from mlseg_jax.errors import refuse_foreign_pipeline as f; f()"
    assert python(project, "-c", program).returncode == 0
