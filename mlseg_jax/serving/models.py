"""What a server segments with: a trained run, or a folder that ``export`` wrote."""

import dataclasses
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError, pip_install
from mlseg_jax.export.artifacts import load_functions
from mlseg_jax.export.description import describe
from mlseg_jax.export.functions import Functions
from mlseg_jax.export.predictor import BATCH, Model, Predictor, read_description
from mlseg_jax.runs.workdir import load_info

NUM_EXAMPLES = 4

SIZES = tuple(2**n for n in reversed(range(BATCH.bit_length())))
"""Batches of windows that are compiled, the largest first."""


class RunModel:
    """The functions of a run, compiled for batches of `SIZES`.

    Like `predictor.Model`, with the same meaning of its three attributes.
    """

    def __init__(self, functions: Functions, description: dict):
        self.description = description
        # Numbers are handed over: as constants they would be compiled in.
        self._parameters = functions.parameters
        self._encode = jax.jit(
            lambda parameters, inputs: _with(functions, parameters).encode(**inputs)
        )
        self._classify = jax.jit(
            lambda parameters, *inputs: _with(functions, parameters).classify(*inputs)
        )

    def encode(self, inputs: dict) -> dict[str, np.ndarray]:
        return _in_parts(inputs, lambda part: self._encode(self._parameters, part))

    def classify(self, inputs: dict) -> np.ndarray:
        def call(part):
            last = [part.pop(key) for key in ("class_ids", "valid")]
            part.pop("mask_logits", None)
            return self._classify(self._parameters, part, *last)

        return _in_parts(inputs, call)["logits"]


def _with(functions: Functions, parameters) -> Functions:
    return dataclasses.replace(functions, parameters=parameters)


def _in_parts(inputs: dict, call: Callable[[dict], dict]) -> dict[str, np.ndarray]:
    """Any number of windows in parts of `SIZES`, for which all is compiled."""
    inputs = {key: np.asarray(x) for key, x in inputs.items()}
    count, start, parts = len(next(iter(inputs.values()))), 0, []
    while start < count:
        stop = start + next(size for size in SIZES if size <= count - start)
        part = call({key: jnp.asarray(x[start:stop]) for key, x in inputs.items()})
        parts.append({key: np.asarray(x) for key, x in part.items()})
        start = stop
    return {key: np.concatenate([x[key] for x in parts]) for key in parts[0]}


def warm_up(predictor: Predictor) -> None:
    """Compiles all that requests need, so that nobody waits for it later."""
    for count in SIZES:
        inputs = {"image": np.zeros((count, *predictor.window, 3), np.uint8)}
        if predictor.about["input"]["sized"]:
            inputs["size"] = np.repeat(np.int32([predictor.window]), count, axis=0)
        ranks = count, predictor.num_ranks
        chosen = {
            "class_ids": np.broadcast_to(np.arange(ranks[1], dtype=np.int32), ranks),
            "valid": np.ones(ranks, bool),
        }
        predictor.model.classify(predictor.model.encode(inputs) | chosen)


def of_run(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str
) -> tuple[Predictor, int]:
    """The predictor of a run, and how many labels it selects unless told otherwise.

    Up to twice as many can be asked for.
    """
    functions, step = load_functions(config, workdir, checkpoint)
    usual = functions.policy.k
    if functions.policy.name == "top_k":
        most = largest_k(usual, functions.model.num_classes)
        policy = dataclasses.replace(functions.policy, k=most)
        functions = dataclasses.replace(functions, policy=policy)
    description = describe(
        config, load_info(workdir), functions, kind="run", step=step, arguments={}
    )
    return Predictor(RunModel(functions, description)), usual


def largest_k(usual: int, num_classes: int) -> int:
    """Labels that a page can ask for: twice as many as usual."""
    return min(num_classes, 2 * usual)


def of_export(folder: str) -> tuple[Predictor, int]:
    """The same of a folder with ONNX files.

    Raises:
      UserError: it holds none, or a package is missing.
    """
    try:
        description = read_description(folder)
        if description["kind"] != "onnx":
            raise UserError(
                f"{folder} holds {description['kind']}, which serve does not run; "
                f"export with --to=onnx."
            )
        model = Model(folder, description=description)
        for name in ("encode", "classify"):
            model.session(name)
        predictor = Predictor(model)
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}: {error}") from error
    except ImportError as error:
        raise UserError(
            f"--model needs ONNX Runtime; run `{pip_install('onnxruntime')}`."
        ) from error
    return predictor, predictor.num_ranks


def example_pictures(config: ml_collections.ConfigDict) -> list[bytes]:
    """JPEG files of the data set's evaluation split; none where it is not at hand."""
    try:
        source = open_dataset(config.data, train=False)
        images = [source[i]["image"] for i in range(min(NUM_EXAMPLES, len(source)))]
    except (UserError, DataError, OSError):
        return []
    return [cv2.imencode(".jpg", image[..., ::-1])[1].tobytes() for image in images]
