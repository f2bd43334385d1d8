"""ADE20K and COCO panoptic: PNG of segment ids and JSON, and what ADE20K ships."""

import coco_fixtures as coco
import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets import ade20k_panoptic, coco_json, coco_panoptic, names
from input_pipeline.datasets.instances import PreparedInstances
from input_pipeline.preparation import builders, prepare
from mlseg_jax.typing import IGNORE

SIZE = coco.SIZE
CATEGORIES = [
    {"id": 200, "name": "rug", "isthing": 0},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 18, "name": "dog", "isthing": 1},
]
SEGMENTS = [
    {"id": 70_003, "category_id": 18, "iscrowd": 0},
    {"id": 255, "category_id": 200, "iscrowd": 0},
    {"id": 256, "category_id": 1, "iscrowd": 1},
    {"id": 2**24 - 1, "category_id": 18, "iscrowd": 0},
]


def _ids():
    ids = np.zeros(SIZE, np.int64)
    ids[2:] = 255
    ids[3:5, 2:4], ids[3:5, 5:7], ids[6:, :3] = 70_003, 256, 2**24 - 1
    return ids


def _png(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)


def _write(root, json_name, png_dir, image_dir, stems, segments=SEGMENTS):
    file = {"images": [], "annotations": [], "categories": CATEGORIES}
    for stem in stems:
        coco.write_image(root / image_dir / f"{stem}.jpg")
        coco.write_png(root / png_dir / f"{stem}.png", _png(_ids()))
        file["images"].append({"id": stem, "file_name": f"{stem}.jpg"})
        annotation = {"image_id": stem, "file_name": f"{stem}.png"}
        file["annotations"].insert(0, annotation | {"segments_info": segments})
    coco.write_json(root / json_name, file)
    return file


def _check(example):
    label_map, instance_map = example["label_map"], example["instance_map"]
    assert label_map.dtype == instance_map.dtype == np.int32
    # Categories by id: person, dog, rug.
    expected = np.full(SIZE, 2)
    expected[:2], expected[3:5, 2:4], expected[3:5, 5:7] = IGNORE, 1, 0
    expected[6:, :3] = 1
    np.testing.assert_array_equal(label_map, expected)
    expected = np.zeros(SIZE)
    expected[3:5, 2:4], expected[3:5, 5:7], expected[6:, :3] = 1, IGNORE, 3
    np.testing.assert_array_equal(instance_map, expected)


def _prepare(name, root, monkeypatch):
    monkeypatch.setitem(
        builders.BUILDERS,
        name,
        {
            "coco_panoptic": "input_pipeline.datasets.coco_panoptic:CocoPanoptic",
            "ade20k_panoptic": "input_pipeline.datasets.ade20k_panoptic:Ade20kPanoptic",
        }[name],
    )
    return prepare.prepare(
        name, root, root / "out", num_workers=0, allow_incomplete=True,
        progress=lambda *_: None,
    )  # fmt: skip


@pytest.mark.parametrize("in_annotations", [True, False])
def test_coco(tmp_path, monkeypatch, in_annotations):
    folder = "annotations/" if in_annotations else ""
    for split in ("train", "val"):
        name = f"panoptic_{split}2017"
        _write(tmp_path, f"{folder}{name}.json", f"{folder}{name}",
               f"{'images/' if in_annotations else ''}{split}2017",
               [f"{split}_{i}" for i in range(2)])  # fmt: skip
    path = _prepare("coco_panoptic", tmp_path, monkeypatch)
    source = PreparedInstances(path, "val")
    assert source.info.class_names == ("person", "dog", "rug")
    assert source.info.is_thing == (True, True, False)
    assert [source[i]["name"] for i in range(len(source))] == ["val_0", "val_1"]
    _check(source[1])
    assert source.statistics["num_examples"] == 2
    assert source.presence.class_ids.tolist() == [0, 1, 2] * 2


def test_ade20k_from_json(tmp_path, monkeypatch):
    root = tmp_path / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        name = f"ade20k_panoptic_{split}"
        _write(root, f"{name}.json", name, f"images/{folder}", [f"ADE_{split}_1"])
    path = _prepare("ade20k_panoptic", tmp_path, monkeypatch)
    _check(PreparedInstances(path, "train")[0])


def test_ade20k_from_instances(tmp_path, monkeypatch):
    semantic = np.zeros(SIZE, np.uint8)
    semantic[2:], semantic[4:6] = 1, 8  # Wall; bed, of which a part has no instance.
    thing = np.zeros((*SIZE, 3), np.uint8)
    thing[4:6, :3] = (1, 7, 0)  # The first thing is class 8, bed.
    thing[3:5, 8:] = (100, 255, 0)  # The last is 150, flag, and lies over the wall.
    for folder in ("training", "validation"):
        coco.write_image(tmp_path / f"images/{folder}/ADE_1.jpg")
        coco.write_png(tmp_path / f"annotations/{folder}/ADE_1.png", semantic)
        coco.write_png(tmp_path / f"annotations_instance/{folder}/ADE_1.png", thing)
    source = PreparedInstances(
        _prepare("ade20k_panoptic", tmp_path, monkeypatch), "val"
    )
    expected = np.full(SIZE, IGNORE)
    expected[2:4], expected[6:], expected[4:6, :3], expected[3:5, 8:] = 0, 0, 7, 149
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    expected = np.zeros(SIZE)
    expected[4:6, :3], expected[3:5, 8:] = 7, 255
    np.testing.assert_array_equal(source[0]["instance_map"], expected)
    assert source.info == names.read_info("ade20k_panoptic", "ade20k")
    assert sum(source.info.is_thing) == 100

    paths = [tmp_path / f"{kind}/training/ADE_1.png"
             for kind in ("annotations", "annotations_instance")]  # fmt: skip
    thing[0, 0] = (2, 7, 0)
    coco.write_png(paths[1], thing)
    message = coco.message_of(ade20k_panoptic.label_instances, *paths)
    assert "has the classes [1, 2] instead of one" in message
    thing[0, 0] = (101, 9, 0)
    coco.write_png(paths[1], thing)
    message = coco.message_of(ade20k_panoptic.label_instances, *paths)
    assert "holds the class 101, but there are 100" in message
    coco.write_png(paths[1], thing[1:])
    message = coco.message_of(ade20k_panoptic.label_instances, *paths)
    assert "10x7 pixels but" in message


def test_own_panoptic(tmp_path):
    _write(tmp_path, "panoptic_day.json", "panoptic_day", "images", ["a", "b"])
    source = coco_json.open_panoptic(tmp_path, "day")
    _check(source[0])
    assert source.info.name == tmp_path.name
    assert "no JSON of the split 'night'" in coco.message_of(
        coco_json.open_panoptic, tmp_path, "night"
    )


def test_a_segment_of_unknown_class_is_void_and_its_picture_stays(tmp_path):
    segments = [SEGMENTS[0] | {"category_id": 99}, *SEGMENTS[1:]]
    segments[2] = segments[2] | {"iscrowd": "0"}
    file = _write(tmp_path, "val.json", "panoptic", "images", ["a", "b"], segments)
    file["annotations"][0]["segments_info"] = "none"  # Of b.
    coco.write_json(tmp_path / "val.json", file)
    faults = []
    source = coco_json.open_panoptic(tmp_path, "val", faults.append)
    assert len(faults) == 3 and all(fault.kind == "listing" for fault in faults)
    damaged, unknown, crowd = map(str, faults)
    assert damaged.startswith("Annotation number 0 of") and "segments_info" in damaged
    assert unknown.startswith("Annotation number 1 of") and "category 99" in unknown
    assert "iscrowd '0'" in crowd
    assert len(source) == 1
    example, ids = source[0], _ids()
    void = np.isin(ids, [0, 70_003, 256])
    np.testing.assert_array_equal(example["label_map"] == IGNORE, void)
    np.testing.assert_array_equal(example["segment_map"], np.where(void, 0, ids))
    assert [s.segment_id for s in example["segments"]] == [255, 2**24 - 1]
    assert source.remarks(0) == []


def test_defects(tmp_path):
    def open_(**changes):
        file = _write(tmp_path, "val.json", "panoptic", "images", ["a"])
        file["annotations"][0].update(changes.pop("annotation", {}))
        coco.write_json(tmp_path / "val.json", file | changes)
        return coco_json.open_panoptic(tmp_path, "val")

    def message(**changes):
        return coco.message_of(open_, **changes)

    assert "holds the segment 255, which" in coco.message_of(
        open_(annotation={"segments_info": SEGMENTS[:1]}).__getitem__, 0
    )
    assert "stands twice" in message(annotation={"segments_info": SEGMENTS[:1] * 2})
    assert "has the category 99" in message(
        annotation={"segments_info": [{"id": 1, "category_id": 99}]}
    )
    assert "no path inside" in message(annotation={"file_name": "../b.png"})
    assert "belongs to the image 'zzz'" in message(annotation={"image_id": "zzz"})
    assert "has 0 annotations instead of one" in message(annotations=[])
    assert "isthing None" in message(
        categories=[{"id": 1, "name": "x"}], annotations=[]
    )
    assert 'no "categories"' in message(categories=[])
    source = open_()
    coco.write_image(tmp_path / "images/a.jpg", (9, 10))
    assert "10x9 pixels" in coco.message_of(source.__getitem__, 0)
    # A grey PNG is no PNG of segments.
    Image.new("L", SIZE[::-1], 3).save(tmp_path / "panoptic/a.png")
    coco.write_image(tmp_path / "images/a.jpg")
    assert "keep the PNG in 8-bit RGB" in coco.message_of(source.__getitem__, 0)
    (tmp_path / "panoptic/a.png").unlink()
    assert "There is no file" in coco.message_of(source.__getitem__, 0)


def test_published_counts(tmp_path):
    for builder, train, val in (
        (coco_panoptic.CocoPanoptic, 118_287, 5_000),
        (ade20k_panoptic.Ade20kPanoptic, 20_210, 2_000),
    ):
        counts = builder(data_dir=tmp_path).expected_examples()
        assert counts == {"train": train, "val": val}
