"""Files of segments, as the project's own readers and pycocotools read them."""

import contextlib
import dataclasses
import io
import json

import coco_fixtures as coco
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input_pipeline.datasets import coco_json, names, panoptic
from input_pipeline.files import coco_masks, images
from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction.coco_files import (
    CATEGORY_IDS,
    InstanceWriter,
    PanopticWriter,
    SegmentFiles,
    categories_of,
)
from mlseg_jax.typing import IGNORE

INFO = DatasetInfo("mine", ("person", "dog", "rug"), (True, True, False))
SIZE = coco.SIZE


def segment(number, class_id, score, pixels):
    """Of a segment map or of run lengths."""
    if isinstance(pixels, np.ndarray):
        mask = pixels == number
    else:
        mask = coco_masks.decode(pixels, SIZE, "it")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    name = INFO.class_names[class_id]
    return Segment(number, class_id, name, score, int(mask.sum()), box, 0, pixels)


def make_panoptic(ids=(1, 70_000, 3)):
    segment_map = np.zeros(SIZE, np.int32)
    segment_map[2:5, 1:4], segment_map[1:5, 6:9], segment_map[6:] = ids
    classes = (0, 0, 2)
    segments = [
        segment(i, c, 0.25 * (n + 1), segment_map)
        for n, (i, c) in enumerate(zip(ids, classes, strict=True))
    ]
    return Panoptic(segment_map, tuple(segments))


def write_images(root, stems):
    for stem in stems:
        coco.write_image(root / f"{stem}.jpg")


@pytest.mark.parametrize("category_ids", [None, (1, 7, 9)])
def test_panoptic_files_are_read_again(tmp_path, category_ids):
    found = make_panoptic()
    own = dataclasses.replace(INFO, name="coco_panoptic", raw_values=category_ids)
    writer = PanopticWriter(tmp_path / "out", own)
    nothing = Panoptic(np.zeros(SIZE, np.int32), ())
    writer.add(5, "a.jpg", "a", found)
    writer.add("b", "b.jpg", "b_0", nothing)
    writer.close()
    write_images(tmp_path / "images", "ab")
    info, raws = panoptic.list_examples(
        tmp_path / "out/panoptic.json",
        tmp_path / "out/panoptic",
        tmp_path / "images",
        "mine",
    )
    assert info == INFO and info.raw_values == (category_ids or (0, 1, 2))
    source = coco_json.RawSource(info, raws)
    first, second = source[0], source[1]
    assert (first["image_id"], second["image_id"]) == (5, "b")
    expected = np.full(SIZE, IGNORE)
    for number, class_id in found.classes.items():
        expected[found.segment_map == number] = class_id
    np.testing.assert_array_equal(first["label_map"], expected)
    instances = first["instance_map"]
    assert len(np.unique(instances[instances > 0])) == 2
    assert (second["label_map"] == IGNORE).all()
    # The ids of the PNG, as panopticapi reads them.
    png = np.asarray(Image.open(tmp_path / "out/panoptic/a.png"), np.int64)
    np.testing.assert_array_equal(png @ [1, 256, 65_536], found.segment_map)
    file = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [a["image_id"] for a in file["annotations"]] == [5, "b"]
    (one, *_), ids = file["annotations"][0]["segments_info"], category_ids or (0, 1, 2)
    assert one == {
        "id": 1, "category_id": ids[0], "area": 9, "bbox": [1, 2, 3, 3],
        "iscrowd": 0, "score": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("number", [2**24, -3])
def test_ids_that_do_not_fit(tmp_path, number):
    writer = PanopticWriter(tmp_path, INFO)
    with pytest.raises(UserError, match=f"picture a.jpg has the segment id {number},"):
        writer.add(1, "a.jpg", "a", make_panoptic((1, number, 3)))
    assert not (tmp_path / "panoptic").exists()
    writer.add(1, "a.jpg", "a", make_panoptic((1, 2**24 - 1, 3)))
    png = images.read_image(tmp_path / "panoptic/a.png").astype(np.int64)
    assert (png @ [1, 256, 65_536]).max() == 2**24 - 1


def test_instance_files_are_read_again(tmp_path):
    first, second = coco.box(1, 1, 6, 6), coco.box(3, 4, 8, 9)  # they overlap
    runs = [coco.rle(mask) for mask in (first, second)]
    runs = [{**r, "counts": r["counts"].encode()} for r in runs]
    found = [segment(1, 1, 0.9, runs[0]), segment(2, 0, 0.123456789, runs[1])]
    writer = InstanceWriter(tmp_path, INFO, (3, 5, 6))
    writer.add(1, "a.jpg", SIZE, found)
    writer.add(2, "b.jpg", SIZE, ())
    writer.close()
    write_images(tmp_path / "images", "ab")
    info, raws = coco_json.list_examples(
        tmp_path / "instances.json", tmp_path / "images", paint_order="file"
    )
    assert info.class_names == INFO.class_names
    source = coco_json.RawSource(info, raws)
    example = source[0]
    assert info.raw_values == (3, 5, 6) and example["image_id"] == 1
    np.testing.assert_array_equal(
        example["label_map"], np.where(first, 1, np.where(second, 0, IGNORE))
    )
    np.testing.assert_array_equal(
        example["instance_map"], np.where(first, 1, np.where(second, 2, 0))
    )
    assert (source[1]["label_map"] == IGNORE).all()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "instances.json"))
        results = truth.loadRes(str(tmp_path / "instances_results.json"))
        evaluator = COCOeval(truth, results, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1.0)
    assert [a["score"] for a in results.anns.values()] == [0.9, 0.123456789]
    assert [a["area"] for a in results.anns.values()] == [25, 25]
    assert [a["category_id"] for a in results.anns.values()] == [5, 3]


def test_pictures_of_one_name_stay_apart(tmp_path):
    runs = coco.rle(coco.box(1, 1, 6, 6))
    runs = {**runs, "counts": runs["counts"].encode()}
    for given, ids in (
        (("d/07.jpg", "d/cat.jpg"), [7, "cat"]),
        (("d/07.jpg", "d/7.jpg"), ["07", "7"]),
        (("a/1.jpg", "b/1.jpg"), ["a/1", "b/1"]),
        (("a/1.jpg", "a/1.png"), ["a/1.jpg", "a/1.png"]),
    ):
        files = SegmentFiles("instance", tmp_path, INFO)
        for i, name in enumerate(given):
            found = (segment(1, i, 0.9, runs),)
            files.add(name, "", SIZE, found, "own" if name == "d/cat.jpg" else None)
        files.close()
        ids = ["own" if i == "cat" else i for i in ids]
        made = json.loads((tmp_path / "instances.json").read_text())
        assert [image["id"] for image in made["images"]] == ids
        assert len({image["file_name"] for image in made["images"]}) == 2
        results = json.loads((tmp_path / "instances_results.json").read_text())
        found = [(r["image_id"], r["category_id"]) for r in results]
        assert found == list(zip(ids, (0, 1), strict=True))
    files = SegmentFiles("panoptic", tmp_path, INFO)
    for name, ids in (("a/b_c", (1, 2, 3)), ("a_b/c", (4, 5, 6))):
        files.add(name, name, SIZE, make_panoptic(ids))
    files.close()
    made = json.loads((tmp_path / "panoptic.json").read_text())
    for entry, ids in zip(made["annotations"], ((1, 2, 3), (4, 5, 6)), strict=True):
        png = np.asarray(Image.open(tmp_path / "panoptic" / entry["file_name"]))
        assert set(np.unique(png[..., 0])) == {0, *ids}


def test_categories_of_published_files():
    info = names.read_info("coco_panoptic", "coco_panoptic")
    ids = CATEGORY_IDS["coco_panoptic"]
    assert categories_of(info, ()) == ids
    colours = dataclasses.replace(INFO, raw_values=("#ff0000", "#00ff00", "#0000ff"))
    assert categories_of(colours, range(3)) == (0, 1, 2)
    assert len(ids) == info.num_classes == 133 and list(ids) == sorted(set(ids))
    by_name = dict(zip(info.class_names, ids, strict=True))
    assert by_name["person"] == 1 and by_name["toothbrush"] == 90
    assert by_name["banner"] == 92 and by_name["rug-merged"] == 200
    assert info.is_thing == tuple(i <= 90 for i in ids)
