"""The frame of evaluations, with one that only counts."""

import json

import numpy as np
import pytest
from etils import epath
from flax import nnx
from tiny import tiny_config

from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.tasks import evaluation as frame

INFO = DatasetInfo("made up", ("a", "b"), (False, False))


class Source:
    """Pictures of two sizes; those named in ``bad`` cannot be read."""

    info = INFO

    def __init__(self, count, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"Example {index} is bad.", kind="unreadable")
        shape = (4 + index // 3, 5, 3)
        return {"name": str(index), "image": np.zeros(shape, np.uint8)}


class Counting(frame.AbstractEvaluation):
    states = ("recall",)
    counts = ("num_examples",)

    def __init__(self):
        self.info, self.num_examples = INFO, 0
        self.recall = LabelRecall.empty(1)
        self.seen = []

    def groups(self, engine, examples):
        return frame.groups_by_shape(examples, engine)

    def add(self, engine, examples):
        self.seen.append([int(example["name"]) for example in examples])
        self.num_examples += len(examples)

    def compute(self):
        return {"examples": self.num_examples}

    def details(self, model):
        return {"model": type(model).__name__}

    def save_pictures(self, path):
        path.write_text("pictures")


def run(source, overrides=None):
    evaluation, heard = Counting(), []
    metrics = frame.evaluate(
        evaluation,
        2,
        source,
        tiny_config(overrides),
        on_progress=lambda *counts: heard.append(counts),
    )
    return evaluation, metrics, heard


def test_every_example_once_in_groups_of_one_size():
    evaluation, metrics, heard = run(Source(7))
    assert evaluation.seen == [[0, 1], [2], [3, 4], [5], [6]]
    assert heard == [(2, 7), (3, 7), (5, 7), (6, 7), (7, 7), (7, 7)]
    assert metrics["examples"] == 7
    assert metrics["images_per_second"] == pytest.approx(7 / metrics["seconds"])


def test_bad_examples_stop_it_or_are_skipped():
    skip = {"data.on_bad_example": "skip"}
    assert run(Source(5, bad=(1, 4)), skip)[0].seen == [[0, 2], [3]]
    with pytest.raises(DataError, match="Example 1 is bad"):
        run(Source(5, bad=(1,)))
    with pytest.raises(UserError, match="No example of the evaluation split"):
        run(Source(2, bad=(0, 1)), skip)


def test_what_is_written(tmp_path):
    frame.write_evaluation(str(tmp_path), Counting(), {"x": 1.0}, nnx.Module())
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"x": 1.0}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"model": "Module"}
    assert (epath.Path(tmp_path) / "evaluation_examples.npz").read_text() == "pictures"


def test_groups():
    assert list(frame.groups_of(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(frame.groups_of(iter(()), 2)) == []


def test_details_have_a_row_a_class():
    details = frame.label_details(
        INFO,
        1,
        LabelRecall.empty(1),
        iou=[None, None],
        examples=np.asarray([3, 4]),
        pixel_share=np.asarray([0.5, np.nan]),
    )
    assert details["classes"][0] == {
        "name": "a",
        "iou": None,
        "examples": 3,
        "pixel_share": 0.5,
    }
    assert details["inverse_temperature"] is None
