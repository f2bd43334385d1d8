"""Panoptic segmentation from files to files: train, evaluate, predict, report."""

import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image
from tiny_regions import CLASSES, SIDE, region_config

import mlseg_jax
from input_pipeline.datasets.coco_json import open_panoptic
from input_pipeline.datasets.open import open_dataset
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.segments import parts_of, segment_table
from mlseg_jax.cli.commands import evaluate, predict
from mlseg_jax.errors import UserError
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.metrics.panoptic_quality import PanopticQuality
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.prediction.coco_files import PanopticWriter
from mlseg_jax.reporting.report import write_report
from mlseg_jax.runs.workdir import load_config, load_parameters
from mlseg_jax.tasks.panoptic import _truth
from mlseg_jax.training.final_evaluation import evaluate_and_write
from mlseg_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_compiles")
COUNTS = {"train": 8, "val": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes as a data set in COCO's panoptic format; names are numbers."""
    root = tmp_path_factory.mktemp("data")
    for split, count in COUNTS.items():
        source = SignScenes(
            num_classes=CLASSES, image_size=SIDE, split=split, num_examples=count
        )
        categories = range(7, 7 + 2 * CLASSES, 2)
        writer = PanopticWriter(root / "made" / split, source.info, categories)
        images = root / "images" / split
        images.mkdir(parents=True)
        for i in range(count):
            example = source[i]
            parts = parts_of("panoptic", example, source.info)
            segment_map, table = segment_table(parts)
            segments = tuple(
                Segment(i, class_id, "", 1.0, area, (0, 0, 1, 1), 0, segment_map)
                for i, class_id, _, area in table
            )
            Image.fromarray(example["image"]).save(images / f"{i:04}.png")
            panoptic = Panoptic(segment_map, segments)
            writer.add(100 + i, f"{i:04}.png", f"{i:04}", panoptic)
        writer.close()
        made, annotations = root / "made" / split, root / "annotations"
        annotations.mkdir(exist_ok=True)
        shutil.move(made / "panoptic.json", annotations / f"panoptic_{split}.json")
        shutil.move(made / "panoptic", annotations / f"panoptic_{split}")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = region_config(
        overrides={
            "data.name": "coco_panoptic_json",
            "data.path": str(data),
            "data.train_examples": 0,
            "data.eval_examples": 0,
            "train.steps": 2,
            # Something is to be found, however little was learned.
            "eval.object_threshold": 0.0,
            "eval.overlap_threshold": 0.1,
        }
    )
    return workdir, train(config, str(workdir))


def test_training_evaluates(run):
    workdir, metrics = run
    for key in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "mAP", "image_recall_at_k"):
        assert 0 <= metrics[key] <= 1
    assert 0 <= metrics["oracle_PQ"] <= 1
    assert metrics["examples"] == COUNTS["val"] and metrics["k"] == 6
    reasons = ("missed_not_selected", "missed_confused", "missed_not_found")
    assert sum(metrics[key] for key in reasons) == pytest.approx(1.0)
    classes = json.loads((workdir / "evaluation.json").read_text())["classes"]
    assert {"PQ", "SQ", "RQ", "true_positives", "false_negatives"} <= classes[0].keys()
    found = sum(c["true_positives"] + c["false_negatives"] for c in classes)
    assert found > 0


def test_evaluate_writes_what_other_tools_read(run, data):
    workdir, metrics = run
    config = load_config(str(workdir))
    config.mesh.update(data=-1, fsdp=1)
    flags = types.SimpleNamespace(
        workdir=str(workdir), config=config, checkpoint="latest", output=""
    )
    evaluate.run(flags)
    again = json.loads((workdir / "metrics.json").read_text())
    assert again["PQ"] == metrics["PQ"]
    # Read back: the files alone give the same quality.
    made = workdir / "predictions" / "panoptic.json"
    content = json.loads(made.read_text())
    assert sorted(image["id"] for image in content["images"]) == [100, 101, 102]
    assert [c["id"] for c in content["categories"][:3]] == [7, 9, 11]
    truth = open_panoptic(data, "val")
    quality = PanopticQuality.empty(np.asarray(truth.info.is_thing))
    category = {c["id"]: i for i, c in enumerate(content["categories"])}
    for i in range(len(truth)):
        (entry,) = (x for x in content["annotations"] if x["image_id"] == 100 + i)
        png = np.asarray(
            Image.open(workdir / "predictions" / "panoptic" / entry["file_name"])
        ).astype(np.int64)
        ids = png @ np.asarray([1, 256, 65536])
        classes = {s["id"]: category[s["category_id"]] for s in entry["segments_info"]}
        for segment in entry["segments_info"]:
            assert segment["area"] == (ids == segment["id"]).sum()
        quality, _ = quality.update(_truth(truth[i]), ids, classes)
    assert quality.compute()["PQ"] == pytest.approx(metrics["PQ"], abs=1e-12)


def test_predict_writes_panoptic_files(run, data, tmp_path):
    workdir, _ = run
    config = load_config(str(workdir))
    config.mesh.update(data=-1, fsdp=1)
    images = data / "images" / "val"
    flags = types.SimpleNamespace(
        workdir=str(workdir), config=config, checkpoint="latest", output=str(tmp_path),
        images=[str(images)], scores="", raw_values=False, video=None,
    )  # fmt: skip
    for _ in range(2):  # the second time over the first
        predict.run(flags)
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 3
    assert {p.name for p in (tmp_path / "panoptic").iterdir()} == {
        f"{i:04}.png" for i in range(3)
    }
    lines = (tmp_path / "labels.jsonl").read_text().splitlines()
    segments = json.loads(lines[0])["segments"]
    assert segments and {"name", "score", "rank", "area", "box"} <= segments[0].keys()
    assert (tmp_path / "0000_overlay.png").exists()


def test_segments_of_a_picture(run):
    segmenter = mlseg_jax.load(run[0])
    image = np.random.default_rng(0).integers(0, 256, (41, 27, 3), np.uint8)
    prediction = segmenter(image)
    assert prediction.segment_map.shape == (41, 27)
    assert prediction.label_map.shape == (41, 27)
    for segment in prediction.segments:
        assert segment.mask.sum() == segment.area > 0
        assert segment.label == segmenter.info.class_names[segment.class_id]
        assert 0 < segment.score <= 1 and 0 <= segment.rank < 6
    covered = sum(segment.area for segment in prediction.segments)
    assert covered == (prediction.segment_map > 0).sum()
    assert prediction.overlay().shape[2] == 3
    only = segmenter(image, allowed=segmenter.info.class_names[:2])
    assert {segment.class_id for segment in only.segments} <= {0, 1}
    with pytest.raises(UserError, match="no probabilities of"):
        segmenter.write_probabilities(image, "probabilities")


def test_the_report_shows_segments(run):
    page = write_report(run[0]).read_text()
    assert "Where the missed segments go" in page
    assert "segments found" in page and "worst classes" in page
    assert "PQ of things" in page and "PQ to gain" in page


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_the_same_weights_serve_other_tasks(run, task, tmp_path):
    """A task is what is made of the regions; these need no training of their own."""
    config = region_config(task=task)
    trained = load_config(str(run[0]))
    trained.mesh.update(data=-1, fsdp=1)
    _, parameters, step = load_parameters(str(run[0]), trained, "latest")
    model = FunctionalModel.build(config, CLASSES)
    source = open_dataset(config.data, train=False)
    metrics, scores = evaluate_and_write(
        config, str(tmp_path), model, {"latest": parameters}, step, source
    )
    best = {"instance": "AP", "semantic": "mIoU"}[task]
    assert 0 <= metrics[best] <= 1 and scores == {"latest": metrics[best]}
    assert 0 <= metrics[f"oracle_{best}"] <= 1
    assert write_report(tmp_path).exists()
