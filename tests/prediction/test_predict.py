"""The public way to use a trained model."""

import dataclasses
import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from PIL import Image
from tiny import tiny_config

import mlseg_jax
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference import bands
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.tasks.engines import evaluation_policy
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation
from mlseg_jax.training.state import initialise

CLASSES = 20
K = 4


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model with random weights: what it says does not matter here."""
    path = tmp_path_factory.mktemp("run")
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, str(path), info)
    checkpoints = Checkpoints(str(path))
    checkpoints.save(0, initialise(config, CLASSES, make_mesh(config)))
    checkpoints.wait()
    checkpoints.close()
    return path


@pytest.fixture(scope="module")
def segmenter(workdir):
    return mlseg_jax.load(workdir)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(prediction, image, k=K):
    assert prediction.label_map.shape == image.shape[:2]
    assert prediction.label_map.dtype == np.uint8
    np.testing.assert_array_equal(prediction.image, image)
    labels = prediction.labels
    assert len(labels) >= 1
    assert [label.rank for label in labels] == list(range(len(labels)))
    scores = [label.score for label in labels]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert len({label.class_id for label in labels}) == len(labels)
    # Every pixel has one of the selected labels.
    assert set(np.unique(prediction.label_map)) <= {x.class_id for x in labels}
    assert sum(label.share for label in labels) == pytest.approx(1.0)
    for label in labels:
        assert label.name == prediction.class_names[label.class_id]
        share = np.mean(prediction.label_map == label.class_id)
        assert label.share == pytest.approx(share)


def test_one_window(segmenter):
    image = picture(32, 32)
    prediction = segmenter(image)
    check(prediction, image)
    assert len(prediction.labels) == K
    overlay = prediction.overlay()
    assert overlay.dtype == np.uint8 and overlay.shape[2] == 3
    assert overlay.shape[0] >= 32 and overlay.shape[1] >= 32


def test_grey_is_repeated(segmenter):
    grey = picture(32, 32)[:, :, 0]
    check(segmenter(grey), np.repeat(grey[:, :, None], 3, axis=2))


def test_a_path_and_an_array_are_the_same(segmenter, tmp_path):
    image = picture(32, 32, 1)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    from_array = segmenter(image)
    for given in (path, str(path)):
        prediction = segmenter(given)
        np.testing.assert_array_equal(prediction.label_map, from_array.label_map)


def test_a_list_of_different_sizes_is_each_alone(segmenter):
    images = [picture(32, 32, 0), picture(32, 32, 1), picture(21, 40, 2), picture(2, 2)]
    together = segmenter(images)
    assert isinstance(together, list) and len(together) == 4
    for image, prediction in zip(images, together, strict=True):
        check(prediction, image)
        alone = segmenter(image)
        np.testing.assert_array_equal(alone.label_map, prediction.label_map)
        assert [x.class_id for x in alone.labels] == [
            x.class_id for x in prediction.labels
        ]
    assert segmenter([]) == []


def test_one_picture_in_many_forms(segmenter):
    image = picture(32, 32)
    expected = segmenter(image).label_map
    _, data = cv2.imencode(".png", image[:, :, ::-1])
    alpha = np.full((32, 32, 1), 9, np.uint8)
    for given in (
        Image.fromarray(image),
        data.tobytes(),
        jnp.asarray(image),
        np.concatenate([image, alpha], axis=2),
    ):
        np.testing.assert_array_equal(segmenter(given).label_map, expected)
        (prediction,) = segmenter([given])
        np.testing.assert_array_equal(prediction.label_map, expected)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"k": "5"}, "^k is '5'; give a whole number from 1"),
        ({"k": 2.5}, "^k is 2.5"),
        ({"k": True}, "^k is True"),
        ({"k": -1}, "^k is -1"),
        ({"k": [5]}, r"^k is \[5\]"),
        ({"top_labels": -1}, "^top_labels is -1; give a whole number from 0"),
        ({"top_labels": 1.0}, "^top_labels is 1.0"),
        ({"top_labels": "2"}, "^top_labels is '2'"),
        ({"top_labels": None}, "^top_labels is None"),
        ({"minimum_score": "high"}, "^minimum_score is 'high'"),
        ({"minimum_score": float("nan")}, "^minimum_score is nan"),
        ({"cumulative": -0.1}, "^cumulative is -0.1"),
        ({"cumulative": [0.5]}, "^cumulative is"),
        ({"allowed": 3}, "^allowed is 3; give a list of names"),
        ({"allowed": [3]}, "There is no class 3"),
        ({"allowed": [None]}, "There is no class None"),
        ({"allowed": ""}, "There is no class ''"),
        ({"allowed": [["sign A"]]}, "There is no class"),
    ],
)
def test_what_is_no_argument(segmenter, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        segmenter(picture(32, 32), **arguments)


def test_a_large_picture_goes_through_in_bands(segmenter, monkeypatch, tmp_path):
    wide = picture(70, 40)
    whole = segmenter(wide, top_labels=2)
    segmenter.write_probabilities(wide, tmp_path / "whole")
    monkeypatch.setattr(bands, "MAX_PIXELS", 100)
    monkeypatch.setattr(bands, "BAND_HEIGHT", 30)
    banded, small = segmenter([wide, picture(8, 8)], top_labels=2)
    check(banded, wide)
    check(small, picture(8, 8))
    np.testing.assert_array_equal(banded.label_map, whole.label_map)
    assert [x.class_id for x in banded.labels] == [x.class_id for x in whole.labels]
    np.testing.assert_array_equal(banded.top_class_ids, whole.top_class_ids)
    np.testing.assert_allclose(
        banded.top_probabilities, whole.top_probabilities, atol=2e-3
    )
    segmenter.write_probabilities(wide, tmp_path / "bands")
    written = []
    for name in ("whole", "bands"):
        kvstore = {"driver": "file", "path": str(tmp_path / name)}
        store = ts.open({"driver": "zarr", "kvstore": kvstore}).result()
        written.append(store.read().result())
    np.testing.assert_allclose(*written, atol=2e-3)
    (tmp_path / "file").touch()
    for path, sentence in {
        tmp_path / "bands": "something at .* already",
        tmp_path / "file": "Cannot write to .*File exists",
        tmp_path / "file" / "x": "Cannot write to .*Not a directory",
        "": "path is ''",
    }.items():
        with pytest.raises(UserError, match=sentence):
            segmenter.write_probabilities(wide, path)


def test_k(segmenter):
    image = picture(32, 32)
    for k in (1, 2, CLASSES):
        prediction = segmenter(image, k=k)
        check(prediction, image)
        assert len(prediction.labels) == k
    all_labels = segmenter(image, k=CLASSES + 30).labels
    assert len(all_labels) == CLASSES
    best = [label.class_id for label in all_labels[:K]]
    assert [label.class_id for label in segmenter(image).labels] == best
    for wrong in (0, 2.5, "5", True):
        with pytest.raises(UserError, match="^k is .*; give a whole number"):
            segmenter(image, k=wrong)
    with pytest.raises(UserError, match="^cumulative is 1.5; give a prob"):
        segmenter(image, cumulative=1.5)


def test_allowed(segmenter):
    image = picture(32, 32)
    names = segmenter.info.class_names
    allowed = [names[3], names[11]]
    prediction = segmenter(image, allowed=allowed)
    check(prediction, image)
    assert {label.name for label in prediction.labels} == set(allowed)
    # In windows and in one alike.
    wide = picture(32, 70)
    prediction = segmenter(wide, allowed=allowed)
    check(prediction, wide)
    assert {label.name for label in prediction.labels} <= set(allowed)
    # One name is a list of one, and any other collection will do.
    for one in (names[3], {names[3]}, (names[3],), iter([names[3]])):
        (label,) = segmenter(image, allowed=one).labels
        assert label.name == names[3]
    with pytest.raises(UserError, match="allowed classes is empty"):
        segmenter(image, allowed=[])


def test_minimum_score(segmenter):
    image = picture(32, 32)
    scores = [label.score for label in segmenter(image).labels]
    middle = (scores[1] + scores[2]) / 2
    prediction = segmenter(image, minimum_score=middle)
    check(prediction, image)
    assert len(prediction.labels) == 2
    # The best label always stays: every pixel must have one.
    assert len(segmenter(image, minimum_score=0.999999).labels) == 1
    assert len(segmenter(image, cumulative=0.0).labels) == 1
    few, all_labels = segmenter(image, cumulative=0.1), segmenter(image)
    assert 1 <= len(few.labels) <= len(all_labels.labels)
    with pytest.raises(UserError, match="minimum_score is 1.5"):
        segmenter(image, minimum_score=1.5)


def test_dynamic_k_of_a_configuration():
    """Evaluation selects, and counts as selected, what the probabilities allow."""
    config = tiny_config()
    config.selection.minimum_score = 0.5
    policy = evaluation_policy(config, CLASSES)
    assert policy.minimum_score == 0.5
    scores = np.full((2, CLASSES), -3.0, np.float32)
    scores[0, [4, 2, 7]] = 3.0, 2.0, 1.0
    info = DatasetInfo("made up", tuple(map(str, range(CLASSES))), (False,) * CLASSES)
    evaluation = SemanticEvaluation(config, info, with_oracle=False)
    histogram = np.zeros((2, CLASSES), np.int32)
    histogram[0, 4] = histogram[1, 5] = 10
    selection = policy.select()(jnp.asarray(scores))
    segmented = Segmented((4, 4), (), (), (), selection, scores, 2)
    evaluation.add_labels(segmented.scores, histogram, None)
    # The first picture's label is kept; of the second, only class 0 is.
    recall = evaluation.recall.compute()
    assert recall["pixel_recall_at_k"] == 0.5
    class_ids, valid = evaluation._ranked(segmented.scores)
    np.testing.assert_array_equal(np.sum(valid, axis=1), [3, 1])
    np.testing.assert_array_equal(class_ids[0][:3], [4, 2, 7])


def test_an_unknown_class_names_the_nearest(segmenter):
    name = segmenter.info.class_names[7]
    assert segmenter.class_id(name) == 7
    with pytest.raises(UserError, match="did you mean") as caught:
        segmenter(picture(32, 32), allowed=[name.replace("sign", "sigm")])
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "image, sentence",
    [
        (np.zeros((8, 8, 3), np.float32), r"uint8 array.*not float32 \[8, 8, 3\]"),
        (np.zeros((8, 8, 5), np.uint8), r"not uint8 \[8, 8, 5\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"not uint8 \[2, 8, 8, 3\]"),
        (np.zeros((1, 8, 3), np.uint8), "at least 2"),
        ("nowhere.jpg", "no file nowhere.jpg"),
    ],
)
def test_what_is_no_picture(segmenter, image, sentence):
    with pytest.raises((UserError, DataError), match=sentence):
        segmenter(image)


def test_what_is_no_work_directory(workdir, tmp_path):
    with pytest.raises(UserError, match="is not a work directory"):
        mlseg_jax.load(tmp_path)
    for step in ("7", 7):
        with pytest.raises(UserError, match="no checkpoint '7'"):
            mlseg_jax.load(workdir, step)
    for wrong in (None, "", 3, [str(workdir)]):
        with pytest.raises(UserError, match="give the directory of a run"):
            mlseg_jax.load(wrong)
    config = json.loads((workdir / "config.json").read_text())
    facts = json.loads((workdir / "dataset.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="no complete checkpoint; train first"):
        mlseg_jax.load(tmp_path)


def test_a_model_trained_on_other_devices_loads(workdir, tmp_path):
    import shutil

    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mesh"] = {"data": 3, "fsdp": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mlseg_jax.load(tmp_path)


def test_a_label_is_a_plain_record(segmenter):
    label = segmenter(picture(32, 32)).labels[0]
    assert set(dataclasses.asdict(label)) == {
        "name", "class_id", "score", "rank", "share"
    }  # fmt: skip
