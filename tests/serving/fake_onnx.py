"""The fake service's model as ONNX files, and one with regions: nothing is trained."""

import contextlib
import json

import jax
import jax.numpy as jnp
from fake_service import COLOURS, NAMES, SIDE, K, description

from mlseg_jax.export import artifacts
from mlseg_jax.export.onnx_files import write_onnx
from mlseg_jax.export.onnx_weights import Weights

CELL = 4
"""Pixels of a region's cell."""


def _distance(image):
    apart = image.astype(jnp.float32)[..., None, :] - COLOURS[None, None, None]
    return jnp.sqrt(jnp.sum(apart**2, axis=-1)) / 50


def _scores(distance):
    share = jnp.mean((distance < 1).astype(jnp.float32), axis=(1, 2))
    # No two labels have the same score.
    return 6 * share - 2 - jnp.arange(len(NAMES))[None] / 50


def encode(image, size):
    distance = _distance(image)
    return {"scores": _scores(distance), "features": -distance}


def classify(features, class_ids, valid):
    logits = jnp.take_along_axis(features, class_ids[:, None, None], axis=-1)
    return {"logits": jnp.where(valid[:, None, None], logits, -100.0)}


def encode_regions(image, size):
    distance = _distance(image)
    masks = 4 - 5 * jnp.moveaxis(distance[:, ::CELL, ::CELL], -1, 1)
    queries = 6 * jnp.eye(len(NAMES))[None] + 0 * _scores(distance)[..., None]
    return {"scores": _scores(distance), "queries": queries, "mask_logits": masks}


def classify_regions(queries, class_ids, valid):
    logits = jnp.take_along_axis(queries, class_ids[:, None], axis=-1)
    logits = jnp.where(valid[:, None], logits, -100.0)
    return {"logits": jnp.pad(logits, ((0, 0), (0, 0), (0, 1)))}


def write(folder, regions=False):
    """As ``export --to=onnx`` would: windows of 32 x 32 at two scales and mirrored."""
    symbol, count = artifacts.any_batch(), len(NAMES)
    shape = lambda kind, *rest: jax.ShapeDtypeStruct((symbol, *rest), kind)  # noqa: E731
    kept = {"features": shape(jnp.float32, SIDE, SIDE, count)}
    if regions:
        kept = {"queries": shape(jnp.float32, count, count)}
    functions = {
        "encode": (
            encode_regions if regions else encode,
            {"image": shape(jnp.uint8, SIDE, SIDE, 3), "size": shape(jnp.int32, 2)},
        ),
        "classify": (
            classify_regions if regions else classify,
            kept | {"class_ids": shape(jnp.int32, K), "valid": shape(bool, K)},
        ),
    }
    folder.mkdir()
    with contextlib.closing(Weights(folder, None)) as weights:
        for name, (function, inputs) in functions.items():
            path = folder / f"{name}.onnx"
            write_onnx(path, function, inputs, weights, opset=17, batch=symbol)
    about = description() | {"format": 1, "kind": "onnx"}
    about["views"] |= {"scales": [0.7, 1.5], "flip": True, "stride": [SIDE - 8] * 2}
    about["selection"]["scope"] = "per_window"
    if regions:
        about["model"]["num_queries"] = count
        cells = [-(-n // CELL) for n in range(SIDE + 1)]
        about["input"] |= {"grid": [cells[-1]] * 2, "cells": [cells] * 2}
        about["input"]["multiple"] = CELL
    (folder / "export.json").write_text(json.dumps(about))
