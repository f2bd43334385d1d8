"""Folders as users write them, right and wrong."""

import json
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.folder import Folder
from input_pipeline.files import images
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation.export import export_folder
from input_pipeline.survey import read_facts
from mlseg_jax.typing import IGNORE

SIZE = (6, 8)


def _add(root, stem, raw=0, dtype=np.uint8, size=SIZE, split="", suffix="png"):
    """Writes one image and one mask that holds `raw` everywhere."""
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(root / "images" / split / f"{stem}.{suffix}")
    mask = np.full(size, raw, dtype)
    Image.fromarray(mask).save(root / "masks" / split / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    """A folder of 40 examples of three classes, without lists."""
    for index in range(40):
        _add(tmp_path, f"scene_{index:02}", raw=index % 3)
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    return tmp_path


def _message(root, split="train", index=None):
    """Returns the one sentence that opening (or reading) the folder raises."""
    with pytest.raises(DataError) as error:
        folder = Folder(root, split)
        assert index is not None, "construction should have failed"
        folder[index]
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_reads_examples(root):
    (root / "things.txt").write_text("car\n\n")
    folder = Folder(root)
    assert folder.info == DatasetInfo(
        root.name, ("road", "car", "sky"), (False, True, False)
    )
    example = folder[3]
    assert sorted(example) == ["image", "label_map", "name"]
    assert example["image"].shape == (*SIZE, 3)
    assert example["image"].dtype == np.uint8
    assert example["label_map"].dtype == np.int32
    index = int(example["name"].removeprefix("scene_"))
    np.testing.assert_array_equal(example["label_map"], np.full(SIZE, index % 3))
    assert pickle.loads(pickle.dumps(folder))[3]["name"] == example["name"]


def test_hash_split_is_stable(root):
    train, val = Folder(root)._stems, Folder(root, "val")._stems
    assert len(train) + len(val) == 40 and not set(train) & set(val)
    assert val == [s for s in sorted(train + val) if zlib.crc32(s.encode()) % 10 == 0]
    for index in range(40, 60):
        _add(root, f"scene_{index:02}")
    assert set(val) <= set(Folder(root, "val")._stems)
    assert "no split 'test'" in _message(root, "test")


def test_few_images_still_split(tmp_path):
    (tmp_path / "classes.txt").write_text("a")
    _add(tmp_path, "one")
    assert "too few images" in _message(tmp_path)
    _add(tmp_path, "two")
    assert len(Folder(tmp_path)) == len(Folder(tmp_path, "val")) == 1


def test_sub_folders_are_splits(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb")
    _add(tmp_path, "x.1", split="train", suffix="JPG")
    _add(tmp_path, "x.1", raw=1, split="val", suffix="webp")
    (tmp_path / "images" / ".DS_Store").write_text("")
    assert Folder(tmp_path)[0]["name"] == "x.1"
    assert Folder(tmp_path, "val")[0]["label_map"].max() == 1
    assert "only train, val" in _message(tmp_path, "test")
    _add(tmp_path, "loose")
    assert "both images and the folders" in _message(tmp_path)


def test_lists_are_splits(root):
    (root / "train.txt").write_text("scene_02\nscene_01\n\n")
    assert Folder(root)._stems == ["scene_02", "scene_01"]
    assert "no list" in _message(root, "val")
    (root / "val.txt").write_text("scene_03.png\n")
    assert "'scene_03.png', but" in _message(root, "val")
    (root / "val.txt").write_text("scene_03\nscene_03\n")
    assert "twice" in _message(root, "val")
    (root / "val.txt").write_text("\n")
    assert "is empty" in _message(root, "val")


def test_missing_files(tmp_path):
    assert "There is no data folder" in _message(tmp_path / "nowhere")
    assert "no classes.txt" in _message(tmp_path)
    (tmp_path / "classes.txt").write_text("a\n")
    assert "images cannot be listed" in _message(tmp_path)
    (tmp_path / "images").mkdir()
    assert "holds no images" in _message(tmp_path)
    Image.new("RGB", SIZE).save(tmp_path / "images" / "one.jpg")
    assert "masks cannot be listed" in _message(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "train.txt").write_text("one")
    message = _message(tmp_path)
    assert "one.jpg has no mask" in message and "masks/one.png" in message


def test_missing_masks_are_counted(root):
    for stem in Folder(root)._stems[:3]:
        (root / "masks" / f"{stem}.png").unlink()
    assert "nor have 2 others; add" in _message(root)


def test_two_images_of_one_stem(root):
    Image.new("RGB", SIZE).save(root / "images" / "scene_00.jpg")
    assert "share the stem 'scene_00'" in _message(root)


def test_wrong_class_lines(root):
    path = root / "classes.txt"
    path.write_text("road\ncar\nroad\n")
    assert "Lines 1 and 3" in _message(root) and "'road'" in _message(root)
    path.write_text("road\n\ncar\n")
    assert "Line 2" in _message(root)
    path.write_text("\n \n")
    assert "is empty" in _message(root)
    path.write_bytes("straße".encode("latin-1"))
    assert "UTF-8" in _message(root)
    path.write_text("\n".join(map(str, range(65_536))))
    assert "65536 lines" in _message(root)
    path.write_text("road\ncar\nsky")
    (root / "things.txt").write_text("cars\n")
    assert "'cars', which is no class" in _message(root)
    (root / "classes.json").write_text("{}")
    assert "both classes.txt and classes.json" in _message(root)


def test_byte_order_mark_and_windows_lines(root):
    (root / "classes.txt").write_bytes("\ufeffroad\r\ncar\r\nHauptstraße\r\n".encode())
    assert Folder(root).info.class_names == ("road", "car", "Hauptstraße")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": "a"', "not valid JSON"),
        ('["a"]', "must map raw values"),
        ('"a"', "must map raw values"),
        ('{"road": "0"}', "raw value 'road'"),
        ('{"-1": "a"}', "raw value '-1'"),
        ('{"65536": "a"}', "raw value '65536'"),
        ('{"1": "a", "1": "b"}', "raw value 1 twice"),
        ('{"1": {"name": "a"}}', "the raw value 1 the name"),
        ('{"1": ""}', "the raw value 1 the name"),
        ('{"1": null}', "names 0 classes"),
        ("{}", "names 0 classes"),
    ],
)
def test_wrong_class_table(root, text, message):
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(text)
    assert message in _message(root)


def test_class_table(tmp_path):
    table = {"300": "sky", "7": "road", "0": None, "9": "ignore", "8": "road"}
    (tmp_path / "classes.json").write_text(json.dumps(table | {"11": "car"}))
    (tmp_path / "train.txt").write_text("a\nb")
    _add(tmp_path, "a", dtype=np.uint16)
    _add(tmp_path, "b", dtype=np.uint8, raw=255)
    raw = np.array([[0, 7, 8, 9, 11, 300]], np.uint16).repeat(6, 0)
    Image.fromarray(raw).save(tmp_path / "masks" / "a.png")
    Image.new("RGB", (6, 6)).save(tmp_path / "images" / "a.png")
    folder = Folder(tmp_path)
    assert folder.info.class_names == ("road", "car", "sky")
    np.testing.assert_array_equal(
        folder[0]["label_map"][0], [IGNORE, 0, 0, IGNORE, 1, 2]
    )
    assert "holds the value 255" in _message(tmp_path, index=1)


@pytest.mark.parametrize(
    ("num_classes", "dtype", "raw", "expected"),
    [
        (3, np.uint8, 255, IGNORE),
        (255, np.uint8, 254, 254),
        (256, np.uint8, 255, 255),
        (255, np.uint16, 254, 254),
        (255, np.uint16, 255, None),
        (256, np.uint16, 255, 255),
        (257, np.uint16, 256, 256),
        (257, np.uint16, 65_535, IGNORE),
        (60_001, np.uint16, 60_000, 60_000),
        (3, np.uint8, 3, None),
    ],
)
def test_raw_values(tmp_path, num_classes, dtype, raw, expected):
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(num_classes))))
    (tmp_path / "train.txt").write_text("a")
    _add(tmp_path, "a", raw=raw, dtype=dtype)
    if expected is None:
        message = _message(tmp_path, index=0)
        assert f"masks/a.png holds the value {raw} (48 pixels" in message
    else:
        assert np.unique(Folder(tmp_path)[0]["label_map"]) == [expected]


def test_palette_mask(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    (tmp_path / "train.txt").write_text("a")
    _add(tmp_path, "a")
    indices = np.zeros(SIZE, np.uint8)
    indices[2:], indices[4:] = 2, 255
    mask = Image.fromarray(indices, mode="P")
    mask.putpalette([200, 100, 50] * 256)
    mask.save(tmp_path / "masks" / "a.png")
    expected = np.where(indices == 255, IGNORE, indices.astype(np.int32))
    folder = Folder(tmp_path)
    np.testing.assert_array_equal(folder[0]["label_map"], expected)
    # The limit on pixels holds here, too, and is no end of a survey.
    small = Folder(tmp_path, options=images.ReadOptions(max_pixels=9))
    assert folder.palette(0) == dict.fromkeys((0, 2, 255), (200, 100, 50))
    folder.palette = small.palette
    assert "data.max_pixels is 9;" in str(read_facts(folder, 0).fault)


def test_colour_mask(root):
    for path in (root / "masks").iterdir():
        Image.new("RGB", SIZE[::-1]).save(path)
    assert "colour picture" in _message(root, index=0)


def test_sizes_agree_after_rotation(tmp_path):
    (tmp_path / "classes.txt").write_text("a")
    (tmp_path / "train.txt").write_text("a")
    _add(tmp_path, "a")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png", exif=exif)
    message = _message(tmp_path, index=0)
    assert "8x6" in message and "6x8 once turned as its EXIF says" in message
    Image.new("L", SIZE).save(tmp_path / "masks" / "a.png")
    assert Folder(tmp_path)[0]["image"].shape == (8, 6, 3)
    Image.new("L", (5, 5)).save(tmp_path / "masks" / "a.png")
    message = _message(tmp_path, index=0)
    assert "5x5" in message and "6x8" in message and "EXIF" not in message


class _Source:
    """Two noisy examples in memory, with ids around the limits of 8 bits."""

    def __init__(self, num_classes, name="{}"):
        names = tuple(f"class {i}" for i in range(num_classes))
        things = tuple(i % 2 == 0 for i in range(num_classes))
        self.info = DatasetInfo("fake", names, things)
        self._name = name

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        ids = rng.integers(IGNORE, self.info.num_classes, SIZE, np.int32)
        ids[0, :2] = self.info.num_classes - 1, IGNORE
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        return {"image": image, "label_map": ids, "name": self._name.format(index)}


@pytest.mark.parametrize("num_classes", [255, 256, 300])
def test_export_and_read_back(tmp_path, num_classes, capsys):
    source = _Source(num_classes, "video/{}")
    root = tmp_path / "out"
    export_folder({"train": source, "val": source}, root, image_format="png")
    assert "val: wrote 2 of 2" in capsys.readouterr().out
    for split in ("train", "val"):
        folder = Folder(root, split)
        assert folder.info.class_names == source.info.class_names
        assert folder.info.is_thing == source.info.is_thing
        for index in range(2):
            example, expected = folder[index], source[index]
            assert example["name"] == f"video_{index}"
            np.testing.assert_array_equal(example["image"], expected["image"])
            np.testing.assert_array_equal(example["label_map"], expected["label_map"])


def test_export_as_jpeg(tmp_path):
    export_folder({"train": _Source(3)}, tmp_path, progress=lambda *_: None)
    assert images.read_image(tmp_path / "images/train/0.jpg").shape == (*SIZE, 3)


def test_export_refuses(tmp_path):
    other = _Source(4)
    with pytest.raises(DataError, match="different classes"):
        export_folder({"train": _Source(3), "val": other}, tmp_path / "a")
    with pytest.raises(DataError, match="already taken"):
        export_folder({"train": _Source(3, "same")}, tmp_path / "b")
    other.info = DatasetInfo("fake", ("a", "a"), (False, False))
    with pytest.raises(DataError, match="class named 'a'"):
        export_folder({"train": other}, tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="not an empty folder"):
        export_folder({"train": _Source(3)}, tmp_path)
    with pytest.raises(ValueError, match="Image format"):
        export_folder({"train": _Source(3)}, tmp_path / "d", image_format="gif")
    with pytest.raises(ValueError, match="no sources"):
        export_folder({}, tmp_path / "d")
