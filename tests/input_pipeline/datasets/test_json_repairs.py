"""JSON files as they are found: odd places, odd flags, annotations with faults."""

import coco_fixtures as coco
import numpy as np
import pytest

from input_pipeline.datasets import coco_json, panoptic
from input_pipeline.files import images
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE

SIZE = coco.SIZE


def _file(annotations=(), names=("1.png",), **changes):
    return {
        "images": [
            {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate(names, start=1)
        ],
        "annotations": [
            {"id": 10 + i, "image_id": 1, "category_id": 1} | a
            for i, a in enumerate(annotations)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    } | changes


def _open(root, content, **options):
    coco.write_json(root / "annotations/instances_val.json", content)
    for image in content["images"]:
        if not (root / "images/val" / image["file_name"]).exists():
            coco.write_image(root / "images/val" / image["file_name"])
    return coco_json.open_coco_json(root, "val", **options)


@pytest.mark.parametrize("value", ["0", "1", 2, -1, "false", [], {}, 0.5])
def test_flags_are_flags(tmp_path, value):
    box = {"segmentation": coco.polygon(2, 2, 4, 4)}
    content = _file([box, box | {"iscrowd": value}])
    message = coco.message_of(_open, tmp_path, content)
    assert f"Annotation 11 of {tmp_path}" in message and "the iscrowd" in message
    content = _file([box])
    content["categories"][1]["isthing"] = value
    message = coco.message_of(_open, tmp_path, content)
    assert "Category 2" in message and "the isthing" in message
    # Where the annotation is left out, nothing is made of its pixels.
    content = _file([{"segmentation": coco.polygon(0, 0, 2, 2)}, box])
    content["annotations"][1]["iscrowd"] = value
    faults = []
    source = _open(tmp_path, content, report=faults.append, background="rest")
    expected = np.full(SIZE, 2)
    expected[:2, :2], expected[2:4, 2:4] = 0, IGNORE
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    assert len(faults) == 1


@pytest.mark.parametrize("value", [0, 1, False, True, None, 1.0])
def test_flags_that_are_right(tmp_path, value):
    box = {"segmentation": coco.polygon(2, 2, 4, 4), "iscrowd": value}
    content = _file([box])
    content["categories"][1]["isthing"] = value
    source = _open(tmp_path, content)
    assert source[0]["instance_map"][2, 2] == (IGNORE if value else 1)
    assert source.info.is_thing == (True, True if value is None else bool(value))


@pytest.mark.parametrize("background", ["", "rest"])
@pytest.mark.parametrize("order", ["area", "file"])
def test_what_a_dropped_annotation_covers_is_ignored(tmp_path, background, order):
    shapes = [
        {"segmentation": coco.polygon(0, 0, 8, 8)},
        {"segmentation": coco.polygon(2, 2, 6, 6), "category_id": 77},
        {"segmentation": coco.rle(coco.box(1, 8, 3, 10)), "category_id": None},
    ]
    faults = []
    source = _open(
        tmp_path,
        _file(shapes),
        report=faults.append,
        background=background,
        paint_order=order,
    )
    expected = np.full(SIZE, 2 if background else IGNORE)
    expected[:8, :8] = 0
    if order == "area":
        expected[2:6, 2:6] = IGNORE
    expected[1:3, 8:] = IGNORE
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    assert len(faults) == 2
    # One that cannot be drawn costs the picture: nobody knows what it covered.
    shapes[1]["segmentation"] = {"size": [3, 3], "counts": [9]}
    source = _open(tmp_path, _file(shapes), report=faults.append)
    with pytest.raises(DataError, match="Annotation 11"):
        source[0]


@pytest.mark.parametrize("line", [[], [3, 3], [3, 3, 5, 5], [3.5, 3, 5, 3]])
def test_a_polygon_of_under_three_points(tmp_path, line):
    (box,) = coco.polygon(0, 0, 2, 2)
    other = {"segmentation": coco.polygon(6, 6, 8, 8), "category_id": 2}
    content = _file([{"segmentation": [line, box, line]}, other])
    message = coco.message_of(_open, tmp_path, content)
    assert "Annotation 10 of" in message and "fewer than three points" in message
    shown = [float(x) for x in line]
    assert f"polygon {shown}" in message and "array(" not in message
    faults = []
    source = _open(tmp_path, content, report=faults.append, background="rest")
    assert [fault.kind for fault in faults] == ["polygon"]
    expected = np.full(SIZE, 2)
    expected[:2, :2], expected[6:, 6:8] = 0, 1
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    # Alone it leaves its surroundings unknown, behind all that is known.
    source = _open(
        tmp_path,
        _file([{"segmentation": [line]}, other]),
        report=faults.append,
        background="rest",
    )
    label_map = source[0]["label_map"]
    assert (label_map[6:, 6:8] == 1).all() and not (label_map == 0).any()
    if line:
        assert label_map[3, 3] == IGNORE
    assert 1 <= (label_map == IGNORE).sum() <= 9
    odd = _file([{"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}])
    message = coco.message_of(lambda: _open(tmp_path, odd)[0])
    assert "[1.0, 2.0, 3.0" in message


@pytest.mark.parametrize("names", [("a.png", "a.jpg", "b.png"), ("x/a.png", "x/a.bmp")])
def test_images_that_differ_in_their_ending(tmp_path, names):
    source = _open(tmp_path, _file(names=names))
    found = [source[i]["name"] for i in range(len(source))]
    assert found == [name if "a" in name else "b" for name in names]


def test_lvis_of_version_05(tmp_path):
    content = _file(names=("COCO_val2014_000000000042.jpg",))
    content["images"][0]["coco_url"] = (
        "http://images.cocodataset.org/val2017/000000000042.png"
    )
    coco.write_json(tmp_path / "lvis_v0.5_val.json", content)
    (tmp_path / "lvis_v0.5_val.json").rename(tmp_path / "val.json")
    place = tmp_path / "images/val2017/000000000042.png"
    coco.write_image(place)
    for folder in ("images/val2017", "images/val", "images", "val2017"):
        target = tmp_path / folder / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)
        place = target
        source = coco_json.open_coco_json(tmp_path, "val")
        assert source[0]["name"] == "COCO_val2014_000000000042", folder
    place.unlink()
    message = coco.message_of(source.__getitem__, 0)
    assert "COCO_val2014_000000000042.jpg, nor " in message
    assert "val2017/000000000042.png" in message
    content["images"][0]["coco_url"] = "http://x/../passwd"
    coco.write_json(tmp_path / "val.json", content)
    message = coco.message_of(coco_json.open_coco_json(tmp_path, "val").__getitem__, 0)
    assert "passwd" not in message


def test_label_studio_and_images_beside_the_json(tmp_path):
    """Label Studio names images relative to its JSON."""
    one, two, three = (tmp_path / name for name in "abc")
    coco.write_json(one / "train.json", _file(names=("images/1.png",)))
    coco.write_image(one / "images/1.png")
    coco.write_json(two / "train.json", _file())
    coco.write_image(two / "1.png")
    coco.write_json(three / "annotations/instances_train.json", _file())
    coco.write_image(three / "1.png")
    for root in (one, two, three):
        source = coco_json.open_coco_json(root, "train")
        assert source[0]["image"].shape == (*SIZE, 3)
    coco.write_json(tmp_path / "d/train.json", _file(names=("images\\1.png",)))
    coco.write_image(tmp_path / "d/images/1.png")
    source = coco_json.open_coco_json(tmp_path / "d", "train")
    assert source[0]["image"].shape == (*SIZE, 3)
    coco.write_json(tmp_path / "e/train.json", _file())
    message = coco.message_of(coco_json.open_coco_json, tmp_path / "e", "train")
    assert "no folder of images" in message


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _open(tmp_path / "data", _file())
    assert len(coco_json.open_coco_json("~/data", "val")) == 1


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\u2028b", "a\ud800"])
def test_names_of_categories_are_of_one_line(tmp_path, name):
    content = _file()
    content["categories"][1]["name"] = name
    message = coco.message_of(_open, tmp_path, content)
    assert "Category 2" in message and "control character" in message
    message.encode()


def test_raw_values_are_ids_of_categories(tmp_path):
    source = _open(tmp_path, _file())
    assert source.info.raw_values == (1, 2)
    source = _open(tmp_path, _file(), background="rest")
    assert source.info.raw_values == (1, 2, 0)
    coco.write_json(tmp_path / "classes.json", {"2": "pet", "1": "pet"})
    assert _open(tmp_path, _file()).info.raw_values == (1,)
    coco.write_json(tmp_path / "classes.json", {"#000000": "pet"})
    assert "numbers of categories" in coco.message_of(_open, tmp_path, _file())


def test_two_categories_of_one_name_are_joined_by_a_table(tmp_path):
    content = _file([{"segmentation": coco.polygon(0, 0, 2, 2), "category_id": 2}])
    content["categories"][1]["name"] = "cat"
    assert "classes.json" in coco.message_of(_open, tmp_path, content)
    coco.write_json(tmp_path / "classes.json", {"1": None, "2": "cat"})
    source = _open(tmp_path, content)
    assert source.info.class_names == ("cat",) and source[0]["label_map"][0, 0] == 0


def test_exif_may_be_ignored(tmp_path):
    from PIL import Image

    content = _file()
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images/val").mkdir(parents=True)
    picture = Image.new("RGB", SIZE[::-1])
    picture.save(tmp_path / "images/val/1.png", exif=exif)
    source = _open(tmp_path, content)
    assert "data.exif=False" in coco.message_of(source.__getitem__, 0)
    source = _open(tmp_path, content, reading=images.ReadOptions(exif=False))
    assert source[0]["image"].shape == (*SIZE, 3)


IDS = np.array([[0, 7, 7], [300, 300, 0], [70000, 7, 0]])


def _write_ids(path, form):
    import cv2

    rgb = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1)
    bgr = rgb[..., ::-1]
    array = {
        "rgb": bgr.astype(np.uint8),
        "rgba": np.concatenate([bgr, bgr[..., :1] * 0 + 255], -1).astype(np.uint8),
        "rgb of 16 bits": bgr.astype(np.uint16),
        "stretched rgb": (bgr * 257).astype(np.uint16),
        "grey of 16 bits": (IDS % 65536).astype(np.uint16),
        "grey": (IDS % 256).astype(np.uint8),
    }[form]
    cv2.imwrite(str(path), array)


@pytest.mark.parametrize(
    ("form", "modulus"),
    [
        ("rgb", 2**24),
        ("rgba", 2**24),
        ("rgb of 16 bits", 2**24),
        ("stretched rgb", 2**24),
        ("grey of 16 bits", 2**16),
        ("grey", 2**8),
    ],
)
def test_panoptic_png_of_any_depth(tmp_path, form, modulus):
    path = tmp_path / "a.png"
    _write_ids(path, form)
    ids = [i % modulus for i in (7, 300, 70000)]
    segments = [(number, k, k + 1) for k, number in enumerate(ids)]
    found = panoptic.label_segments(path, segments)
    expected = np.full(IDS.shape, IGNORE)
    for k, number in enumerate((7, 300, 70000)):
        expected[number == IDS] = k
    np.testing.assert_array_equal(found["label_map"], expected)
    areas = dict.fromkeys(ids)
    assert panoptic.odd_segments(path, areas, "Image 1") == []
    (fault,) = panoptic.odd_segments(path, areas | {9: 5, 11: None}, "Image 1")
    assert "2 segments without a pixel" in str(fault) and "(9, 11)" in str(fault)
    with pytest.raises(DataError, match="does not list"):
        panoptic.label_segments(path, segments[1:])
    with pytest.raises(DataError, match="data.max_pixels is 1;"):
        panoptic.label_segments(path, segments, max_pixels=1)


def test_a_panoptic_png_of_nothing(tmp_path):
    coco.write_png(tmp_path / "a.png", np.zeros((3, 4, 3)))
    assert (panoptic.label_segments(tmp_path / "a.png", [])["label_map"] == -1).all()
    with pytest.raises(DataError, match="is 0 everywhere, though its JSON lists 1"):
        panoptic.label_segments(tmp_path / "a.png", [(3, 0, 0)])


def test_segments_without_a_pixel_and_wrong_areas_are_remarked(tmp_path):
    segments = [
        {"id": 7, "category_id": 1, "area": 0},
        {"id": 8, "category_id": 2, "area": 12},
        {"id": 9, "category_id": 2, "area": 10},
    ]
    content = _file(
        annotations=[],
        categories=[
            {"id": 1, "name": "cat", "isthing": 1},
            {"id": 2, "name": "sky", "isthing": False},
        ],
    )
    content["annotations"] = [
        {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    ]
    coco.write_json(tmp_path / "annotations/panoptic_val.json", content)
    coco.write_image(tmp_path / "images/val/1.png")
    png = np.zeros((*SIZE, 3))
    png[2:, :, 0], png[0, :, 0] = 7, 9
    coco.write_png(tmp_path / "panoptic_val/1.png", png)
    source = coco_json.open_panoptic(tmp_path, "val")
    fault, area = source.remarks(0)
    assert fault.kind == "empty_segment" and "1 segments without a pixel" in str(fault)
    assert area.kind == "segment_area"
    assert str(area).startswith("Image 1 of") and "(7: 0 for 60)" in str(area)
    assert source[0]["segments"][0].area == 60  # 0 says nothing
    assert source.info.is_thing == (True, False) and source.info.raw_values == (1, 2)
    segments[0]["iscrowd"] = "0"
    coco.write_json(tmp_path / "annotations/panoptic_val.json", content)
    message = coco.message_of(coco_json.open_panoptic, tmp_path, "val")
    assert "iscrowd '0'" in message
