"""What the report marks as selected: the labels that pixels were told apart among."""

import functools

import numpy as np
import pytest
from etils import epath
from fake_model import C, FakeModel, K, fake_engine, make_image, make_settings
from tiny import tiny_config

from input_pipeline.info import DatasetInfo
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation

INFO = DatasetInfo("fake", tuple(f"label {i}" for i in range(C)), (True,) * C)
IMAGE = make_image(30, 40)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def engine_for(mode):
    return fake_engine(FakeModel(), make_settings(mode=mode))


def evaluate(tmp_path, overrides, given=None, mode="whole"):
    config = tiny_config(
        {
            "data.num_classes": C,
            "selection.k": K,
            **overrides,
        }
    )
    truth = np.where(np.arange(40) < 10, 2, 7) + np.zeros((30, 1), int)
    example = {"image": IMAGE, "label_map": truth.astype(np.int32)}
    if given is not None:
        example["given"] = given
    evaluation = SemanticEvaluation(config, INFO)
    evaluation.add(engine_for(mode), [example])
    evaluation.save_pictures(epath.Path(tmp_path / "examples.npz"))
    with np.load(tmp_path / "examples.npz") as arrays:
        kept = {name: arrays[f"{name}_0"] for name in (
            "label_ids", "label_scores", "label_selected", "prediction")}  # fmt: skip
    assert np.all(np.diff(kept["label_scores"]) <= 0)
    assert len(kept["label_ids"]) >= 2 * K
    selected = kept["label_ids"][kept["label_selected"]].tolist()
    # Every label of a pixel was selected.
    assert set(np.unique(kept["prediction"])) <= set(selected)
    return kept, selected, evaluation.label_metrics()["labels_selected"]


def test_of_every_window(tmp_path):
    kept, selected, count = evaluate(tmp_path, {}, mode="slide")
    assert count == K < len(selected)
    assert len(np.unique(kept["prediction"])) > K


def test_as_many_as_are_likely(tmp_path):
    _, selected, count = evaluate(tmp_path, {"selection.minimum_score": 0.9})
    assert len(selected) == count < K


def test_the_true_ones(tmp_path):
    _, selected, count = evaluate(tmp_path, {"selection.eval_name": "oracle"})
    assert set(selected) == {2, 7} and count == 2


def test_given_ones_however_unlikely(tmp_path):
    options = {"selection.eval_name": "given", "selection.eval_k": 2}
    options["selection.scores"] = "somewhere"
    order = np.argsort(-FakeModel().encode(IMAGE[None]).scores[0])
    given = order[[2 * K, 2 * K + 1]]
    scores = np.full(C, -3.0, np.float32)
    scores[given] = (2.0, 1.0)
    kept, selected, _ = evaluate(tmp_path, options, scores)
    assert selected == given.tolist()
    assert kept["label_ids"].tolist() == order[: 2 * K + 2].tolist()
    # As many as they say are likely, as in a prediction.
    options["selection.minimum_score"] = 0.8
    _, selected, count = evaluate(tmp_path, options, scores)
    assert selected == given[:1].tolist() and count == 1
