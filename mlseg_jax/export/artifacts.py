"""The files that ``export`` writes, for one of several kinds of runtimes."""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax import export

from mlseg_jax.distributed.sharding import for_any_platform
from mlseg_jax.errors import UserError, pip_install
from mlseg_jax.export import parity
from mlseg_jax.export.description import describe, signature
from mlseg_jax.export.functions import Functions
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.prediction.files import replaced_when_complete
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters

KINDS = ("stablehlo", "onnx")

DESCRIPTION = "export.json"

PREDICTOR = ("predict.py", "predictor.py", "resampling.py")
"""Copied beside the models: they need NumPy, Pillow and ONNX Runtime alone."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""That one artifact of StableHLO runs on."""

OPSETS = (17, 23)
"""First and last version of ONNX's operators that can be written."""

QUANTIZE = ("float16", "int8")
"""How the weights of ONNX files may be stored; they compute in float32."""

Shapes = dict[str, jax.ShapeDtypeStruct]


def export_run(
    config: ml_collections.ConfigDict,
    workdir: str,
    output: str,
    kind: str,
    *,
    checkpoint: str = "kept",
    sizes: Sequence[tuple[int, int]] = (),
    batch: int | None = None,
    opset: int = OPSETS[0],
    quantize: str | None = None,
) -> dict:
    """Writes a run's model as files that need none of this code.

    Args:
      config: of the run, perhaps with another ``selection`` or ``eval``.
      workdir: of the run.
      output: folder for the files.
      kind: one of `KINDS`.
      checkpoint: kept, latest, best or a step; see `runs.workdir.load_parameters`.
      sizes: heights and widths of pictures; none takes that of the windows. Of several
        (StableHLO alone) each has files of its own, `stem`.
      batch: how many pictures at a time; None for any number.
      opset: version of ONNX's operators.
      quantize: how weights are stored, one of `QUANTIZE`; None for float32. Then the
        mean IoU of both is measured, too.

    Returns:
      What ``export.json`` says.

    Raises:
      UserError: the model cannot be exported, a package is missing, or the files say
        something else than the model (`parity.judge`; not of quantised weights).
    """
    check(kind, opset, quantize, sizes)
    if batch is not None and batch < 1:
        raise UserError(
            f"--batch={batch} is no number of pictures; write 1 or more, or leave it "
            f"out for any number."
        )
    of_sizes, step = load_functions_of(config, workdir, checkpoint, sizes)
    symbol = any_batch() if batch is None else None
    place = epath.Path(output).expanduser()
    before = files_of(place)
    with replaced_when_complete(place) as folder:
        folder = pathlib.Path(folder)
        signatures, found = {}, []
        for functions in of_sizes:
            size = functions.size if len(of_sizes) > 1 else None
            calls = arguments(functions, symbol or batch)
            signatures |= _signatures(functions, calls, kind, size)
            if kind == "onnx":
                write_onnx_files(folder, functions, calls, opset, symbol, quantize)
            else:
                write_stablehlo(folder, functions, calls, size)
            call = parity.open_artifacts(folder, kind, size)
            found.append(parity.measure(config, functions, call, batch or 1))
        functions, found = of_sizes[0], parity.together(found)
        info = load_info(workdir)
        description = describe(
            config, info, functions, kind=kind, step=step, arguments=signatures
        )
        description["sizes"] = [list(each.size) for each in of_sizes]
        if kind == "onnx":
            description |= {"opset": opset, "quantize": quantize}
            write_predictor(folder)
        if quantize is not None:
            found |= parity.mean_iou(config, functions, description, folder)
        description["parity"] = found
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if quantize is None:  # before anything takes the place of what was there
            parity.judge(found, str(folder))
        written = {path.name for path in folder.iterdir()}
    for name in before - written:
        (place / name).unlink(missing_ok=True)
    return description


def files_of(folder: epath.Path) -> set[str]:
    """Names of what an earlier export wrote there; none where there was none."""
    try:
        earlier = json.loads((folder / DESCRIPTION).read_text())
        names = {each["file"] for each in earlier["functions"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    if earlier.get("kind") == "onnx":
        names |= {"weights.bin", *PREDICTOR}
    return {name for name in names if "/" not in name}


def _signatures(functions: Functions, calls: dict, kind: str, size) -> dict:
    """Inputs and results of each file by its stem."""
    return {
        stem(name, size): {
            "file": f"{stem(name, size)}.{kind}",
            "inputs": signature(_flat(inputs)),
            "results": signature(_results(functions, name, inputs)),
        }
        for name, inputs in calls.items()
    }


def stem(function: str, size: tuple[int, int] | None) -> str:
    """Of a function's file, such as ``segment`` or, of several sizes, of the one for
    pictures of 512 x 768, ``segment_512x768``.
    """
    return function if size is None else f"{function}_{size[0]}x{size[1]}"


def check(kind: str, opset: int, quantize: str | None = None, sizes=()) -> None:
    """Before anything is loaded.

    Raises:
      UserError: a package is missing, or there is no such version.
    """
    if kind == "onnx":
        if len(sizes) > 1:
            raise UserError(
                "Several sizes go with --to=stablehlo alone; the predictor of ONNX "
                "files cuts pictures into windows of one --size."
            )
        missing = [
            name
            for name in ("onnx", "onnxruntime")
            if importlib.util.find_spec(name) is None
        ]
        if missing:
            raise UserError(
                f"--to=onnx needs {' and '.join(missing)}; "
                f"run `{pip_install('onnx', 'onnxruntime')}`."
            )
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise UserError(
                f"--opset={opset} cannot be written; choose {OPSETS[0]} to {OPSETS[1]}."
            )
        return
    if quantize is not None:
        raise UserError("--quantize goes with --to=onnx alone; leave it out.")
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            f"--to=stablehlo needs flatbuffers; run `{pip_install('flatbuffers')}`."
        )


def load_functions(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str = "kept"
) -> tuple[Functions, int]:
    """The functions of a trained run in float32, and the step of its weights."""
    (functions,), step = load_functions_of(config, workdir, checkpoint)
    return functions, step


def load_functions_of(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str = "kept",
    sizes: Sequence[tuple[int, int]] = (),
) -> tuple[list[Functions], int]:
    """The same for each size of pictures; none is that of the windows."""
    config.mesh.update(data=-1, fsdp=1)
    model, parameters, step = load_parameters(workdir, config, checkpoint)
    trained = load_config(workdir)
    with trained.unlocked():
        # What runs everywhere; weights are float32 in any case.
        trained.model.dtype = "float32"
    model = FunctionalModel.build(trained, model.num_classes)
    # On one device, whatever the mesh of the training was.
    parameters = jax.tree.map(jnp.asarray, jax.device_get(parameters))
    sizes = dict.fromkeys(sizes) or [tuple(config.eval.window)]
    return [Functions.of(config, model, parameters, size) for size in sizes], step


def arguments(functions: Functions, batch) -> dict[str, dict]:
    """Inputs of each function by name, those of ``classify`` partly in a dictionary."""
    image = jax.ShapeDtypeStruct((batch, *functions.size, 3), jnp.uint8)
    encode: dict = {"image": image}
    if functions.sized:
        encode["size"] = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    ranks = batch, functions.num_ranks
    classify = {
        "encoded": _needed(_results(functions, "encode", encode), functions),
        "class_ids": jax.ShapeDtypeStruct(ranks, jnp.int32),
        "valid": jax.ShapeDtypeStruct(ranks, jnp.bool_),
    }
    segment = {"image": image}
    if functions.policy.name != "complete":
        segment["k"] = jax.ShapeDtypeStruct((), jnp.int32)
    return {"encode": encode, "classify": classify, "segment": segment}


def _needed(encoded: Shapes, functions: Functions) -> Shapes:
    """What of the encoding is classified: masks are as they are."""
    return {key: x for key, x in encoded.items() if key != "mask_logits"}


def _results(functions: Functions, name: str, inputs: dict) -> Shapes:
    with for_any_platform():
        return jax.eval_shape(getattr(functions, name), *inputs.values())


def _flat(inputs: dict) -> Shapes:
    result = {}
    for name, value in inputs.items():
        result |= value if isinstance(value, dict) else {name: value}
    return result


def any_batch():
    """A length that is known when the model runs."""
    return export.symbolic_shape("B")[0]


# ------------------------------------------------------------------------------ files


def write_stablehlo(
    folder: pathlib.Path, functions: Functions, calls: dict, size=None
) -> None:
    """``size``: of the pictures, where the folder has files for several."""
    for name, inputs in calls.items():
        with for_any_platform():
            exported = export.export(
                jax.jit(getattr(functions, name)), platforms=PLATFORMS
            )(*inputs.values())
        path = folder / f"{stem(name, size)}.stablehlo"
        path.write_bytes(exported.serialize())


def write_onnx_files(
    folder: pathlib.Path,
    functions: Functions,
    calls: dict,
    opset: int,
    symbol,
    quantize: str | None = None,
) -> None:
    """``symbol``: the length in ``calls`` that is any batch; None for a fixed one."""
    # Here, because the package need not be installed.
    from mlseg_jax.export.onnx_files import write_onnx
    from mlseg_jax.export.onnx_weights import Weights

    weights = Weights(folder, quantize)
    try:
        for name, inputs in calls.items():
            write_onnx(
                folder / f"{name}.onnx",
                _of_flat(getattr(functions, name), inputs),
                _flat(inputs),
                weights,
                opset=opset,
                batch=symbol,
            )
    finally:
        weights.close()


def write_predictor(folder: pathlib.Path) -> None:
    """Our files that need no other of ours, which find each other in one folder."""
    for name in PREDICTOR:
        text = pathlib.Path(__file__).with_name(name).read_text(encoding="utf-8")
        text = text.replace("from mlseg_jax.export import ", "import ")
        text = text.replace("from mlseg_jax.export.", "from ")
        (folder / name).write_text(text, encoding="utf-8")


def _of_flat(function: Callable, inputs: dict) -> Callable:
    """The function of one array after the other."""

    def call(*arrays):
        left, given = list(arrays), []
        for value in inputs.values():
            if isinstance(value, dict):
                given.append({key: left.pop(0) for key in value})
            else:
                given.append(left.pop(0))
        return function(*given)

    return call
