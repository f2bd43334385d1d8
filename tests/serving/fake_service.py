"""A server whose model is NumPy: a pixel's class is its nearest colour."""

import contextlib
import threading
import time

import numpy as np

from mlseg_jax.export.predictor import Predictor
from mlseg_jax.serving.limits import Limits
from mlseg_jax.serving.server import open_server
from mlseg_jax.serving.service import Service

NAMES = ("red", "green", "blue", "<img src=x onerror=alert(1)>", "a, b", "grey")
COLOURS = np.float32(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [128] * 3]
)
SIDE, K = 32, 4


def description():
    return {
        "model": {"name": "fake", "data": "none", "step": 1, "num_queries": 0},
        "input": {
            "size": [SIDE, SIDE],
            "grid": [SIDE, SIDE],
            "sized": True,
            "multiple": 1,
            "cells": [list(range(SIDE + 1))] * 2,
        },
        "selection": {
            "name": "top_k",
            "num_ranks": K,
            "minimum_score": 0.0,
            "cumulative": 1.0,
            "scope": "per_image",
        },
        "views": {
            "mode": "slide",
            "stride": [SIDE, SIDE],
            "scales": [1.0],
            "flip": False,
            "base_size": [0, 0],
            "max_pixels": 2**24,
            "exif": True,
        },
        "class_names": list(NAMES),
        "colours": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in COLOURS.astype(int)],
    }


class FakeModel:
    def __init__(self):
        self.description = description()
        self.batches, self.waiting = [], 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    @property
    def encodings(self):
        return len(self.batches)

    def encode(self, inputs):
        self.waiting += 1
        assert self.may_go_on.wait(30)
        self.batches.append(len(inputs["image"]))
        image = inputs["image"].astype(np.float32)
        distance = np.linalg.norm(image[..., None, :] - COLOURS, axis=-1) / 50
        share = (distance < 1).mean(axis=(1, 2))
        return {"scores": np.float32(6 * share - 2), "features": -distance}

    def classify(self, inputs):
        ids, valid = inputs["class_ids"], inputs["valid"]
        pairs = zip(inputs["features"], ids, strict=True)
        logits = np.stack([x[..., i] for x, i in pairs])
        return np.where(valid[:, None, None], logits, np.float32(-100))


@contextlib.contextmanager
def running(limits=None, public=None):
    """The service and the port of its server."""
    service = Service(Predictor(FakeModel()), 3, limits or Limits())
    server = open_server("127.0.0.1", 0, service, public)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield service, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def picture():
    """Red over green, with a blue square: uint8 [40 60 3]."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:24], image[24:] = COLOURS[0], COLOURS[1]
    image[5:15, 10:30] = COLOURS[2]
    return image


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
