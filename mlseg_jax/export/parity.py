"""Whether an exported model says what the model says, and how fast each is."""

import pathlib
import time
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import export

from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError
from mlseg_jax.export.functions import Arrays, Functions
from mlseg_jax.export.predictor import Model, Predictor
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.typing import UInt8

LARGEST_DIFFERENCE = 1e-4
"""Of scores and logits, up to which two runtimes are thought to say the same."""

NUM_PICTURES = 3
MOST_SCORED = 200
"""Pictures that a mean IoU is of."""

NUM_TIMED = 3

Call = Callable[[str, dict], dict[str, np.ndarray]]
"""A function's name and its inputs, flat, to its results."""


def measure(
    config: ml_collections.ConfigDict,
    functions: Functions,
    theirs: Call,
    batch: int,
) -> dict:
    """Runs both on the same pictures.

    ``theirs``: what was exported, from `open_artifacts`. Differences are the largest of
    label scores, and of logits over ranks under the same selection; ``pixels`` are
    those of all label maps.
    """
    pictures, origin = samples(config, functions.size)
    ours = calls_of(functions)
    found = [
        compare(functions, ours, theirs, np.resize(picture, (batch, *picture.shape)))
        for picture in pictures
    ]
    chain = segment_inputs(
        functions, np.resize(pictures[0], (batch, *pictures[0].shape))
    )
    return {
        "pictures": f"{len(pictures)} {origin}",
        "largest_difference_of_scores": _largest(x["scores"] for x in found),
        "largest_difference_of_logits": _largest(x["logits"] for x in found),
        "pixels": sum(x["pixels"] for x in found),
        "different_pixels": sum(x["different"] for x in found),
        "milliseconds_here": seconds(ours, chain),
        "milliseconds_exported": seconds(theirs, chain),
    }


def together(found: list[dict]) -> dict:
    """Of files for several sizes: the largest differences, and the sums of the rest."""
    first, *others = found
    result = dict(first)
    for each in others:
        for key, value in each.items():
            if key.startswith("largest"):
                result[key] = _largest([result[key], value])
            elif key != "pictures":
                result[key] = round(result[key] + value, 2)
    return result


def mean_iou(
    config: ml_collections.ConfigDict,
    functions: Functions,
    description: dict,
    folder: pathlib.Path,
) -> dict:
    """Mean IoU of both on the first pictures of the evaluation split, seen as in
    evaluation; nothing where the split is not at hand.
    """
    try:
        source = open_dataset(config.data, train=False)
    except (UserError, DataError, OSError):
        return {}
    calls, scores = calls_of(functions), {}
    models = {
        "mean_iou_here": _Here(description, calls),
        "mean_iou_exported": Model(folder, description=description),
    }
    count = min(MOST_SCORED, len(source))
    for name, model in models.items():
        predictor, total = Predictor(model), MeanIoU.empty(functions.model.num_classes)
        for i in range(count):
            example = source[i]
            maps = predictor(example["image"]).label_map, example["label_map"]
            predicted, truth = (jnp.asarray(x, jnp.int32) for x in maps)
            selected = jnp.ones(truth.shape, bool)  # is not looked at
            counts = MeanIoU.from_maps(
                predicted, truth, selected, functions.model.num_classes
            )
            total = total.merge(counts)
        scores[name] = round(float(total.compute()["mIoU"]), 6)
    return scores | {"mean_iou_pictures": count}


class _Here:
    """The model itself, as a predictor takes it."""

    def __init__(self, description: dict, call: Call):
        self.description = description
        self._call = call

    def encode(self, inputs: dict) -> dict:
        return self._call("encode", inputs)

    def classify(self, inputs: dict) -> np.ndarray:
        return self._call("classify", inputs)["logits"]


def judge(parity: dict, output: str) -> None:
    """Ends an export whose files do not say what the model says.

    Raises:
      UserError: scores or logits differ by more than `LARGEST_DIFFERENCE`, or are not
        numbers.
    """
    scores = parity["largest_difference_of_scores"]
    logits = parity["largest_difference_of_logits"]
    # Not the other way round: what is not a number is not close.
    if scores <= LARGEST_DIFFERENCE and logits <= LARGEST_DIFFERENCE:
        return
    raise UserError(
        f"The exported model does not say what the model says: scores differ by up to "
        f"{scores:.1e} and logits by up to {logits:.1e}, more than "
        f"{LARGEST_DIFFERENCE:g}; the files are in {output}, but do not use them "
        f"before you know why (look at parity in export.json)."
    )


def line(parity: dict) -> str:
    """The same for people."""
    scores = ""
    if "mean_iou_here" in parity:
        scores = (
            f"; mIoU {parity['mean_iou_exported']:.4f} exported, "
            f"{parity['mean_iou_here']:.4f} here "
            f"({parity['mean_iou_pictures']} pictures)"
        )
    return (
        f"parity on {parity['pictures']}: scores differ by at most "
        f"{parity['largest_difference_of_scores']:.1e}, logits by "
        f"{parity['largest_difference_of_logits']:.1e}, "
        f"{parity['different_pixels']:,} of {parity['pixels']:,} pixels differ; "
        f"{parity['milliseconds_exported']:.0f} ms exported, "
        f"{parity['milliseconds_here']:.0f} ms here{scores}"
    )


def compare(functions: Functions, ours: Call, theirs: Call, images) -> dict:
    """Of one batch of pictures uint8 [B H W 3] that fill the whole size."""
    encoded = [
        call("encode", encode_inputs(functions, images)) for call in (ours, theirs)
    ]
    segmented = [
        call("segment", segment_inputs(functions, images)) for call in (ours, theirs)
    ]
    chosen = {name: segmented[0][name] for name in ("class_ids", "valid")}
    logits = [
        call("classify", own | chosen)["logits"]
        for call, own in zip((ours, theirs), encoded, strict=True)
    ]
    maps = [x["label_map"] for x in segmented]
    return {
        "scores": _difference(*(x["scores"] for x in encoded)),
        "logits": _difference(*logits),
        "pixels": maps[0].size,
        "different": int(np.sum(maps[0] != maps[1])),
    }


def encode_inputs(functions: Functions, images: np.ndarray) -> dict:
    inputs = {"image": images}
    if functions.sized:
        inputs["size"] = np.tile(np.int32([functions.size]), (len(images), 1))
    return inputs


def segment_inputs(functions: Functions, images: np.ndarray) -> dict:
    inputs = {"image": images}
    if functions.policy.name != "complete":
        inputs["k"] = np.array(functions.num_ranks, np.int32)
    return inputs


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.float64(a), np.float64(b)
    apart = np.zeros(a.shape)
    np.subtract(a, b, out=apart, where=a != b)  # the same infinity is no difference
    return float(np.max(np.abs(apart), initial=0.0))


def _largest(values) -> float:
    """Not a number where one is none, unlike ``max``."""
    return float(np.max(list(values)))


def seconds(call: Call, inputs: dict) -> float:
    """Milliseconds of the whole chain, the quickest of a few."""
    call("segment", inputs)
    taken = []
    for _ in range(NUM_TIMED):
        start = time.perf_counter()
        call("segment", inputs)
        taken.append(time.perf_counter() - start)
    return round(1000 * min(taken), 2)


def calls_of(functions: Functions) -> Call:
    jitted = {
        name: jax.jit(getattr(functions, name))
        for name in ("encode", "classify", "segment")
    }
    return lambda name, inputs: _call(jitted[name], name, inputs)


def open_artifacts(folder: pathlib.Path, kind: str, size=None) -> Call:
    """Of a folder, as somebody would open them who has no more than that; ``size``:
    of the pictures, where there are files for several.
    """
    if kind == "onnx":
        return Model(folder, description={}).run
    exported, ending = {}, f"_{size[0]}x{size[1]}" if size else ""

    def call(name: str, inputs: dict) -> Arrays:
        if name not in exported:
            data = bytearray((folder / f"{name}{ending}.stablehlo").read_bytes())
            exported[name] = jax.jit(export.deserialize(data).call)
        return _call(exported[name], name, inputs)

    return call


def _call(function: Callable, name: str, inputs: dict) -> dict[str, np.ndarray]:
    arrays = {key: jnp.asarray(x) for key, x in inputs.items()}
    if name == "classify":
        last = [arrays.pop(key) for key in ("class_ids", "valid")]
        arrays.pop("mask_logits", None)
        results = function(arrays, *last)
    else:
        results = function(*arrays.values())
    return {key: np.asarray(x) for key, x in results.items()}


def samples(
    config: ml_collections.ConfigDict, size: tuple[int, int]
) -> tuple[list[UInt8[np.ndarray, "H W 3"]], str]:
    """A few pictures of this size, and where they are from: of the data set's
    evaluation split where it is at hand, else made of noise.
    """
    try:
        source = open_dataset(config.data, train=False)
        count = min(NUM_PICTURES, len(source))
        images = [source[i]["image"] for i in range(count)]
        origin = f"pictures of {config.data.name}"
    except (UserError, DataError, OSError):
        rng = np.random.default_rng(0)
        images = [
            rng.integers(0, 256, (12, 12, 3), np.uint8) for _ in range(NUM_PICTURES)
        ]
        origin = "pictures of noise"
    resized = [cv2.resize(image, size[::-1]) for image in images]
    return resized, origin
