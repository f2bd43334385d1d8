"""``export.json``: what a folder of artifacts holds, for programs and people."""

import importlib.metadata
import platform

import jax
import ml_collections

from input_pipeline.info import DatasetInfo
from mlseg_jax.export.functions import Functions
from mlseg_jax.prediction.visualise import class_colours

FORMAT = 1
"""Of ``export.json``; a reader takes no newer one."""

PACKAGES = ("mlseg-jax", "jax", "flax", "onnx", "onnxruntime")


def describe(
    config: ml_collections.ConfigDict,
    info: DatasetInfo,
    functions: Functions,
    *,
    kind: str,
    step: int,
    arguments: dict,
) -> dict:
    """All but the parity.

    Args:
      config, info: of the run.
      functions: what was exported.
      kind: stablehlo or onnx.
      step: of the weights.
      arguments: of each function, inputs and results by name: shapes and types.
    """
    policy, num_classes = functions.policy, functions.model.num_classes
    return {
        "format": FORMAT,
        "kind": kind,
        "versions": versions() | {"python": platform.python_version()},
        "model": {
            "name": config.name,
            "task": config.task,
            "data": info.name,
            "step": step,
            "num_classes": num_classes,
            "num_queries": functions.model.num_queries,
        },
        "input": _input(config, functions),
        "selection": {
            "name": policy.name,
            "num_ranks": functions.num_ranks,
            "minimum_score": policy.minimum_score,
            "cumulative": policy.cumulative,
            "scope": config.eval.selection_scope,
        },
        "views": _views(config, functions.size),
        "functions": arguments,
        "class_names": list(info.class_names),
        "colours": [
            f"#{r:02x}{g:02x}{b:02x}" for r, g, b in class_colours(info.class_names)
        ],
    }


def _input(config: ml_collections.ConfigDict, functions: Functions) -> dict:
    """What pictures are to the network."""
    length, cells = functions.model.grid_length, None
    if functions.sized:
        cells = [[length(n) for n in range(side + 1)] for side in functions.size]
    return {
        "size": list(functions.size),
        "grid": [length(side) for side in functions.size],
        "sized": functions.sized,
        "multiple": functions.model.multiple,
        # Of the grid, for so many pixels.
        "cells": cells,
        "values": "uint8 RGB; normalised inside",
        "mean": list(config.data.pixel_mean),
        "deviation": list(config.data.pixel_std),
    }


def _views(config: ml_collections.ConfigDict, size: tuple[int, int]) -> dict:
    """How pictures of any size are looked at, and which are read."""
    settings = config.eval
    # Windows of the exported size may be smaller than eval.window: without gaps.
    stride = [min(pair) for pair in zip(settings.stride, size, strict=True)]
    return {
        "mode": settings.mode,
        "stride": stride,
        "scales": list(settings.scales),
        "flip": settings.flip,
        "base_size": list(config.data.base_size),
        "max_pixels": config.data.max_pixels,
        "exif": config.data.exif,
        "white": config.data.white_value,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def signature(arrays: dict[str, jax.ShapeDtypeStruct]) -> dict[str, str]:
    """Names to types and shapes, such as ``float32[B,40]``."""
    return {
        name: f"{x.dtype}[{','.join(map(str, x.shape))}]" for name, x in arrays.items()
    }
