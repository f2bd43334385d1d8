"""The independent scheme as its user runs it: a classifier, then a Segmenter."""

import json
import pathlib

import numpy as np
import pytest
from etils import epath
from tiny import OVERRIDES, tiny_config

import mlseg_jax
from configs import query2label, segmenter
from input_pipeline.datasets.given_labels import (
    LabelScoreFile,
    WithGivenLabels,
    write_scores,
)
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.planning.plan import plan
from mlseg_jax.prediction.labels import write_label_scores, write_labels
from mlseg_jax.pretrained.export import export_weights
from mlseg_jax.reporting.report import write_report
from mlseg_jax.runs.workdir import load_parameters
from mlseg_jax.settings.advice import is_advised
from mlseg_jax.tasks import given_selection
from mlseg_jax.tasks.given_selection import add_given_labels, load_classifier
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training.kept import open_validation
from mlseg_jax.training.loop import train

ARGUMENTS = "dataset=sign_scenes,backbone=vit_demo"


def shrink(config, **more):
    known = config.to_dict(preserve_field_references=False)

    def has(key, tree=None):
        part, _, rest = key.partition(".")
        tree = known if tree is None else tree
        return part in tree and (not rest or has(rest, tree[part]))

    values = {key: value for key, value in OVERRIDES.items() if has(key)}
    config.update_from_flattened_dict({**values, **more})
    return config


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    config = shrink(
        query2label.get_config(ARGUMENTS),
        **{"train.steps": 6, "train.eval_every": 2, "model.transformer.mlp_dim": 32},
    )
    workdir = str(tmp_path_factory.mktemp("labels"))
    return config, workdir, train(config, workdir)


@pytest.fixture(scope="module")
def independent(classifier, tmp_path_factory):
    config = shrink(
        segmenter.get_config(f"{ARGUMENTS},selection=given"),
        **{"selection.classifier": classifier[1], "train.steps": 2},
        **{"init": classifier[1], "init_part": "backbone/"},
    )
    workdir = str(tmp_path_factory.mktemp("independent"))
    return config, workdir, train(config, workdir)


def read_json(workdir, name):
    return json.loads((pathlib.Path(workdir) / name).read_text())


def test_the_classifier_is_evaluated_with_both_weights(classifier):
    _, workdir, metrics = classifier
    assert metrics["mAP"] == max(metrics["mAP_latest"], metrics["mAP_average"])
    scores = read_json(workdir, "checkpoints/scores.json")
    assert scores.keys() == {"2", "4", "6"}
    assert all(each.keys() == {"average", "latest"} for each in scores.values())
    details = read_json(workdir, "evaluation.json")
    assert len(details["classes"]) == 20 and details["classes"][0]["iou"] is None


def test_its_labels_are_selected_in_training_and_evaluation(classifier, independent):
    config, workdir, metrics = independent
    scorer = load_classifier(classifier[1])
    for is_train in (True, False):
        source = open_dataset(config.data, train=is_train)
        part = "train" if is_train else "eval"
        given = add_given_labels(config, workdir, source, part=part)
        for index in (0, 5):
            scores = scorer([source[index]["image"]])[0]
            np.testing.assert_allclose(given[index]["given"], scores, atol=1e-5)
    assert metrics["pixel_recall_at_k"] == pytest.approx(recall(source, given))


def test_it_starts_from_the_classifiers_backbone(classifier, independent):
    before, after = (
        load_parameters(run[1], run[0])[1] for run in (classifier, independent)
    )
    # A step of AdamW is at most about the learning rate; what is drawn differs by more.
    most = 2.1 * independent[0].optimizer.learning_rate
    kernel = "backbone/patch_projection/kernel"
    assert np.abs(before[kernel]).max() > 10 * most
    assert 0 < np.abs(before[kernel] - after[kernel]).max() < most


@pytest.mark.parametrize(
    "key, value",
    [
        *(("data.segments", "classes"), ("data.augmentation", "crop")),
        *(("loss.class_weighting", "sqrt"), ("loss.missed_weight", 1.0)),
        *(("selection.with_present", True), ("selection.name", "given")),
    ],
)
def test_a_classifier_refuses_what_it_would_ignore(key, value):
    config = query2label.get_config(ARGUMENTS)
    find_task(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"^{key}.*whole pictures"):
        find_task(config)


def test_a_classifier_is_no_segmenter(classifier, tmp_path):
    config, workdir, _ = classifier
    for to in ("mmseg", "hugging_face", "detectron2"):
        with pytest.raises(UserError, match="take --to=safetensors"):
            export_weights(workdir, str(tmp_path / "x.safetensors"), to, "best")
    with pytest.raises(UserError, match="of another model.*leave --config out"):
        load_parameters(workdir, segmenter.get_config(ARGUMENTS))
    selects = config.copy_and_resolve_references()
    selects.selection.name = "complete"
    with pytest.raises(UserError, match="set selection.eval_name"):
        load_parameters(workdir, selects)
    assert not is_advised(config)
    page = write_report(workdir).read_text()
    assert "segments none" in page and "have an average precision" in page
    assert "evaluation_examples.npz" not in page


def test_a_classifier_is_planned(classifier):
    found = plan(classifier[0], "cpu1", 2)
    assert found.predict.fits is not False and found.predict.memory.parameters > 0


def best(example):
    return np.argsort(-example["given"], kind="stable")[:4]


def recall(source, given):
    shares = []
    for index in range(len(source)):
        labels = source[index]["label_map"]
        labels = labels[labels >= 0]
        shares.append(np.isin(labels, best(given[index])).mean())
    return np.mean(shares)


def test_a_validation_part_has_scores_too(classifier, independent, tmp_path):
    config = independent[0].copy_and_resolve_references()
    config.data.validation_split = "train[20:]"
    for scores in ("", str(tmp_path / "scores")):
        config.selection.scores = scores
        if scores:
            written = classifier[0].copy_and_resolve_references()
            written.data.validation_split = "train[20:]"
            write_label_scores(written, classifier[1], "best", scores)
        found = open_validation(config, None, str(tmp_path))
        assert len(found) == 4 and found[0]["given"].shape == (20,)


def test_new_pictures_are_segmented_among_the_classifiers_labels(
    classifier, independent
):
    config, workdir, _ = independent
    image = open_dataset(config.data, train=False)[1]["image"]
    scores = load_classifier(classifier[1])([image])[0]
    model = mlseg_jax.load(workdir)
    found = model(image)
    order = np.argsort(-scores, kind="stable")
    assert [label.class_id for label in found.labels] == order[:4].tolist()
    best = 1 / (1 + np.exp(-scores[order[0]]))
    assert found.labels[0].score == pytest.approx(best, rel=1e-4)
    assert set(np.unique(found.label_map)) <= set(order[:4].tolist())
    assert len(model(image, k=2).labels) == 2
    names = [model.info.class_names[i] for i in (3, 7)]
    assert {label.name for label in model(image, allowed=names).labels} == set(names)


def test_scores_are_of_the_pictures_as_they_are_now(tmp_path, monkeypatch):
    picture, scored = tmp_path / "data" / "a.png", []

    class Source:
        info = DatasetInfo("one", ("a",), (False,))

        def __len__(self):
            return 1

        def __getitem__(self, _):
            return {"name": "a", "image": np.zeros((1, 1, 3), np.uint8)}

    class Scorer(LabelScorer):
        batch_size = 1

        def __init__(self):
            pass

        def __call__(self, images):
            scored.append(1)
            return np.zeros((1, 1), np.float32)

    monkeypatch.setattr(given_selection, "load_classifier", lambda *_: Scorer())
    picture.parent.mkdir()
    config = tiny_config({"selection.name": "given", "selection.classifier": "q2l"})
    config.data.path = str(picture.parent)
    for content, count in (("1", 1), ("1", 1), ("22", 2)):
        if not picture.exists() or picture.read_text() != content:
            picture.write_text(content)
        add_given_labels(config, str(tmp_path / "run"), Source(), part="eval")
        assert len(scored) == count
    # Of a host whose copy has other times of change.
    monkeypatch.setattr(given_selection.jax, "process_index", lambda: 1)
    picture.write_text("333")
    add_given_labels(config, str(tmp_path / "run"), Source(), part="eval")
    assert len(scored) == 2


def test_one_split_can_be_two_parts(classifier, independent, tmp_path):
    """Of which one has fewer examples: neither takes the other's scores away."""
    config = independent[0].copy_and_resolve_references()
    config.data.eval_split = "train"
    whole = open_dataset(config.data, train=True)
    config.data.eval_examples = 4
    few = open_dataset(config.data, train=False)
    folder = str(tmp_path)
    given = add_given_labels(config, folder, whole, part="train")
    assert len(add_given_labels(config, folder, few, part="eval")) == 4
    assert given[len(whole) - 1]["given"].shape == (20,)


def test_scores_in_a_folder_and_labels_of_pictures(classifier, tmp_path):
    config, workdir, _ = classifier
    write_label_scores(config, workdir, "best", str(tmp_path / "scores"))
    scores = np.load(tmp_path / "scores" / "val.npy")
    source = open_dataset(config.data, train=False)
    expected = load_classifier(workdir)([source[i]["image"] for i in range(6)])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    given = tiny_config({"selection.name": "given"})
    given.selection.scores = str(tmp_path / "scores")
    with_given = add_given_labels(given, "nowhere", source, part="eval")
    np.testing.assert_array_equal(with_given[2]["given"], scores[2])
    from PIL import Image

    picture = tmp_path / "a.png"
    Image.fromarray(source[2]["image"]).save(picture)
    # A file that is no picture does not end it.
    page, out, problems = tmp_path / "page.jpg", epath.Path(tmp_path / "out"), []
    page.write_text("<html>")
    paths = [epath.Path(page), epath.Path(picture)]
    assert write_labels(config, workdir, "best", paths, out, problems) == 1
    assert len(problems) == 1 and "page.jpg is damaged" in problems[0]
    with pytest.raises(UserError, match="out is as it was"):
        write_labels(config, workdir, "best", paths[:1], out, [])
    line = json.loads((tmp_path / "out" / "labels.jsonl").read_text())
    found = [label["class_id"] for label in line["labels"]]
    assert found == best(with_given[2]).tolist()
    sure = config.copy_and_resolve_references()
    sure.selection.minimum_score = 0.9999
    write_labels(sure, workdir, "best", paths[1:], epath.Path(tmp_path / "sure"), [])
    line = json.loads((tmp_path / "sure" / "labels.jsonl").read_text())
    assert [label["class_id"] for label in line["labels"]] == found[:1]


def test_what_can_be_wrong(classifier, independent, tmp_path):
    _, workdir, _ = classifier
    config = tiny_config({"selection.name": "given"})
    source = open_dataset(config.data, train=False)
    with pytest.raises(UserError, match="needs labels; set selection.classifier"):
        add_given_labels(config, str(tmp_path), source, part="eval")
    with pytest.raises(UserError, match="is no classifier of labels"):
        load_classifier(independent[1])
    with pytest.raises(UserError, match="holds a classifier, which segments nothing"):
        mlseg_jax.load(workdir)
    info = source.info
    with pytest.raises(DataError, match="no label scores of the split 'val'"):
        LabelScoreFile(str(tmp_path), "val", info)
    rows = [(["a", "b"], np.zeros((2, 20), np.float32))]
    write_scores(str(tmp_path), "val", info, 6, rows)
    file = LabelScoreFile(str(tmp_path), "val", info)
    np.testing.assert_array_equal(file.of("b"), np.zeros(20))
    with pytest.raises(DataError, match="no scores of the example 'c'"):
        file.of("c")
    config.selection.scores = str(tmp_path)
    with pytest.raises(UserError, match="no label scores of 4 of the 6 examples"):
        add_given_labels(config, str(tmp_path), source, part="eval")
    other = open_dataset(tiny_config({"data.num_classes": 21}).data, train=False)
    with pytest.raises(DataError, match="are of other classes"):
        WithGivenLabels(other, str(tmp_path), "val")
    with pytest.raises(UserError, match="was trained on other classes"):
        load_classifier(workdir, other.info)
