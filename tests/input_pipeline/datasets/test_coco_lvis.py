"""COCO+LVIS from files in the layouts of LVIS v1 and COCO."""

import pickle

import coco_fixtures as coco
import numpy as np
import pytest

from input_pipeline.datasets import coco_lvis, instances
from input_pipeline.preparation import builders, prepare
from input_pipeline.preparation.prepared import Prepared
from mlseg_jax.typing import IGNORE

SIZE = coco.SIZE
LVIS = [{"id": i, "name": f"lvis_{i}"} for i in range(1203, 0, -1)]
STUFF = [{"id": i, "name": f"stuff_{i}"} for i in range(92, 184)]


def _lvis(images, annotations):
    """images: id by folder; annotations: (image, category, box)."""
    return {
        "images": [
            {
                "id": number,
                "height": SIZE[0],
                "width": SIZE[1],
                "coco_url": f"http://images.cocodataset.org/{folder}/{number:012}.jpg",
            }
            for number, folder in images.items()
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": coco.polygon(*box),
                "area": 1.0,
                "bbox": [0, 0, 1, 1],
            }
            for i, (image, category, box) in enumerate(annotations)
        ],
        "categories": LVIS,
    }


def _stuff(numbers, annotations):
    return {
        "images": [
            {"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n:012}.jpg"}
            for n in numbers
        ],
        "annotations": [
            {
                "id": 10_000_000 + i,
                "image_id": image,
                "category_id": category,
                "segmentation": coco.rle(coco.box(*box)),
                "iscrowd": 0,
            }
            for i, (image, category, box) in enumerate(annotations)
        ],
        "categories": STUFF,
    }


@pytest.fixture
def root(tmp_path):
    """Image 9 in train; 25 (in train2017), 30 and 31 (without anything) in val."""
    lvis = _lvis(
        {9: "train2017", 429995: "train2017"},
        [
            # Two overlapping instances (the first wins), and one class over 255.
            (9, 1203, (0, 0, 4, 4)),
            (9, 5, (2, 2, 6, 6)),
            (429995, 5, (0, 0, 2, 2)),
        ],
    )
    coco.write_json(tmp_path / "annotations/lvis_v1_train.json", lvis)
    lvis = _lvis(
        {25: "train2017", 30: "val2017", 31: "val2017"}, [(25, 1, (0, 0, 1, 1))]
    )
    coco.write_json(tmp_path / "annotations/lvis_v1_val.json", lvis)
    # Columns 0..9: what each stuff class becomes shows in the last rows.
    stuff = [(9, 93, (6, 0, 8, 2)), (9, 98, (6, 1, 8, 4)), (9, 94, (0, 0, 4, 8)),
             (9, 183, (6, 4, 8, 6)), (9, 182, (5, 4, 8, 8)), (9, 110, (6, 8, 7, 10)),
             (9, 181, (7, 8, 8, 10)), (25, 92, (0, 0, 8, 10))]  # fmt: skip
    files = {"train": _stuff([9, 25, 429995], stuff), "val": _stuff([30, 31], [])}
    files["val"] = _stuff([30, 31], [(30, 168, (0, 0, 8, 5))])
    for split, file in files.items():
        coco.write_json(tmp_path / f"annotations/stuff_{split}2017.json", file)
    for name in ("train2017/000000000009", "train2017/000000000025"):
        coco.write_image(tmp_path / f"images/{name}.jpg")
    coco.write_image(tmp_path / "images/val2017/000000000030.jpg")
    return tmp_path


def _expected(blanket, cabinet):
    """Pixel by pixel, by overwriting from the last painter to the first."""
    raw = np.zeros(SIZE, int)
    raw[7:8, 8:10] = 1283  # 181 window-other
    raw[6:7, 8:10] = 1217  # 110 desk-stuff
    raw[5:8, 4:8] = 1284  # 182 wood
    raw[6:8, 4:6] = 0  # 183 other: nothing, but in front of wood
    raw[0:4, 0:8] = 1204  # 94 branch
    raw[6:8, 1:4] = cabinet
    raw[6:8, 0:2] = blanket
    raw[2:6, 2:6] = 5
    raw[0:4, 0:4] = 1203
    return raw - 1


@pytest.mark.parametrize(
    ("variant", "blanket", "cabinet"),
    [("published", 1217, 1283), ("coco_lvis_fix_mapping", 110, 181)],
)
def test_both_mappings(root, variant, blanket, cabinet, tmp_path, monkeypatch):
    monkeypatch.setitem(
        builders.BUILDERS, "coco_lvis", "input_pipeline.datasets.coco_lvis:CocoLvis"
    )
    path = prepare.prepare(
        f"coco_lvis/{variant}", root, tmp_path / "out",
        # In processes, to which the classes must travel too.
        num_workers=2 if variant == "published" else 0, allow_incomplete=True,
        progress=lambda *_: None,
    )  # fmt: skip
    train = Prepared(path, "train")
    assert len(train) == 1  # Image 429995 is left out as ESSNet does.
    example = train[0]
    assert example["name"] == "train2017/000000000009"
    np.testing.assert_array_equal(example["label_map"], _expected(blanket, cabinet))
    val = Prepared(path, "val")
    names = [val[i]["name"] for i in range(len(val))]
    # 31 has no annotation at all.
    assert names == ["train2017/000000000025", "val2017/000000000030"]
    expected = np.full(SIZE, 50 - 1)
    expected[0, 0] = 0
    np.testing.assert_array_equal(val[0]["label_map"], expected)
    assert set(np.unique(val[1]["label_map"])) == {IGNORE, 1108 - 1}
    info = train.info
    assert info.num_classes == 1284 and sum(info.is_thing) == 1203
    assert info.class_names[0] == "lvis_1" and info.class_names[1202] == "lvis_1203"
    assert info.class_names[1203:1205] == ("stuff_94", "stuff_95")
    assert info.class_names[-1] == "stuff_182" and "stuff_98" not in info.class_names


def test_counts_of_a_complete_copy(root, tmp_path):
    builder = coco_lvis.CocoLvis(data_dir=tmp_path / "out", file_format="array_record")
    splits = builder.raw_splits(root)
    message = builders.count_message(builder, splits)
    assert "1 of 100,169 train examples and 2 of 19,808 val examples" in message


def test_mapping_tables():
    published, fixed = coco_lvis.stuff_labels(False), coco_lvis.stuff_labels(True)
    assert np.flatnonzero(published != fixed).tolist() == [93, 98]
    stuff = [i for i in range(92, 183) if i not in coco_lvis.MERGED]
    assert fixed[stuff].tolist() == list(range(1204, 1285))
    assert {i: int(fixed[i]) for i in coco_lvis.MERGED} == coco_lvis.MERGED
    assert fixed[183] == fixed[255] == 0


def test_pickle_keeps_classes(root, tmp_path):
    builder = coco_lvis.CocoLvis(data_dir=tmp_path / "out", file_format="array_record")
    with pytest.raises(RuntimeError, match="raw_splits"):
        builder.class_info()
    builder.raw_splits(root)
    copy = pickle.loads(pickle.dumps(builder))
    assert isinstance(copy, instances.NamedByFiles)
    assert copy.class_info() == builder.class_info()


def test_wrong_files(root, tmp_path):
    builder = coco_lvis.CocoLvis(data_dir=tmp_path / "out", file_format="array_record")
    path = root / "annotations/lvis_v1_train.json"
    file = _lvis({9: "train2017"}, [])
    file["categories"] = [*LVIS, {"id": 1230, "name": "of LVIS v0.5"}]
    coco.write_json(path, file)
    assert "has category 1230 and so is not LVIS v1" in coco.message_of(
        builder.raw_splits, root
    )
    file = _lvis({9: "train2017"}, [(9, 3, (0, 0, 2, 40))])
    coco.write_json(path, file)
    raw = builder.raw_splits(root)["train"][0]
    message = coco.message_of(raw.make_label)
    assert "Annotation 1 of" in message and "outside its image" in message
    file["images"][0]["coco_url"] = "http://x/../passwd"
    coco.write_json(path, file)
    assert "no path inside" in coco.message_of(builder.raw_splits, root)
    path.unlink()
    assert "no file lvis_v1_train.json" in coco.message_of(builder.raw_splits, root)
