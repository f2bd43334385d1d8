"""The page as a folder that a browser opens, without a server or a network."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence

import ml_collections
from etils import epath

from input_pipeline.files.local_copy import cache_directory
from mlseg_jax.errors import UserError
from mlseg_jax.export import artifacts
from mlseg_jax.export.functions import exported_policy
from mlseg_jax.export.predictor import Model, Predictor
from mlseg_jax.prediction.files import replaced_when_complete
from mlseg_jax.runs.workdir import load_info
from mlseg_jax.serving.models import example_pictures, largest_k
from mlseg_jax.serving.page_files import IN_BROWSER, facts, page

PACKAGE = "onnxruntime-web@1.30.0"
"""Of npm: ONNX Runtime for browsers, under the MIT licence."""

MODEL = ("encode.onnx", "classify.onnx", "weights.bin")

_UNREADABLE = OSError, KeyError, AttributeError, tarfile.TarError, EOFError, zlib.error
"""What reading an archive raises that is cut off, damaged or of something else."""

LOADER = "ort.wasm.min.js"
PROGRAM = ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

_NAMES = "|".join(map(re.escape, (*MODEL, *PROGRAM, "model.json")))
_PIECE = re.compile(rf"({_NAMES}|example_\d+\.jpg)\.\d+\.js")
"""Names of the pieces that `write_page` writes."""

PIECE = 3 * 2**20
"""Bytes of a piece of a file, a multiple of 3; four thirds as many in base64."""


def export_page(
    config: ml_collections.ConfigDict,
    workdir: str,
    output: str,
    *,
    runtime: str | None = None,
    **options,
) -> dict:
    """Writes ``index.html``, which segments pictures by itself, and ``files/``.

    Args:
      config, workdir: of the run.
      output: folder to write.
      runtime: file that ``npm pack`` makes of `PACKAGE`; None asks npm once.
      options: of `artifacts.export_run`.

    Returns:
      What ``export.json`` of the ONNX files in it would say.

    Raises:
      UserError: the model cannot be exported, the runtime cannot be had, or what was
        written says something else than the model (`parity.judge`).
    """
    program = runtime_files(runtime)
    num_classes = load_info(workdir).num_classes
    policy = exported_policy(config, num_classes)
    if policy.name == "top_k":
        config.selection.eval_k = largest_k(policy.k, num_classes)
    place = epath.Path(output).expanduser()
    with replaced_when_complete(place) as folder:
        folder = pathlib.Path(folder)
        exported = folder / "onnx"
        description = artifacts.export_run(
            config, workdir, str(exported), "onnx", **options
        )
        write_page(folder, exported, program, policy.k, example_pictures(config))
        shutil.rmtree(exported)
        written = {path.name for path in (folder / "files").iterdir()}
    for path in (place / "files").iterdir():  # pieces of an earlier, larger model
        if path.name not in written and _PIECE.fullmatch(path.name):
            path.unlink()
    return description


def write_page(
    folder: pathlib.Path,
    exported: pathlib.Path,
    program: dict[str, bytes],
    usual: int,
    examples: Sequence[bytes] = (),
) -> None:
    """The page over a folder with ONNX files, as a folder of its own.

    Args:
      folder: to write to.
      exported: holds the ONNX files.
      program: `runtime_files`.
      usual: labels that are selected at first.
      examples: JPEG files for those who have no picture at hand.
    """
    model = Model(exported)
    shown = facts(Predictor(model), usual, len(examples))
    about = {"about": model.description, "facts": shown}
    files = {name: (exported / name).read_bytes() for name in MODEL}
    files |= {name: program[name] for name in PROGRAM}
    files |= {f"example_{i}.jpg": data for i, data in enumerate(examples)}
    files["model.json"] = json.dumps(about, ensure_ascii=False).encode()
    (folder / "files").mkdir()
    (folder / "files" / LOADER).write_bytes(program[LOADER])
    write_pieces(folder / "files", files)
    (folder / "index.html").write_text(page(IN_BROWSER), encoding="utf-8")


def write_pieces(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Every file, packed by zlib, as scripts that hand over a piece of it in base64.

    A page that was opened as a file may load scripts, and nothing else beside it.
    """
    counts = {}
    for name, data in files.items():
        data = zlib.compress(data)
        parts = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        for number, part in enumerate(parts):
            text = base64.b64encode(part).decode("ascii")
            script = f'piece("{name}.{number}", "{text}");\n'
            (folder / f"{name}.{number}.js").write_text(script, encoding="ascii")
        counts[name] = len(parts)
    script = f"const FILES = {json.dumps(counts)};\n"
    (folder / "pieces.js").write_text(script, encoding="ascii")


def runtime_files(given: str | None = None) -> dict[str, bytes]:
    """ONNX Runtime's files for browsers, by name.

    ``given``: a file that ``npm pack`` made; None takes the one in the cache, where npm
    puts it if it is not there yet.

    Raises:
      UserError: there is none, or it holds something else.
    """
    path = pathlib.Path(given) if given else _packed()
    wanted = (LOADER, *PROGRAM)
    try:
        with tarfile.open(path) as archive:
            return {
                name: archive.extractfile(f"package/dist/{name}").read()
                for name in wanted
            }
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is not what `npm pack {PACKAGE}` makes ({error}); make it again."
        ) from error


def cached() -> pathlib.Path:
    """Where the package is kept, or will be."""
    name = f"{PACKAGE.replace('@', '-')}.tgz"
    return pathlib.Path(cache_directory("browser"), name)


def _packed() -> pathlib.Path:
    path = cached()
    if path.exists():
        return path
    npm, reason = shutil.which("npm"), "there is no npm"
    if npm:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            done = subprocess.run(
                [npm, "pack", PACKAGE, "--silent"],
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
            made = pathlib.Path(place, path.name)
            if done.returncode == 0 and made.exists():
                return made.replace(path)
        reason = "npm could not fetch it: " + " ".join(done.stderr.split())[:200]
    raise UserError(
        f"--to=web needs ONNX Runtime for browsers, and {reason}; run `npm pack "
        f"{PACKAGE}` where there is a network, and name the file that it makes with "
        f"--runtime=FILE."
    )
