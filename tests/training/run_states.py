"""What tests of whole runs read of them, and evaluations that take no time."""

import json

import jax
import numpy as np

from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.training import final_evaluation, loop
from mlseg_jax.training.state import abstract_state

CLASSES = 20


def read_state(config, workdir, which="latest"):
    checkpoints = Checkpoints(str(workdir))
    abstract = abstract_state(config, CLASSES, make_mesh(config))
    state = checkpoints.restore(checkpoints.find(which), abstract)
    checkpoints.close()
    return jax.device_get(state)


def assert_bitwise(one, other):
    flat, tree = jax.tree.flatten(one)
    flat_other, tree_other = jax.tree.flatten(other)
    assert tree == tree_other
    for x, y in zip(flat, flat_other, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def read_lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def train_steps(lines):
    return [line["step"] for line in lines if "loss/total" in line]


def fake_scores(monkeypatch, scores):
    """Evaluations that take no time and give these scores, one after the other."""
    scores = iter(scores)

    def evaluate(*_, **__):
        return {"mIoU": next(scores), "examples": 1}

    for module in (loop, final_evaluation):
        monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(final_evaluation, "write_evaluation", lambda *_: None)
