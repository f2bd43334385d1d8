"""Shapes of Labelme's files become label maps."""

import base64
import json

import cv2
import numpy as np
import pytest

from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.folder_files import FolderLayout
from input_pipeline.files import labelme
from input_pipeline.info import DataError

LAYOUT = FolderLayout(mask_folder="images", mask_ending=".json")


def folder(path, shapes, classes="background\nroad\ncar\n", **content):
    """A folder of one picture, 10 wide and 8 high."""
    (path / "images").mkdir(exist_ok=True)
    (path / "classes.txt").write_text(classes)
    for stem in ("a", "b"):  # One is kept for evaluation.
        cv2.imwrite(str(path / f"images/{stem}.png"), np.zeros((8, 10, 3), np.uint8))
        content = {"imageHeight": 8, "imageWidth": 10} | content
        text = json.dumps(content | {"shapes": shapes, "imageData": None})
        (path / f"images/{stem}.json").write_text(text)
    return Folder(path, layout=LAYOUT)


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind} | more


def test_shapes_are_drawn_over_one_another(tmp_path):
    patch = cv2.imencode(".png", np.asarray([[0, 255], [255, 255]], np.uint8))[1]
    source = folder(tmp_path, [
        shape("road", [[0, 4], [10, 4], [10, 8], [0, 8]]),
        shape("car", [[8, 6], [4, 2]], "rectangle"),
        shape("car", [[0, 0], [1, 1]], "mask", mask=base64.b64encode(patch).decode()),
        shape("__ignore__", [[8, 0], [10, 0], [10, 2], [8, 2]]),
    ])  # fmt: skip
    expected = np.zeros((8, 10), np.int32)
    expected[4:], expected[2:6, 4:8] = 1, 2
    expected[:2, :2] = [[0, 2], [2, 2]]
    expected[:2, 8:] = -1
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    assert source.palette(0) is None and source.ignored_value(0) is None
    assert source.remarks(0) == []
    # Corners, whatever the type says; a stray click covers nothing.
    corners = [[4, 2], [8, 2], [8, 6], [4, 6]]
    for kind in ("rectangle", "oriented_rectangle", None):
        click = shape("road", [[1, 1], [1, 1]], "rectangle")
        source = folder(tmp_path, [click, shape("car", corners, kind)])
        expected = np.zeros((8, 10), np.int32)
        expected[2:6, 4:8] = 2
        np.testing.assert_array_equal(source[0]["label_map"], expected)
    # A circle of radius 3, and no class for the rest.
    source = folder(tmp_path, [shape("car", [[5, 4], [8, 4]], "circle")], "car\n")
    values, counts = np.unique(source[0]["label_map"], return_counts=True)
    assert values.tolist() == [-1, 0] and abs(counts[1] - 9 * np.pi) < 4


@pytest.mark.parametrize(
    "shapes, content, message",
    [
        ([shape("dog", [[0, 0], [5, 0], [5, 5]])], {}, "label 'dog'.*add the class"),
        ([shape("car", [[0, 0], [5, 0]], "line")], {}, "is a line, which has no area"),
        ([shape("car", [[0, 0], [50, 0], [5, 5]])], {}, "outside its image"),
        ([shape("car", [[0, 0], [5]])], {}, "damaged points"),
        ([shape("car", [[0, 0], [5, np.nan]], "circle")], {}, "damaged points"),
        (
            [shape("car", [[9, 0]], "mask", mask="%")],
            {},
            "Shape 1",
        ),
        ([{"label": "car"}], {}, "no JSON of Labelme"),
        ([], {"imageHeight": 9}, "is 10x9 pixels but"),
        ([], {"imageHeight": None}, "has the size"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, shapes, content, message):
    with pytest.raises(DataError, match=message):
        folder(tmp_path, shapes, **content)[0]


def test_pictures_shapes_and_classes_in_one_folder(tmp_path):
    for stem in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{stem}.png"), np.zeros((8, 10, 3), np.uint8))
    for stem in ("a", "b", "deleted", "notes"):
        (tmp_path / f"{stem}.json").write_text("{}")
    (tmp_path / "classes.json").write_text('{"0": "road"}')
    layout = FolderLayout(image_folder=".", mask_folder=".", mask_ending=".json")
    source = Folder(tmp_path, layout=layout)
    unused = [path.rsplit("/")[-1] for path in source.unused_masks]
    assert unused == ["deleted.json", "notes.json"]
    (tmp_path / "deleted.heic").write_bytes(b"?")
    with pytest.raises(DataError, match="deleted.heic is not read"):
        Folder(tmp_path, layout=layout)


def test_masks_are_drawn_one_by_one():
    bad = shape("car", [[0, 0]], "point")
    content = {"imageHeight": 8, "imageWidth": 10, "shapes": [bad]}
    _, labels, shapes = labelme.shapes_from_bytes(json.dumps(content).encode(), "x")
    assert labels == ["car"]
    with pytest.raises(DataError, match="is a point"):
        next(shapes)
