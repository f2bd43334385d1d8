"""``export --to=web`` by its command; what ONNX files hold is tests/export's matter."""

import io
import json
import tarfile

import pytest
from tiny import tiny_config

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.export import artifacts
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.serving import web

# ml_collections loads configuration files in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PARITY = {
    "pictures": "1 noise",
    "largest_difference_of_scores": 0.0,
    "largest_difference_of_logits": 0.0,
    "pixels": 4,
    "different_pixels": 0,
    "milliseconds_exported": 1.0,
    "milliseconds_here": 1.0,
}


@pytest.fixture
def runtime(tmp_path):
    path = tmp_path / "runtime.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in (web.LOADER, *web.PROGRAM):
            member = tarfile.TarInfo(f"package/dist/{name}")
            archive.addfile(member, io.BytesIO())
    return path


def write_files(config, workdir, output, kind, **options):
    """In the place of `artifacts.export_run`."""
    assert kind == "onnx" and config.selection.eval_k > config.selection.k
    about = {
        "format": 1,
        "model": {"name": "m", "data": "d", "step": 1, "num_queries": 0},
        "selection": {"name": "top_k", "num_ranks": config.selection.eval_k},
        "input": {"size": [32, 32]},
        "class_names": ["a", "b"],
        "parity": PARITY,
    }
    folder = web.pathlib.Path(output)
    folder.mkdir()
    for name in web.MODEL:
        (folder / name).write_bytes(name.encode())
    (folder / "export.json").write_text(json.dumps(about))
    return about


def test_the_command(program, runtime, tmp_path, monkeypatch):
    config = tiny_config({})
    run, page = tmp_path / "run", tmp_path / "page"
    claim_workdir(config, str(run), open_dataset(config.data, train=True).info)
    monkeypatch.setattr(artifacts, "export_run", write_files)
    (page / "files").mkdir(parents=True)
    theirs = {"thesis.pdf", "own.0.js", "folder"}
    for name in ("weights.bin.7.js", "example_99.jpg.0.js", *theirs - {"folder"}):
        (page / "files" / name).write_text("of a larger model, or somebody's")
    (page / "files" / "folder").mkdir()
    line = ("export", f"--workdir={run}", f"--output={page}")
    done = program(*line, "--to=web", f"--runtime={runtime}")
    assert done.status == 0, done.err
    assert "scores differ by at most 0" in done.out and done.out.endswith(f"{page}\n")
    assert {path.name for path in page.iterdir()} == {"index.html", "files"}
    assert "const backend" in (page / "index.html").read_text()
    files = {path.name for path in (page / "files").iterdir()}
    assert {"pieces.js", "weights.bin.0.js", "example_0.jpg.0.js"} <= files
    assert not {"weights.bin.7.js", "example_99.jpg.0.js"} & files and theirs <= files
    error = program(*line, "--to=web", "--batch=2").error
    assert "leave --batch out" in error
    assert (
        "--runtime goes with --to=web"
        in program(*line, "--to=onnx", f"--runtime={runtime}").error
    )
