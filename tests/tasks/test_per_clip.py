"""Evaluation of frames whose labels are selected per clip."""

import numpy as np
import pytest
from fake_model import C, FakeModel, K, fake_engine
from tiny import tiny_config
from tiny_videos import HEIGHT, WIDTH, frames

from input_pipeline.info import DatasetInfo
from input_pipeline.pipeline import evaluation_examples
from mlseg_jax.errors import UserError
from mlseg_jax.inference.clips import Clips
from mlseg_jax.tasks.engines import evaluation_settings
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation

INFO = DatasetInfo("fake", tuple(f"label {i}" for i in range(C)), (True,) * C)
SIDE = 48


def examples():
    """Two videos of five frames, whose truth is whatever."""
    truth = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 64 % C
    for video, negative in (("a", False), ("b", True)):
        for i, image in enumerate(frames(5, negative)):
            yield {"name": f"{video}/{i}", "image": image, "label_map": truth}


@pytest.fixture(scope="module")
def config():
    return tiny_config(
        {
            "eval.selection_scope": "per_clip",
            "eval.clip_length": 3,
            "eval.window": (SIDE, SIDE),
            "eval.stride": (SIDE, SIDE),
            "selection.k": K,
            "data.num_classes": C,
        }
    )


@pytest.fixture(scope="module")
def engine(config):
    return fake_engine(FakeModel(), evaluation_settings(config))


def test_frames_of_a_clip_share_their_labels(config, engine):
    evaluation = SemanticEvaluation(config, INFO)
    groups = list(evaluation.groups(engine, examples()))
    names = [[example["name"] for example in group] for group in groups]
    assert names == [["a/0", "a/1", "a/2"], ["a/3", "a/4"], ["b/0", "b/1", "b/2"],
                     ["b/3", "b/4"]]  # fmt: skip
    correct = np.zeros((C, C), np.int64)
    found = []
    for group in groups:
        evaluation.add(engine, group)
        images = [example["image"] for example in group]
        policies = [(evaluation.policy, None)]
        (results,) = engine.segment(images, policies, scope=Clips(K, config.eval))
        maps = np.concatenate([segmented.label_maps() for segmented in results])
        found += [set(x.tolist()) for r in results for x in r.selection.class_ids]
        for example, label_map in zip(group, maps, strict=True):
            np.add.at(correct, (example["label_map"], label_map), 1)
    assert [len(labels) for labels in found] == [K] * 10
    assert found[0] == found[1] == found[2] and found[5] == found[6] == found[7]
    metrics = evaluation.compute()
    # All classes are there, so that the recall is by those that the clip has.
    assert metrics["image_recall_at_k"] == pytest.approx(K / C)
    assert metrics["examples"] == 10
    assert metrics["pixel_accuracy"] == pytest.approx(np.trace(correct) / correct.sum())


def test_pictures_have_no_clip(config, engine):
    evaluation = SemanticEvaluation(config, INFO)
    alone = ({**example, "name": "picture"} for example in examples())
    with pytest.raises(UserError, match="no frame of a video"):
        list(evaluation.groups(engine, alone))


def test_processes_share_videos_and_not_frames():
    parts = [
        list(
            evaluation_examples(
                range(11), process_index=i, process_count=3, side_by_side=True
            )
        )
        for i in range(3)
    ]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
