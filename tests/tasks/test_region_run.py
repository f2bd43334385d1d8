"""Regions from files to files: train, evaluate, predict, report."""

import json
import shutil
import types

import coco_fixtures as coco
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_regions import CLASSES, SIDE, region_config

import mlseg_jax
from input_pipeline.datasets.coco_json import open_panoptic
from input_pipeline.datasets.open import open_dataset
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.preparation.prepare import prepare
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
OWN = {
    "data.train_examples": 0,
    "data.eval_examples": 0,
    "train.steps": 2,
    # Something is to be found, however little was learned.
    "eval.object_threshold": 0.0,
    "eval.overlap_threshold": 0.1,
}


def make_flags(workdir, **more):
    config = load_config(str(workdir))
    config.mesh.update(data=-1, fsdp=1)
    usual = dict(checkpoint="latest", output="", scores="", raw_values=False)
    return types.SimpleNamespace(
        workdir=str(workdir), config=config, **(usual | {"video": None} | more)
    )


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
        overrides=OWN | {"data.name": "coco_panoptic_json", "data.path": str(data)}
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
    evaluate.run(make_flags(workdir))
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
    images = [str(data / "images" / "val")]
    flags = make_flags(workdir, output=str(tmp_path), images=images)
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


def test_the_same_weights_find_label_maps(run, tmp_path):
    """A task is what is made of the regions; this needs no training of its own."""
    config = region_config(task="semantic")
    trained = load_config(str(run[0]))
    trained.mesh.update(data=-1, fsdp=1)
    _, parameters, step = load_parameters(str(run[0]), trained, "latest")
    model = FunctionalModel.build(config, CLASSES)
    source = open_dataset(config.data, train=False)
    metrics, scores = evaluate_and_write(
        config, str(tmp_path), model, {"latest": parameters}, step, source
    )
    assert 0 <= metrics["mIoU"] <= 1 and scores == {"latest": metrics["mIoU"]}
    assert 0 <= metrics["oracle_mIoU"] <= 1
    assert write_report(tmp_path).exists()


def write_ade20k(root):
    """Scenes as ADE20K's panoptic files; pictures are called ADE_SPLIT_*."""
    info = SignScenes(num_classes=CLASSES, image_size=SIDE, split="train").info
    categories = [
        {"id": i, "name": name, "isthing": int(thing)}
        for i, (name, thing) in enumerate(
            zip(info.class_names, info.is_thing, strict=True)
        )
    ]
    for split, folder in (("train", "training"), ("val", "validation")):
        count = COUNTS[split]
        source = SignScenes(
            num_classes=CLASSES, image_size=SIDE, split=split, num_examples=count
        )
        images, annotations, name = [], [], f"ade20k_panoptic_{split}"
        (root / f"images/{folder}").mkdir(parents=True)
        for i in range(count):
            example, stem = source[i], f"ADE_{split}_{i:08}"
            picture = Image.fromarray(example["image"])
            picture.save(root / f"images/{folder}/{stem}.jpg", quality=95)
            segment_map, table = segment_table(parts_of("panoptic", example, info))
            ids = segment_map * 300  # more than one byte
            png = np.stack([ids % 256, ids // 256, ids * 0], axis=-1)
            coco.write_png(root / name / f"{stem}.png", png)
            rows = [
                {"id": 300 * i, "category_id": c, "iscrowd": 0, "area": area}
                for i, c, _, area in table
            ]
            images.append({"id": stem, "file_name": f"{stem}.jpg"})
            annotation = {"image_id": stem, "file_name": f"{stem}.png"}
            annotations.append(annotation | {"segments_info": rows})
        content = {"images": images, "annotations": annotations}
        coco.write_json(root / f"{name}.json", content | {"categories": categories})


def test_ade20k_panoptic_on_disk(tmp_path):
    """Prepared, trained on; what is predicted is read with Pillow alone."""
    write_ade20k(tmp_path / "raw")
    how = dict(num_workers=0, allow_incomplete=True, progress=lambda *_: None)
    prepare("ade20k_panoptic", tmp_path / "raw", tmp_path / "data", **how)
    place = {"data.name": "ade20k_panoptic", "data.path": str(tmp_path / "data")}
    workdir, made = tmp_path / "run", tmp_path / "out"
    metrics = train(region_config(overrides=OWN | place), str(workdir))
    assert metrics["examples"] == COUNTS["val"] and 0 <= metrics["PQ"] <= 1
    evaluate.run(make_flags(workdir))
    again = json.loads((workdir / "metrics.json").read_text())
    assert again["PQ"] == metrics["PQ"]
    pictures = [str(tmp_path / "raw/images/validation")]
    predict.run(make_flags(workdir, output=str(made), images=pictures))
    contents = [
        json.loads((folder / "panoptic.json").read_text())
        for folder in (workdir / "predictions", made)
    ]
    raw = json.loads((tmp_path / "raw/ade20k_panoptic_val.json").read_text())
    for content in contents:
        colours = [category.pop("color") for category in content["categories"]]
        assert len(set(map(tuple, colours))) == len(colours)
        assert content["categories"] == raw["categories"]
        found = {entry["image_id"]: entry for entry in content["annotations"]}
        assert found.keys() == {entry["id"] for entry in raw["images"]}
    assert any(entry["segments_info"] for entry in contents[1]["annotations"])
    for entry in contents[1]["annotations"]:
        picture = Image.open(made / "panoptic" / entry["file_name"])
        assert picture.mode == "RGB" and picture.size == (SIDE, SIDE)
        red, green, blue = (np.asarray(x).astype(int) for x in picture.split())
        ids = red + 256 * green + 65536 * blue
        areas = {s["id"]: s["area"] for s in entry["segments_info"]}
        found = dict(zip(*np.unique(ids[ids > 0], return_counts=True), strict=True))
        assert found == areas


def write_instances(root):
    """A cat, a dog over it and a crowd of dogs on each picture, and sky as stuff."""
    categories = [
        {"id": i, "name": name, "isthing": int(name != "sky")}
        for i, name in ((3, "sky"), (5, "cat"), (9, "dog"))
    ]
    for split, count in COUNTS.items():
        images, annotations = [], []
        for i in range(count):
            picture = np.full((SIDE, SIDE, 3), 60)
            y, x = np.random.default_rng(i).integers(8, 12, 2).tolist()
            for category, (top, left, bottom, right), colour, crowd in (
                (3, (0, 0, 8, SIDE), (90, 160, 250), 0),
                (5, (y, x - 6, y + 18, x + 12), (250, 120, 0), 0),
                (9, (y + 8, x + 6, y + 18, x + 18), (40, 200, 40), 0),
                (9, (8, 0, 12, 3), (40, 200, 40), 1),
            ):
                place = top, left, bottom, right
                picture[top:bottom, left:right] = colour
                mask = coco.box(*place, (SIDE, SIDE))
                form = coco.rle(mask) if category == 9 else coco.polygon(*place)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 40 + i,
                        "category_id": category,
                        "segmentation": form,
                        "area": int(mask.sum()),
                        "iscrowd": crowd,
                    }
                )
            name = f"{40 + i:012}.png"
            coco.write_png(root / f"images/{split}/{name}", picture)
            size = {"height": SIDE, "width": SIDE}
            images.append({"id": 40 + i, "file_name": name} | size)
        content = {"images": images, "annotations": annotations}
        path = root / f"annotations/instances_{split}.json"
        coco.write_json(path, content | {"categories": categories})
    return path


def test_instances_of_coco_files(tmp_path):
    """Trained on; pycocotools reads what is predicted, and scores it as `train` did."""
    json_path = write_instances(tmp_path / "data")
    place = {"data.name": "coco_json", "data.path": str(tmp_path / "data")}
    own = {key: value for key, value in OWN.items() if "threshold" not in key}
    own |= {"data.num_classes": 0, "selection.k": 2, "train.steps": 3}
    # Two stages compile in three quarters of the time of three.
    own |= {"model.backbone.depths": (2, 2), "model.backbone.num_heads": (1, 1)}
    workdir, made = tmp_path / "run", tmp_path / "out"
    config = region_config(task="instance", overrides=own | place)
    metrics = train(config, str(workdir))
    evaluate.run(make_flags(workdir))
    again = json.loads((workdir / "metrics.json").read_text())
    assert again["AP"] == metrics["AP"] > 0 and 0 <= metrics["oracle_AP"] <= 1
    assert write_report(workdir).exists()
    pictures = [str(tmp_path / "data/images/val")]
    predict.run(make_flags(workdir, output=str(made), images=pictures))
    truth = COCO(str(json_path))
    for folder in (workdir / "predictions", made):
        found = truth.loadRes(str(folder / "instances_results.json"))
        judge = COCOeval(truth, found, "segm")
        judge.params.catIds = [5, 9]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert judge.stats[0] == pytest.approx(metrics["AP"], abs=1e-6)
        made_alone = COCO(str(folder / "instances.json"))
        for number, image in made_alone.imgs.items():
            assert image["file_name"] == truth.imgs[number]["file_name"]
        assert sorted(made_alone.getImgIds()) == [40, 41, 42]
        for annotation in made_alone.anns.values():
            area = coco_mask.area(made_alone.annToRLE(annotation))
            assert area == annotation["area"] > 0
    scores = sorted(a["score"] for a in made_alone.anns.values())
    flags = make_flags(workdir, output=str(tmp_path / "sure"), images=pictures)
    flags.config.eval.object_threshold = least = scores[len(scores) // 2]
    predict.run(flags)
    results = json.loads((tmp_path / "sure/instances_results.json").read_text())
    kept = [score for score in scores if score >= least]
    assert sorted(r["score"] for r in results) == kept and len(kept) < len(scores)
