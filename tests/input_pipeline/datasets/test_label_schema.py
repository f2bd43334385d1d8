"""Class names and raw values as people write them."""

import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.label_schema import read_class_table, read_classes
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE


def _write(root, name, content):
    data = content if isinstance(content, bytes) else content.encode()
    (root / name).write_bytes(data)
    return root


def _message(root):
    with pytest.raises(DataError) as error:
        read_classes(root)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "\r" not in message
    (path,) = root.iterdir()
    path.unlink()
    return message


@pytest.mark.parametrize(
    "content",
    [
        "road\ncar\nsky",
        "road\ncar\nsky\n\n\n",
        "road\r\ncar\r\nsky\r\n",
        "\ufeffroad\r\ncar\r\nsky\r\n\r\n",
        "road\rcar\rsky\r",
        "  road \t\ncar\u00a0\nsky",
    ],
)
def test_line_ends(tmp_path, content):
    classes = read_classes(_write(tmp_path, "classes.txt", content))
    assert classes.names == ("road", "car", "sky")
    assert classes.raw_values == (0, 1, 2)


def test_labels_of_labelme(tmp_path):
    lines = "__ignore__\n_background_\ncar\n"
    classes = read_classes(_write(tmp_path, "classes.txt", lines))
    assert classes.names == ("_background_", "car")
    assert classes.raw_values == (1, 2) and classes.class_of[0] == IGNORE


@pytest.mark.parametrize(
    "bad",
    ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\0", "\t", "\x1b"],
)
def test_control_characters_move_no_class(tmp_path, bad):
    message = _message(_write(tmp_path, "classes.txt", f"a\nb{bad}c\nd\n"))
    assert "Line 2 of" in message and "control character" in message
    table = json.dumps({"0": "a", "1": f"b{bad}c"})
    message = _message(_write(tmp_path, "classes.json", table))
    assert "The raw value 1 of" in message and "control character" in message
    message = _message(
        _write(tmp_path, "labelmap.txt", f"a:1,2,3::\nb{bad}c:4,5,6::\n")
    )
    assert "Line 2 of" in message and "control character" in message


def test_half_a_character_is_no_name(tmp_path):
    message = _message(_write(tmp_path, "classes.json", '{"0": "a\\ud800"}'))
    assert "control character" in message
    message.encode()


def test_files_that_are_no_text(tmp_path):
    utf16 = "road\ncar\n".encode("utf-16")
    assert "save it as UTF-8" in _message(_write(tmp_path, "classes.txt", utf16))
    lines = "__ignore__\n__ignore__\n"
    assert "both say" in _message(_write(tmp_path, "classes.txt", lines))
    assert "no class" in _message(_write(tmp_path, "classes.txt", "__ignore__\n"))
    assert "is empty" in _message(_write(tmp_path, "classes.txt", "\ufeff\r\n\r\n"))
    assert "Line 2" in _message(_write(tmp_path, "classes.txt", "a\n\nb\n"))
    assert "both say 'a'" in _message(_write(tmp_path, "classes.txt", "a\r\na"))


COLOURS = {"#000000": None, "#804080": "road", "#FF0000": "car", "#00ff00": "road"}


def _colours_folder(root, mode="RGB"):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[0], pixels[1], pixels[2, 2] = (128, 64, 128), (0, 255, 0), (255, 0, 0)
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    elif mode == "RGBA":
        picture.putalpha(Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)))
    for kind, made in (("images", Image.new("RGB", (5, 4))), ("masks", picture)):
        (root / kind / "train").mkdir(parents=True)
        made.save(root / kind / "train/a.png")
    expected = np.full((4, 5), IGNORE)
    expected[:2], expected[2, 2] = 0, 1
    return expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_classes_by_colour(tmp_path, mode):
    expected = _colours_folder(tmp_path, mode)
    _write(tmp_path, "classes.json", json.dumps(COLOURS))
    folder = Folder(tmp_path)
    assert folder.info.class_names == ("road", "car")
    assert folder.info.raw_values == ("#804080", "#ff0000")
    label_map = folder[0]["label_map"]
    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, expected)
    assert folder.palette(0) is None
    without = {colour: name for colour, name in COLOURS.items() if name}
    _write(tmp_path, "classes.json", json.dumps(without))
    with pytest.raises(DataError, match="the colour #000000 .9 pixels") as error:
        Folder(tmp_path)[0]
    assert error.value.values == ("#000000",) and error.value.kind == "unmapped"


def test_labelmap_of_cvat(tmp_path):
    expected = _colours_folder(tmp_path)
    _write(
        tmp_path,
        "labelmap.txt",
        "# label:color_rgb:parts:actions\r\n"
        "ignore:0,0,0::\r\nroad:128,64,128::\r\n"
        "car: a red one:255,0,0:wheel,door:drive\r\nroad:0,255,0::\r\n",
    )
    folder = Folder(tmp_path)
    assert folder.info.class_names == ("road", "car: a red one")
    np.testing.assert_array_equal(folder[0]["label_map"], expected)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("labelmap.txt", "road:1,2::\n", "is 'road:1,2::' and not name"),
        ("labelmap.txt", "road:::\n", "and not name:red,green,blue"),
        ("labelmap.txt", "road:1,2,256::\n", "three numbers up to 255"),
        ("labelmap.txt", "a:1,2,3::\nb:1,2,3::\n", "Line 2 of .* stands before"),
        ("labelmap.txt", "# nothing\n", "names 0 classes"),
        ("classes.json", '{"#000000": "a", "1": "b"}', "'1' among colours"),
        ("classes.json", '{"#00000": "a"}', "'#00000', but masks hold"),
        ("classes.json", '{"#aa0000": "a", "#AA0000": "b"}', "#AA0000 twice"),
        ("classes.json", '{"#aa0000": 3}', "the name 3"),
        ("classes.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_tables_that_are_wrong(tmp_path, name, content, sentence):
    _write(tmp_path, name, content)
    with pytest.raises(DataError, match=sentence):
        read_classes(tmp_path)


def test_one_table_a_folder(tmp_path):
    _write(tmp_path, "classes.txt", "a")
    _write(tmp_path, "labelmap.txt", "a:1,2,3::")
    with pytest.raises(DataError, match=r"both classes.txt and labelmap.txt"):
        read_classes(tmp_path)


def test_raw_values_of_joined_classes(tmp_path):
    table = {"9": "road", "7": "car", "8": "road", "3": None}
    _write(tmp_path, "classes.json", json.dumps(table))
    classes = read_class_table(tmp_path / "classes.json")
    assert classes.names == ("car", "road") and classes.raw_values == (7, 8)
