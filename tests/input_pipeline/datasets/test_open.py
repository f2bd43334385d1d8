"""Every name of a configuration opens what it should, or says what is missing."""

import functools
import importlib
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from coco_fixtures import box, polygon, rle, write_image, write_json, write_png

from configs import segmenter
from input_pipeline.datasets.instances import PreparedInstances
from input_pipeline.datasets.open import open_dataset
from input_pipeline.datasets.videos import PreparedVideos
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import builders, prepared
from input_pipeline.preparation.prepare import prepare
from input_pipeline.preparation.prepared import Prepared
from mlseg_jax.settings.data_sets import DATA_SETS

ROOT = pathlib.Path(__file__).parents[3]
SIZE = (8, 10)
PREPARED = {
    "pascal_context": Prepared,
    "ade20k": Prepared,
    "ade20k_full": Prepared,
    "coco_stuff": Prepared,
    "coco_stuff/164k": Prepared,
    "coco_lvis": Prepared,
    "ade20k_panoptic": PreparedInstances,
    "vspw": PreparedVideos,
}


def configuration(dataset="folder", **data):
    config = segmenter.get_config(f"dataset={dataset},backbone=vit_demo")
    config.data.update(data)
    return config


def make_label(label_map, extras):
    values = {"video": "v", "video_index": 0, "video_length": 1, "frame": 0}
    values["instance_map"] = (label_map > 3).astype(np.uint16)
    return {"label_map": label_map, **{key: values[key] for key in extras}}


def fake_raws(builder_class, monkeypatch, image):
    """A builder whose raw files are made up; its classes stay the real ones."""

    def raw_splits(self, manual_dir):
        if hasattr(self, "found_info"):
            names = tuple(f"class {i}" for i in range(1284))
            self.found_info = DatasetInfo(self.name, names, (True,) * 1284)
        label_map = np.arange(80, dtype=np.int32).reshape(SIZE) % 50 - 1
        make = functools.partial(make_label, label_map, list(self.extra_features()))
        return {s: [prepared.RawExample("a", image, make)] for s in ("train", "val")}

    monkeypatch.setattr(builder_class, "raw_splits", raw_splits)


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_data_sets(name, tmp_path, monkeypatch, image):
    base = name.partition("/")[0]
    module, _, class_name = builders.BUILDERS[base].partition(":")
    builder_class = getattr(importlib.import_module(module), class_name)
    fake_raws(builder_class, monkeypatch, image)
    place = prepare(
        name, tmp_path, tmp_path / "data", num_workers=0, allow_incomplete=True
    )
    recipe = base if base in DATA_SETS else "folder"
    for path in (tmp_path / "data", place):
        config = configuration(recipe, name=name, path=str(path))
        source = open_dataset(config.data, train=True)
        assert type(source) is PREPARED[name]
        example = source[0]
        assert example["label_map"].tolist() == (
            (np.arange(80).reshape(SIZE) % 50 - 1).tolist()
        )
        assert len(source.presence.offsets) == 2
    if "instance_map" in example:
        assert example["instance_map"].dtype == np.int32
    config.data.update(train_examples=1, cache=True)
    subset = open_dataset(config.data, train=True)
    assert subset.presence.class_ids.tolist() == list(range(49))


def test_all_recipes_are_covered():
    names = {name.partition("/")[0] for name in PREPARED}
    assert set(DATA_SETS) - names == {"folder", "sign_scenes"}


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff/164k"])
def test_what_is_not_there_says_which_command_makes_it(name, tmp_path):
    with pytest.raises(DataError, match=f"prepare --dataset={name} .*data.path="):
        open_dataset(configuration(name=name).data, train=True)
    with pytest.raises(DataError, match="is not prepared in .*prepare --dataset="):
        open_dataset(configuration(name=name, path=str(tmp_path)).data, train=True)


@pytest.mark.parametrize(
    "name", ["folder", "coco_json", "lvis_json", "coco_panoptic_json", "tfds:mine"]
)
def test_own_data_needs_a_place(name):
    with pytest.raises(DataError, match="has no place; add .*data.path=DIRECTORY"):
        open_dataset(configuration(name=name).data, train=True)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(DataError, match="no reader .*'ade21k'.*ade20k.*tfds:NAME"):
        open_dataset(configuration(name="ade21k").data, train=True)


def test_more_classes_than_16_bits_hold():
    names = tuple(map(str, range(65_536)))
    with pytest.raises(DataError, match="65,536 classes, .* at most 65,535; use fewer"):
        DatasetInfo("x", names, (True,) * 65_536)
    assert DatasetInfo("x", names[1:], (True,) * 65_535).num_classes == 65_535


def test_skipping_leaves_out_images_without_a_mask(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            write_image(tmp_path / f"images/{split}/{i}.png")
            if i != 1:
                write_png(tmp_path / f"masks/{split}/{i}.png", np.zeros(SIZE))
    (tmp_path / "classes.txt").write_text("road\n")
    config = configuration(path=str(tmp_path))
    with pytest.raises(DataError, match="1.png has no mask"):
        open_dataset(config.data, train=True)
    config.data.on_bad_example = "skip"
    source = open_dataset(config.data, train=True)
    assert [source[i]["name"] for i in range(len(source))] == ["0", "2"]
    config.data.on_bad_example = "ignore"
    with pytest.raises(DataError, match="is 'ignore'; choose one of fail, skip"):
        open_dataset(config.data, train=True)


def write_coco(root):
    images = [{"id": 1, "file_name": "a.png", "width": 10, "height": 8}]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 7, "area": 12, "iscrowd": 0,
         "segmentation": rle(box(0, 0, 6, 6))},
        {"id": 2, "image_id": 1, "category_id": 9, "area": 4, "iscrowd": 0,
         "segmentation": polygon(0, 0, 2, 2)},
    ]  # fmt: skip
    categories = [{"id": 7, "name": "table"}, {"id": 9, "name": "cup"}]
    file = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        write_json(root / f"annotations/instances_{split}.json", file)
        write_image(root / f"images/{split}/a.png")


@pytest.mark.parametrize("name", ["coco_json", "lvis_json"])
def test_coco_and_lvis_json(name, tmp_path):
    write_coco(tmp_path)
    config = configuration(name=name, path=str(tmp_path), background="floor")
    source = open_dataset(config.data, train=True)
    assert source.info.class_names == ("table", "cup", "floor")
    example = source[0]["label_map"]
    assert (example[0, 0], example[3, 3], example[7, 9]) == (1, 0, 2)
    config.data.update(paint_order="file", background="")
    example = open_dataset(config.data, train=False)[0]["label_map"]
    assert (example[0, 0], example[7, 9]) == (0, -1)
    write_json(tmp_path / "joined.json", {"7": "thing", "9": "thing"})
    config.data.classes = str(tmp_path / "joined.json")
    assert open_dataset(config.data, train=True).info.class_names == ("thing",)
    config.data.paint_order = "size"
    with pytest.raises(DataError, match="data.paint_order is 'size'; choose one"):
        open_dataset(config.data, train=True)


def test_coco_panoptic_json(tmp_path):
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[2:, :, 0] = 5
    file = {
        "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 8}],
        "annotations": [
            {"image_id": 1, "file_name": "a.png", "segments_info": [
                {"id": 5, "category_id": 3, "iscrowd": 0}]}
        ],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}],
    }  # fmt: skip
    write_json(tmp_path / "annotations/panoptic_train.json", file)
    write_png(tmp_path / "annotations/panoptic_train/a.png", ids)
    write_image(tmp_path / "images/train/a.png")
    config = configuration(name="coco_panoptic_json", path=str(tmp_path))
    example = open_dataset(config.data, train=True)[0]
    assert np.unique(example["label_map"][2:]).tolist() == [0]
    assert np.unique(example["label_map"][:2]).tolist() == [-1]


def test_any_data_set_of_tfds(tmp_path, monkeypatch, image):
    module, _, class_name = builders.BUILDERS["ade20k"].partition(":")
    fake_raws(getattr(importlib.import_module(module), class_name), monkeypatch, image)
    prepare("ade20k", tmp_path, tmp_path, num_workers=0, allow_incomplete=True)
    classes = tmp_path / "classes.json"
    table = {str(i): f"class {i // 2}" for i in range(49)} | {"65535": None}
    classes.write_text(json.dumps(table))
    config = configuration(name="tfds:ade20k", path=str(tmp_path), classes=str(classes))
    source = open_dataset(config.data, train=True)
    assert len(source.info.class_names) == 25
    expected = (np.arange(80).reshape(SIZE) % 50 - 1) // 2
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    assert source[0]["image"].shape == (*SIZE, 3)
    for change, sentence in (
        ({"label_key": "mask"}, "no picture 'mask'; set data.image_key"),
        ({"train_split": "test"}, "no split 'test', only train, val"),
        ({"name": "tfds:other"}, "There is no TFDS data set 'other'"),
        ({"classes": ""}, "needs the meaning of its mask values"),
    ):
        changed = configuration(**{**config.data.to_dict(), **change})
        with pytest.raises(DataError, match=sentence):
            open_dataset(changed.data, train=True)
    classes.write_text(json.dumps(table | {"7": None}).replace('"3": "class 1", ', ""))
    with pytest.raises(DataError, match="holds the value 3 "):
        open_dataset(config.data, train=True)[0]


def test_prepare_as_a_command(tmp_path):
    root = tmp_path / "raw/ADEChallengeData2016"
    for folder in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for i in range(2):
            picture = np.full((*SIZE, 3), 40 * i, np.uint8)
            cv2.imwrite(str(root / f"images/{folder}/{i}.jpg"), picture)
            mask = np.full(SIZE, 3, np.uint8)
            cv2.imwrite(str(root / f"annotations/{folder}/{i}.png"), mask)
    # What cannot be read is left out; a copy that is not complete is an error.
    (root / "images/training/1.jpg").write_bytes(b"")
    command = [
        *(sys.executable, ROOT / "main.py", "prepare", "--dataset=ade20k"),
        *(f"--manual_dir={tmp_path / 'raw'}", f"--data_dir={tmp_path / 'data'}"),
        *("--num_workers=1", "--on_bad_example=skip"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: This copy of ade20k has 2 of 20,210 train examples" in done.stderr
    done = subprocess.run(
        [*command, "--allow_incomplete"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "left out 1 examples" in done.stdout
    assert "preparing train" in done.stderr
    config = configuration("ade20k", path=str(tmp_path / "data"))
    assert len(open_dataset(config.data, train=True)) == 1
    assert open_dataset(config.data, train=False)[1]["label_map"][0, 0] == 2
