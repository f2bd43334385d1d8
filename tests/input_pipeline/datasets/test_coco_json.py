"""Anyone's own COCO and LVIS JSON."""

import pickle

import coco_fixtures as coco
import numpy as np
import pytest

from input_pipeline.datasets import coco_format, coco_json
from mlseg_jax.typing import IGNORE

SIZE = coco.SIZE
HUGE = 300  # More classes than 8 bits hold.


def _file(**changes):
    """Image 1: a big sky in front of a small bird in the file, and a crowd; 2: none."""
    annotations = [
        {"category_id": 900, "segmentation": coco.rle(coco.box(0, 0, 8, 8))},
        {"category_id": 4, "segmentation": coco.polygon(2, 2, 4, 4)},
        {"category_id": 5, "segmentation": coco.rle(coco.box(3, 3, 8, 10), False),
         "iscrowd": 1},
        {"category_id": 6, "segmentation": coco.rle(coco.box(0, 6, 2, 8))},
    ]  # fmt: skip
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
            for i in (1, 2)
        ],
        "annotations": [
            {"id": 10 + i, "image_id": 1, "iscrowd": 0, "bbox": [0] * 4} | a
            for i, a in enumerate(annotations)
        ],
        "categories": [{"id": 900, "name": " sky"}, {"id": 6, "name": "sun"}]
        + [{"id": i, "name": f"c{i}"} for i in range(300, 300 + HUGE)]
        + [{"id": 5, "name": "crowd"}, {"id": 4, "name": "bird"}],
    } | changes


@pytest.fixture
def root(tmp_path):
    coco.write_json(tmp_path / "annotations/instances_val.json", _file())
    for i in (1, 2):
        coco.write_image(tmp_path / f"images/val/{i}.png")
    return tmp_path


def test_smallest_on_top(root):
    source = coco_json.open_coco_json(root, "val")
    assert len(source) == 2 and source.info.num_classes == HUGE + 4
    assert source.info.class_names[:3] == ("bird", "crowd", "sun")
    sky = HUGE + 3
    assert source.info.class_names[sky] == "sky" and all(source.info.is_thing)
    expected = np.full(SIZE, IGNORE)
    expected[3:8, 3:10] = 1  # The crowd is behind everything.
    expected[0:8, 0:8] = sky
    expected[2:4, 2:4], expected[0:2, 6:8] = 0, 2
    example = source[0]
    np.testing.assert_array_equal(example["label_map"], expected)
    assert example["label_map"].dtype == example["instance_map"].dtype == np.int32
    expected = np.zeros(SIZE)
    expected[3:8, 3:10] = IGNORE
    expected[0:8, 0:8] = 1
    expected[2:4, 2:4], expected[0:2, 6:8] = 2, 4
    np.testing.assert_array_equal(example["instance_map"], expected)
    assert example["name"] == "1" and example["image"].shape == (*SIZE, 3)
    assert (source[1]["label_map"] == IGNORE).all()
    assert pickle.loads(pickle.dumps(source))[0]["name"] == "1"


def test_order_of_the_file_and_background(root):
    source = coco_json.open_coco_json(
        root, "val", paint_order="file", background="rest"
    )
    assert source.info.class_names[-1] == "rest" and not source.info.is_thing[-1]
    sky, rest = HUGE + 3, HUGE + 4
    expected = np.full(SIZE, rest)
    expected[3:8, 3:10] = 1
    expected[0:8, 0:8] = sky
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    assert (source[1]["label_map"] == rest).all()
    with pytest.raises(ValueError, match="Paint order"):
        coco_json.open_coco_json(root, "val", paint_order="size")


def test_label_schema(root):
    schema = {str(i): "other" for i in range(300, 300 + HUGE)}
    schema |= {"4": "animal", "5": None, "6": "heaven", "900": "heaven"}
    coco.write_json(root / "classes.json", schema)
    source = coco_json.open_coco_json(root, "val")
    assert source.info.class_names == ("animal", "heaven", "other")
    label_map, instance_map = source[0]["label_map"], source[0]["instance_map"]
    assert (label_map[:2, :8] == 1).all() and label_map[2, 2] == 0
    assert label_map[5, 9] == instance_map[5, 9] == IGNORE
    assert instance_map[0, 0] == 1 and instance_map[0, 7] == 4
    del schema["6"]
    coco.write_json(root / "classes.json", schema)
    assert "does not name the category 6" in coco.message_of(
        coco_json.open_coco_json, root, "val"
    )


@pytest.mark.parametrize("folder", ["images/train2017", "images"])
def test_lvis_names_images_by_address(tmp_path, folder):
    file = _file()
    for image in file["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
        coco.write_image(tmp_path / folder / name)
    coco.write_json(tmp_path / "lvis_v1_val.json", file)
    source = coco_json.open_coco_json(tmp_path, "val")
    assert source[0]["name"] == "train2017/1"


def test_roboflow_layout(tmp_path):
    coco.write_json(tmp_path / "train/_annotations.coco.json", _file())
    coco.write_image(tmp_path / "train/1.png")
    assert coco_json.open_coco_json(tmp_path, "train")[0]["name"] == "1"


def _message(root, *, index=None, **changes):
    coco.write_json(root / "annotations/instances_val.json", _file(**changes))

    def read():
        source = coco_json.open_coco_json(root, "val")
        assert index is not None, "opening should have failed"
        source[index]

    return coco.message_of(read)


def test_defects_of_the_file(root):
    first, *others = _file()["annotations"]
    image = _file()["images"][0]
    assert 'no list "categories"' in _message(root, categories=None)
    assert 'no "categories"' in _message(root, categories=[], annotations=[])
    assert 'no list "annotations"' in _message(root, annotations={})
    assert 'no list "images"' in _message(root, images=["1.png"])
    assert 'no "images"' in _message(root, images=[], annotations=[])
    for key in ("images", "annotations", "categories"):
        twice = _file()[key]
        assert f'two entries of "{key}" with the id' in _message(
            root, **{key: [*twice, twice[0]]}
        )
    same_file = [image, image | {"id": 2}]
    assert "two images named '1.png'" in _message(root, images=same_file)
    assert "belongs to the image 77, which" in _message(
        root, annotations=[first | {"image_id": 77}]
    )
    assert "has the category 77" in _message(
        root, annotations=[first | {"category_id": 77}]
    )
    assert "has the category [4]" in _message(
        root, annotations=[first | {"category_id": [4]}]
    )
    assert "the id None" in _message(root, images=[{"file_name": "1.png"}])
    assert "needs a whole number" in _message(root, categories=[{"id": 4}])
    names = [{"id": i, "name": "same"} for i in (4, 5, 6, 900)]
    assert "two categories named 'same'" in _message(root, categories=names)
    outside = ("../1.png", "/etc/passwd", "a/../../1.png", "..\\1.png", "C:\\1.png")
    for name in (*outside, "", None, 7, "a\0b"):
        assert "no path inside" in _message(
            root, images=[image | {"file_name": name}]
        ), name
    for width in (None, "10", 0, 10**9):
        assert "has the size" in _message(root, images=[image | {"width": width}])
    path = root / "annotations/instances_val.json"
    for text in ("", "{", "[1]", "[" * 100_000, '{"images": NaN'):
        path.write_text(text)
        coco.message_of(coco_json.open_coco_json, root, "val")
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in coco.message_of(coco_json.open_coco_json, root, "val")
    assert "no JSON of the split 'test'" in coco.message_of(
        coco_json.open_coco_json, root, "test"
    )
    assert "no data folder" in coco.message_of(
        coco_json.open_coco_json, root / "nowhere", "val"
    )


def test_defects_of_an_example(root):
    first = _file()["annotations"][0]
    overrun = {"size": list(SIZE), "counts": [10, 200]}
    message = _message(root, index=0, annotations=[first | {"segmentation": overrun}])
    assert "Annotation 10 of" in message and "instances_val.json" in message
    for bad in ("x", None, [["a"] * 6], [[{}]]):
        message = _message(root, index=0, annotations=[first | {"segmentation": bad}])
        assert "Annotation 10 of" in message
    (root / "images/val/2.png").unlink()
    assert "There is no file" in _message(root, index=1)
    coco.write_image(root / "images/val/2.png", (9, 9))
    assert "is 9x9 pixels" in _message(root, index=1)


def test_annotations_stay_small(root):
    file = coco_format.read(root / "annotations/instances_val.json")
    annotation = file.annotations[1][1]
    assert "bbox" not in annotation
    assert annotation["segmentation"][0].itemsize == 8


def test_faults_of_the_listing_can_be_reported(tmp_path):
    """A path that leaves its folder, an impossible size, annotations of nothing."""
    content = _file()
    content["images"] += [
        {"id": 3, "file_name": "../../secret.png", "height": 8, "width": 10},
        {"id": 4, "file_name": "4.png", "height": -8, "width": 10},
    ]
    box = coco.polygon(2, 2, 4, 4)
    content["annotations"] += [
        {"id": 50, "image_id": 77, "category_id": 4, "segmentation": box},
        {"id": 51, "image_id": 1, "category_id": 77, "segmentation": box},
    ]
    path = coco.write_json(tmp_path / "a.json", content)
    for name in ("1", "2"):
        coco.write_image(tmp_path / f"{name}.png")
    faults = []
    _, raws = coco_json.list_examples(path, tmp_path, report=faults.append)
    assert [raw.key for raw in raws] == ["1", "2"]
    said = ["image 77", "category 77", "'../../secret.png'", "10x-8"]
    assert len(faults) == 4
    assert all(s in str(f) for s, f in zip(said, faults, strict=True))
    assert "image 77" in coco.message_of(coco_json.list_examples, path, tmp_path)
