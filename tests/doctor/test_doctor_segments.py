"""What doctor and train say of segments: how many, too many, none, unclaimed things."""

import logging

import coco_fixtures as coco
import numpy as np
import pytest
from tiny import tiny_config

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.doctor.doctor import examine
from mlseg_jax.training.data_remarks import say_oddities

SIZE = (16, 20)
CATEGORIES = [
    {"id": 1, "name": "wall", "isthing": 0},
    {"id": 2, "name": "cup", "isthing": 1},
]


def configuration(root, kind, **more):
    return tiny_config(
        {
            "data.name": "coco_json",
            "data.path": str(root),
            "data.num_classes": 0,
            "data.train_examples": 0,
            "data.eval_examples": 0,
            "data.segments": kind,
            "data.max_segments": 3,
            "data.on_bad_example": "fail",
        }
        | more
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images with 0 to 4 cups on a wall."""
    root = tmp_path_factory.mktemp("cups")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, annotations = [], []
        for count in range(5):
            name = f"{split}{count}"
            picture = rng.integers(0, 256, (*SIZE, 3))
            coco.write_png(root / f"images/{split}/{name}.png", picture)
            images.append(
                {"id": count, "file_name": f"{name}.png", "height": 16, "width": 20}
            )
            boxes = [(1, (10, 0, 16, 20))]
            boxes += [(2, (2, 5 * i, 6, 5 * i + 3)) for i in range(count)]
            annotations += [
                {
                    "id": 100 * count + i,
                    "image_id": count,
                    "category_id": category,
                    "segmentation": coco.polygon(*box),
                }
                for i, (category, box) in enumerate(boxes)
            ]
        content = {"images": images, "annotations": annotations}
        path = root / f"annotations/instances_{split}.json"
        coco.write_json(path, content | {"categories": CATEGORIES})
    return root


def findings(report):
    return {f.kind: f for f in report.findings if f.message.startswith("train")}


def test_segments_of_a_data_set_are_counted(root):
    report = examine(configuration(root, "instances"))
    found = findings(report)
    assert found["many_segments"].places == ("train4",)
    assert "data.max_segments, 3 (at most 4)" in found["many_segments"].message
    assert found["no_segments"].places == ("train0",)
    assert not found["no_segments"].is_error and "unclaimed" not in found
    assert "2.0 segments an image on average, at most 4" in report.as_text()
    facts = report.as_json()["splits"][0]
    assert facts["mean_segments_per_image"] == 2
    assert facts["max_segments_per_image"] == 4
    panoptic = findings(examine(configuration(root, "panoptic")))
    assert panoptic["many_segments"].places == ("train3", "train4")
    assert "no_segments" not in panoptic
    without = examine(configuration(root, "none"))
    assert "segments an image" not in without.as_text()
    assert "max_segments_per_image" not in without.as_json()["splits"][0]
    assert not {"many_segments", "no_segments"} & findings(without).keys()


def test_train_says_it_in_a_line(root, caplog):
    config = configuration(root, "instances")
    with caplog.at_level(logging.WARNING):
        say_oddities(config, open_dataset(config.data, train=True))
    lines = [record.getMessage() for record in caplog.records]
    assert any("1 pictures have more segments than" in line for line in lines)


def test_files_without_annotations_have_nothing_to_find(root, tmp_path):
    for split in ("train", "val"):
        image = {"id": 1, "file_name": f"{split}.png", "height": 16, "width": 20}
        content = {"images": [image], "annotations": [], "categories": CATEGORIES}
        coco.write_json(tmp_path / f"annotations/instances_{split}.json", content)
        picture = np.random.default_rng(len(split)).integers(0, 256, (*SIZE, 3))
        coco.write_png(tmp_path / f"images/{split}/{split}.png", picture)
    found = findings(examine(configuration(tmp_path, "panoptic")))
    assert found["no_segments"].is_error and found["all_ignored"].is_error


def test_things_of_masks_have_no_instances(tmp_path):
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        picture, mask = rng.integers(0, 256, (*SIZE, 3)), np.zeros(SIZE)
        coco.write_png(tmp_path / f"images/{split}/{split}.png", picture)
        mask[:4] = 1
        coco.write_png(tmp_path / f"masks/{split}/{split}.png", mask)
    (tmp_path / "classes.txt").write_text("wall\ncup\n")
    (tmp_path / "things.txt").write_text("cup\n")
    more = {"data.name": "folder"}
    report = examine(configuration(tmp_path, "panoptic", **more))
    finding = findings(report)["no_instances"]
    assert finding.is_error
    assert "1 examples have no instances, which data.segments wants" in finding.message
    assert "no_instances" not in findings(
        examine(configuration(tmp_path, "classes", **more))
    )


def test_unclaimed_things_are_told(root):
    """A cup that is only in the background's class has no instance."""
    config = configuration(root, "panoptic")
    config.data.background = "cup 2"
    report = examine(config)
    assert "unclaimed" not in findings(report)
    reading = report.splits[0].good[0]
    assert reading.segments == (2, 0)


def test_areas_that_are_not_those_of_the_png(tmp_path):
    for split, area in (("train", 7), ("val", 240)):
        picture = np.random.default_rng(area).integers(0, 256, (*SIZE, 3))
        coco.write_png(tmp_path / f"images/{split}/{split}.png", picture)
        png = np.zeros((*SIZE, 3), np.uint8)
        png[4:, :, 0] = 3
        coco.write_png(tmp_path / f"panoptic_{split}/{split}.png", png)
        segment = {"id": 3, "category_id": 2, "area": area, "iscrowd": 0}
        row = {"image_id": 1, "file_name": f"{split}.png", "segments_info": [segment]}
        image = {"id": 1, "file_name": f"{split}.png", "height": 16, "width": 20}
        content = {"images": [image], "annotations": [row], "categories": CATEGORIES}
        coco.write_json(tmp_path / f"annotations/panoptic_{split}.json", content)
    more = {"data.name": "coco_panoptic_json"}
    report = examine(configuration(tmp_path, "panoptic", **more))
    (found,) = (f for f in report.findings if f.kind == "segment_area")
    assert not found.is_error and found.message.startswith("train: 1 panoptic")
    assert "Image 1 of" in found.places[0] and "(3: 7 for 240)" in found.places[0]
