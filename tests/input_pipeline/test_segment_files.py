"""From JSON, PNG and pictures on the disk to batches with segments, and to truth."""

import logging

import coco_fixtures as coco
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny import tiny_config

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.bad_examples import Skips
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.typing import IGNORE

SIZE = (24, 32)
CATEGORIES = [
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 9, "name": "dog", "isthing": 1},
]
SKY, CAT, DOG = range(3)
NUM_IMAGES = 3


def make_images(root):
    images = []
    for i in range(1, NUM_IMAGES + 1):
        coco.write_image(root / f"images/val/{i}.png", SIZE, value=40 * i)
        images.append({"id": i, "file_name": f"{i}.png", "height": 24, "width": 32})
    return images


BOXES = {  # (top, left, bottom, right) of the instances of each image
    "big cat": (4, 2, 20, 22),
    "cat on it": (8, 6, 12, 12),
    "dog": (10, 15, 22, 30),
    "crowd": (0, 24, 10, 32),
}


@pytest.fixture(scope="module")
def instance_root(tmp_path_factory):
    """Cats over each other and over a dog, a crowd, and stuff as an annotation."""
    root = tmp_path_factory.mktemp("instances")
    annotations = []

    def add(image, category, segmentation, **more):
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": segmentation,
                **more,
            }
        )

    images = make_images(root)
    for image in images[:2]:
        add(image["id"], 5, coco.polygon(*BOXES["big cat"]), area=321.5)
        add(image["id"], 5, coco.rle(coco.box(*BOXES["cat on it"], SIZE)))
        add(image["id"], 9, coco.rle(coco.box(*BOXES["dog"], SIZE), False))
        crowd = coco.rle(coco.box(*BOXES["crowd"], SIZE))
        add(image["id"], 9, crowd, iscrowd=1)
        add(image["id"], 3, coco.polygon(0, 0, 3, 32))
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    coco.write_json(root / "annotations/instances_val.json", content)
    return root


@pytest.fixture(scope="module")
def panoptic_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("panoptic")
    images, annotations = make_images(root), []
    for image in images:
        ids = np.zeros(SIZE, np.int64)
        ids[:10] = 70_001
        ids[4:20, 2:22], ids[8:12, 6:12], ids[16:, 24:] = 300, 7, 9
        ids[:3, 28:] = 12
        png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        coco.write_png(root / f"panoptic/{image['id']}.png", png)
        rows = [(70_001, 3, 0), (300, 5, 0), (7, 5, 0), (9, 9, 1), (12, 9, 0)]
        annotations.append(
            {
                "image_id": image["id"],
                "file_name": f"{image['id']}.png",
                "segments_info": [
                    {"id": i, "category_id": c, "iscrowd": crowd}
                    | ({"area": 5} if i == 7 else {})
                    for i, c, crowd in rows
                ],
            }
        )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    coco.write_json(root / "annotations/panoptic_val.json", content)
    return root


def make_config(root, name, kind, **more):
    return tiny_config(
        {
            "data.name": name,
            "data.path": str(root),
            "data.num_classes": 0,
            "data.train_split": "val",
            "data.crop_size": (29, 37),
            "data.scale_range": (1.0, 1.0),
            "data.photometric": False,
            "data.train_examples": 0,
            "data.eval_examples": 0,
            "data.segments": kind,
            "data.max_segments": 7,
        }
        | {f"data.{key}": value for key, value in more.items()}
    ).data


def first_batch(data, rows=None, skips=None):
    source = open_dataset(data, train=True)
    batches = train_batches(
        source,
        seed=3,
        batch_size=4,
        augment=make_augment(data, None, source.info),
        rows=rows,
        num_threads=1,
        skips=skips,
    )
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize("flip_rate", [0.0, 1.0])
def test_overlapping_instances_of_a_json_file(instance_root, flip_rate):
    data = make_config(instance_root, "coco_json", "instances", flip_rate=flip_rate)
    batch = first_batch(data)
    assert batch["masks"].shape == (4, 7, 29, 5) and batch["masks"].dtype == np.uint8
    assert batch["segment_classes"].dtype == batch["image_size"].dtype == np.int32
    assert (batch["image_size"] == SIZE).all()
    wanted = [BOXES[name] for name in ("big cat", "cat on it", "dog")]
    seen = set()
    for i in range(4):
        pixels = np.unpackbits(batch["masks"][i], axis=-1, count=37)
        if batch["segment_classes"][i, 0] == IGNORE:  # The third image has nothing.
            assert not pixels.any() and (batch["label_map"][i] == IGNORE).all()
            seen.add("empty")
            continue
        assert batch["segment_classes"][i].tolist() == [CAT, CAT, DOG] + 4 * [IGNORE]
        expected = np.zeros((7, 29, 37), np.uint8)
        for number, box in enumerate(wanted):
            mask = coco.box(*box, SIZE)
            expected[number, :24, :32] = mask[:, ::-1] if flip_rate else mask
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.sum(0).max() == 2  # Two instances, one over the other.
        seen.add("full")
    assert seen == {"empty", "full"}


def test_truth_of_a_json_file(instance_root):
    data = make_config(instance_root, "coco_json", "instances")
    source = open_dataset(data, train=False)
    found = source[0]["instances"]
    assert [(i.class_id, i.is_crowd, i.area) for i in found] == [
        (CAT, False, 321.5), (CAT, False, None), (DOG, False, None), (DOG, True, None),
    ]  # fmt: skip
    for instance, box in zip(found, BOXES.values(), strict=True):
        mask = np.asfortranarray(coco.box(*box, SIZE).astype(np.uint8))
        assert instance.run_lengths == coco_mask.encode(mask)
    assert source[2]["instances"] == ()


@pytest.mark.parametrize("kind", ["classes", "panoptic"])
def test_a_json_file_for_other_tasks(instance_root, kind):
    """Painted, the smaller on top; crowds are void among instances."""
    data = make_config(instance_root, "coco_json", kind, flip_rate=0.0)
    batch = first_batch(data)
    (i, *_) = np.flatnonzero(batch["segment_classes"][:, 0] != IGNORE)
    masks, classes = batch["masks"][i], batch["segment_classes"][i].tolist()
    expected = [SKY, CAT, CAT, DOG] if kind == "panoptic" else [SKY, CAT, DOG]
    assert classes[: len(expected) + 1] == [*expected, IGNORE]
    crowd = masks[5, 31]
    assert crowd == (IGNORE if kind == "panoptic" else 2)
    assert masks[9, 8] == (2 if kind == "panoptic" else 1) and masks[5, 4] == 1
    assert masks[22, 1] == masks[28, 36] == IGNORE


def test_panoptic_files(panoptic_root):
    data = make_config(
        panoptic_root, "coco_panoptic_json", "panoptic", flip_rate=0.0, max_segments=4
    )
    example = open_dataset(data, train=False)[1]
    assert example["segments"] == (
        (70_001, SKY, False, 10 * 32 - 12 - 6 * 20),
        (300, CAT, False, 16 * 20 - 24),
        (7, CAT, False, 5),
        (9, DOG, True, 64),
        (12, DOG, False, 12),
    )
    ids = example["segment_map"]
    assert ids.dtype == np.int32 and ids.shape == SIZE
    assert ids[9, 7] == 7 and ids[0, 0] == 70_001 and ids[23, 0] == 0
    batch = first_batch(data)
    assert batch["masks"].shape == (4, 29, 37) and batch["masks"].dtype == np.int32
    expected = np.full((29, 37), IGNORE)
    names = {300: 1, 7: 2, 12: 3, 70_001: 0}
    for number, place in names.items():
        expected[:24, :32][ids == number] = place
    for i in range(4):
        np.testing.assert_array_equal(batch["masks"][i], expected)
        assert batch["segment_classes"][i].tolist() == [SKY, CAT, CAT, DOG]
    things = make_config(panoptic_root, "coco_panoptic_json", "instances")
    batch = first_batch(things)
    assert batch["masks"].shape == (4, 29, 37)
    assert batch["segment_classes"][0].tolist() == [CAT, CAT, DOG] + 4 * [IGNORE]
    truth = open_dataset(things, train=False)[0]["instances"]
    assert [(i.class_id, i.is_crowd) for i in truth] == [
        (CAT, False), (CAT, False), (DOG, True), (DOG, False),
    ]  # fmt: skip


def test_dropped_segments_are_said_once(panoptic_root, caplog):
    data = make_config(panoptic_root, "coco_panoptic_json", "panoptic", max_segments=2)
    skips = Skips()
    with caplog.at_level(logging.WARNING, "mlseg_jax.data"):
        batch = first_batch(data, skips=skips)
        skips.add_segments(np.int64([0, 3]))
        skips.log("training")
    assert batch["segment_classes"].tolist() == 4 * [[SKY, CAT]]  # The largest.
    assert set(batch) == {
        "image", "label_map", "masks", "segment_classes", "image_size",
    }  # fmt: skip
    first, last = (record.getMessage() for record in caplog.records)
    assert "a crop has 2 segments more than data.max_segments" in first
    assert last.startswith("training: 11 segments of 5 crops were more")


def test_segments_of_the_embedded_scenes_in_any_order_of_reading():
    """The same for other rows of a batch; stuff by class, signs one by one."""
    data = make_config("", "sign_scenes", "panoptic", num_classes=20, cache=False)
    data.update(crop_size=(48, 48), train_examples=6, eval_examples=2, max_segments=12)
    whole = first_batch(data)
    part = first_batch(data, rows=[1, 3])
    for key, value in whole.items():
        np.testing.assert_array_equal(part[key], value[[1, 3]])
    info = open_dataset(data, train=True).info
    for masks, classes, label_map in zip(
        whole["masks"], whole["segment_classes"], whole["label_map"], strict=True
    ):
        np.testing.assert_array_equal(classes[masks], label_map)
        present = classes[classes != IGNORE]
        stuff = [c for c in present if not info.is_thing[c]]
        assert len(stuff) == len(set(stuff)) and len(present) >= 3
    example = open_dataset(data, train=False)[0]
    assert {s.class_id for s in example["segments"]} == set(
        np.unique(example["label_map"]).tolist()
    )
    assert sum(s.area for s in example["segments"]) == 48 * 48


def test_ids_that_no_png_can_hold(panoptic_root, tmp_path):
    def message(number):
        info = [{"id": number, "category_id": 5}]
        annotation = {"image_id": 1, "file_name": "1.png", "segments_info": info}
        image = {"id": 1, "file_name": "1.png", "height": 24, "width": 32}
        content = {"images": [image], "annotations": [annotation]}
        path = tmp_path / "annotations/panoptic_val.json"
        coco.write_json(path, content | {"categories": CATEGORIES})
        return coco.message_of(open_dataset, data, train=True)

    coco.write_image(tmp_path / "images/val/1.png", SIZE)
    coco.write_png(tmp_path / "panoptic/1.png", np.zeros((*SIZE, 3)))
    data = make_config(tmp_path, "coco_panoptic_json", "panoptic")
    for number in (2**24, 0, -3):
        assert f"the id {number}, but the three bytes" in message(number)
    assert "id True" in message(True)


def test_things_without_instances(tmp_path):
    """A folder of masks knows no instances; the first batch says so."""
    for folder in ("images", "masks"):
        (tmp_path / folder / "val").mkdir(parents=True)
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "images/val/a.png")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "masks/val/a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "things.txt").write_text("cat\n")
    data = make_config(tmp_path, "folder", "panoptic")
    assert "has no instances (a has none)" in coco.message_of(first_batch, data)
    data = make_config(tmp_path, "folder", "classes")
    assert (first_batch(data)["segment_classes"][:, 0] == 0).all()
