"""PASCAL-Context, ADE20K, ADE20K-Full and COCO-Stuff from their raw layouts.

Each fixture is written as the archives unpack, by code that shares nothing with the
readers; what a raw value should become is written down here by hand.
"""

import json
import pickle

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from configs import segmenter
from input_pipeline.datasets import ade20k_full, names
from input_pipeline.datasets import open as open_module
from input_pipeline.info import DataError
from input_pipeline.preparation import builders, prepare, prepared

# COCO ids that are used; class ids count them.
COCO_IDS = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
    *range(72, 83), *range(84, 91), *range(92, 183),
]  # fmt: skip


def run(name, manual, out):
    path = prepare.prepare(name, manual, out, num_workers=0, allow_incomplete=True)
    splits = prepared.tfds.builder_from_directory(path).info.splits
    return {split: prepared.Prepared(path, split) for split in splits}


def jpeg(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def all_values(values):
    """A picture that holds each value, and 0 or more of the first to fill it."""
    array = np.full((12, -(-len(values) // 12)), values[0])
    array.ravel()[: len(values)] = values
    return array


def check(source, name, raw, class_of):
    """Compares pixel by pixel with a table raw value -> class id."""
    examples = {example["name"]: example for example in source}
    label_map = examples[name]["label_map"]
    assert label_map.shape == raw.shape == examples[name]["image"].shape[:2]
    for position, value in np.ndenumerate(raw):
        assert label_map[position] == class_of[int(value)], (position, value)


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ade20k", 150, {0: "wall", 12: "person", 149: "flag", 114: "tent"}),
        ("ade20k_full", 847, {0: "wall", 2: "sky", 500: "cat", 845: "towel rail"}),
        ("coco_stuff", 171, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("pascal_context/60", 60, {0: "background", 1: "aeroplane", 59: "wood"}),
        ("pascal_context/59", 59, {0: "aeroplane", 36: "person", 58: "wood"}),
    ],
)
def test_class_names(tmp_path, name, count, some):
    info = builders.make_builder(name, tmp_path).class_info()
    assert info.num_classes == len(set(info.class_names)) == count
    assert {i: info.class_names[i] for i in some} == some
    assert all(text and text == text.strip() for text in info.class_names)


def test_things_are_as_many_as_published(tmp_path):
    def things(name):
        return sum(builders.make_builder(name, tmp_path).class_info().is_thing)

    assert things("ade20k") == 100 and things("coco_stuff") == 80
    assert things("pascal_context/60") == things("pascal_context/59") == 20
    ids = names.read_numbers("ade20k_full_object_ids")
    assert len(set(ids)) == 847 and min(ids) == 6 and max(ids) == 3156


def make_ade(root):
    raw = all_values(list(range(151)))
    for folder, stem in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        jpeg(root / "images" / folder / f"{stem}.jpg", raw.shape)
        png(root / "annotations" / folder / f"{stem}.png", raw)
    return raw


def test_ade20k(tmp_path):
    raw = make_ade(tmp_path / "raw" / "ADEChallengeData2016")
    sources = run("ade20k", tmp_path / "raw", tmp_path / "out")
    class_of = {0: -1} | {i: i - 1 for i in range(1, 151)}
    check(sources["train"], "ADE_train_1", raw, class_of)
    check(sources["val"], "ADE_val_1", raw, class_of)


def test_ade20k_with_defects(tmp_path):
    root = tmp_path / "raw"
    make_ade(root)
    with pytest.raises(
        DataError, match=r"1 of 20,210 train .* 1 of 2,000 val examples"
    ):
        prepare.prepare("ade20k", root, tmp_path / "out", num_workers=0)
    mask = root / "annotations" / "training" / "ADE_train_1.png"
    good = mask.read_bytes()
    for value in (151, 255):
        png(mask, np.full((12, 13), value))
        with pytest.raises(
            DataError, match=rf"ADE_train_1\.png holds the value {value}"
        ):
            run("ade20k", root, tmp_path / f"{value}")
    png(mask, np.zeros((12, 13, 3)))
    with pytest.raises(DataError, match="colour picture"):
        run("ade20k", root, tmp_path / "colour")
    palette = Image.fromarray(np.full((12, 13), 7, np.uint8), "P")
    palette.putpalette([255, 0, 0] * 256)
    palette.save(mask)
    source = run("ade20k", root, tmp_path / "palette")["train"]
    assert (source[0]["label_map"] == 6).all()
    mask.write_bytes(good[:50])
    with pytest.raises(DataError, match=r"ADE_train_1\.png is damaged"):
        run("ade20k", root, tmp_path / "damaged")
    mask.unlink()
    with pytest.raises(DataError, match=r"There is no file .*ADE_train_1\.png"):
        run("ade20k", root, tmp_path / "missing")
    with pytest.raises(DataError, match="holds no annotations"):
        run("ade20k", root / "images", tmp_path / "elsewhere")


# Object ids of ADE20K_2021_17_01 and the classes that MaskFormer gives them.
OBJECTS = {
    2978: 0, 312: 1, 2420: 2, 6: 263, 255: -1, 256: -1, 254: -1, 0: -1, 1: -1,
    3156: 358, 3148: 846, 2826: 845, 437: 793, 1088: 402, 3687: -1, 2043: 839,
    266: 61, 10: 210,
}  # fmt: skip


def write_objects(path, ids):
    ids = np.asarray(ids)
    red = ids // 256 * 10 + ids % 7  # The rest of R // 10 has no meaning.
    png(path, np.stack([red, ids % 256, ids % 5], axis=-1))


def make_published_ade_full(root, *, extra=None, protocol=4):
    """Writes pictures and the index, as numpy arrays and lists in a dict."""
    ids = all_values(list(OBJECTS))
    big = np.kron(all_values([2978, 312]), np.ones((60, 400), int))  # 720x400
    places = {
        "ADE_train_00000001.jpg": ("training/urban/street", ids),
        "ADE_frame_00000002.jpg": ("training/home_or_hotel/bedroom", big),
        "ADE_val_00000001.jpg": ("validation/nature_landscape/field", ids),
    }
    for name, (folder, picture) in places.items():
        file = root / "images" / "ADE" / folder / name
        jpeg(file, picture.shape)
        write_objects(file.with_name(name.replace(".jpg", "_seg.png")), picture)
    index = {
        "filename": list(places),
        "folder": [f"ADE20K_2021_17_01/images/ADE/{f}" for f, _ in places.values()],
        "objectPresence": np.zeros((3, 4), np.int64),
        "scene": ["/street", "/bedroom", "/field"],
        "typeset": np.array(["train", "train", "val"], dtype=object),
        "objectcounts": np.float64(3),
    } | (extra or {})
    (root / "index_ade20k.pkl").write_bytes(pickle.dumps(index, protocol))
    return ids, big


def test_ade20k_full_as_published(tmp_path):
    ids, big = make_published_ade_full(tmp_path / "raw" / "ADE20K_2021_17_01")
    sources = run("ade20k_full", tmp_path / "raw", tmp_path / "out")
    assert [len(sources[s]) for s in ("train", "val")] == [2, 1]
    check(sources["train"], "ADE_train_00000001", ids, OBJECTS)
    check(sources["val"], "ADE_val_00000001", ids, OBJECTS)


def test_ade20k_full_is_scaled_down_as_by_maskformer(tmp_path):
    root = tmp_path / "raw"
    values = np.random.default_rng(0).choice(list(OBJECTS), (40, 50))
    raw = cv2.resize(values.astype(np.int32), (811, 613), interpolation=0)
    make_published_ade_full(root)
    file = (
        root / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_00000001"
    )
    jpeg(file.with_suffix(".jpg"), raw.shape)
    write_objects(file.with_name(f"{file.name}_seg.png"), raw)
    source = run("ade20k_full", root, tmp_path / "out")["train"]
    example = next(e for e in source if e["name"] == "ADE_train_00000001")
    # Short side 512, long side round(811 / 613 * 512) = 677; the pixel at the floor.
    assert example["image"].shape == (512, 677, 3)
    rows = [int(y * (613 / 512)) for y in range(512)]
    columns = [int(x * (811 / 677)) for x in range(677)]
    check(iter([example]), "ADE_train_00000001", raw[np.ix_(rows, columns)], OBJECTS)


def test_ade20k_full_index_cannot_run_code_or_leave_its_folder(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("owned",)

    root = tmp_path / "raw"
    make_published_ade_full(root, extra={"x": Evil()})
    with pytest.raises(DataError, match=r"no plain table .* asks for builtins.print\)"):
        run("ade20k_full", root, tmp_path / "out")
    make_published_ade_full(root, extra={"folder": ["../../x"] * 3})
    with pytest.raises(DataError, match="no path inside"):
        run("ade20k_full", root, tmp_path / "out")
    make_published_ade_full(root, extra={"folder": []})
    with pytest.raises(DataError, match="no folder for each file"):
        run("ade20k_full", root, tmp_path / "out")
    (root / "index_ade20k.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(DataError, match="is damaged or is no plain table"):
        run("ade20k_full", root, tmp_path / "out")
    for protocol in (2, 4, 5):
        make_published_ade_full(root, protocol=protocol)
        files = ade20k_full.read_index(root / "index_ade20k.pkl")
        assert [name for _, name in files][-1] == "ADE_val_00000001.jpg"
    next(root.rglob("ADE_val*_seg.png")).unlink()
    with pytest.raises(DataError, match=r"no file .*ADE_val_00000001_seg\.png"):
        run("ade20k_full", root, tmp_path / "out")


@pytest.mark.parametrize("layout", ["maskformer", "rankseg"])
def test_ade20k_full_from_tiffs(tmp_path, layout):
    raw = all_values([*range(847), 65_535]).astype(np.uint16)
    places = {
        "maskformer": "ADE20K_2021_17_01/{kind}_detectron2/{long}",
        "rankseg": "ade20k_full/{short}/{one}",
    }
    for short, long in (("train", "training"), ("val", "validation")):
        for kind, one, suffix in (
            ("images", "image", "jpg"),
            ("annotations", "label", "tif"),
        ):
            folder = places[layout].format(kind=kind, one=one, short=short, long=long)
            file = tmp_path / "raw" / folder / f"ADE_{short}_1.{suffix}"
            jpeg(file.with_suffix(".jpg") if suffix == "jpg" else file, raw.shape)
            if suffix == "tif":
                Image.fromarray(raw).save(file)
    sources = run("ade20k_full", tmp_path / "raw", tmp_path / "out")
    class_of = {i: i for i in range(847)} | {65_535: -1}
    for split in ("train", "val"):
        check(sources[split], f"ADE_{split}_1", raw, class_of)
    for value in (847, 65_534):
        raw[0, 0] = value
        for file in (tmp_path / "raw").rglob("*.tif"):
            Image.fromarray(raw).save(file)
        with pytest.raises(DataError, match=rf"\.tif holds the value {value} \(1 "):
            run("ade20k_full", tmp_path / "raw", tmp_path / "bad")


def make_coco_10k(root, raw):
    for split, number in (("train", 77), ("test", 9)):
        stem = f"COCO_train2014_{number:012d}"
        jpeg(root / "images" / f"{stem}.jpg", raw.shape)
        (root / "annotations").mkdir(exist_ok=True)
        scipy.io.savemat(
            root / "annotations" / f"{stem}.mat",
            {
                "S": raw.astype(np.uint16),
                "regionLabelsStuff": np.arange(4),
                "names": ["a"],
            },
            do_compression=True,
        )
        (root / "imageLists").mkdir(exist_ok=True)
        (root / "imageLists" / f"{split}.txt").write_text(f"{stem}\n")


def test_coco_stuff_10k(tmp_path):
    assert len(COCO_IDS) == 171
    root, raw = tmp_path / "raw", all_values([0, *COCO_IDS])
    make_coco_10k(root, raw)
    sources = run("coco_stuff", root, tmp_path / "out")  # 10k is the first variant.
    class_of = {0: -1} | {raw: i for i, raw in enumerate(COCO_IDS)}
    assert (class_of[1], class_of[13], class_of[90], class_of[92]) == (0, 11, 79, 80)
    check(sources["train"], "COCO_train2014_000000000077", raw, class_of)
    check(sources["val"], "COCO_train2014_000000000009", raw, class_of)
    for unused in (12, 83, 91, 183, 255, 256):
        make_coco_10k(root, np.full((3, 4), unused))
        with pytest.raises(
            DataError, match=rf"\.mat holds the value {unused} .*version"
        ):
            run("coco_stuff/10k", root, tmp_path / "unused")
        builders_dir = tmp_path / "unused"
        for plan in builders_dir.rglob("plan.json"):
            plan.unlink()
    mat = root / "annotations" / "COCO_train2014_000000000009.mat"
    make_coco_10k(root, raw)
    scipy.io.savemat(mat, {"S": raw + 0.5})
    with pytest.raises(DataError, match="no matrix of whole numbers"):
        run("coco_stuff/10k", root, tmp_path / "half")
    scipy.io.savemat(mat, {"T": raw})
    with pytest.raises(DataError, match="has no matrix S"):
        run("coco_stuff/10k", root, tmp_path / "a")
    mat.write_bytes(mat.read_bytes()[:150])
    with pytest.raises(DataError, match=r"009\.mat is damaged"):
        run("coco_stuff/10k", root, tmp_path / "b")
    mat.unlink()
    with pytest.raises(DataError, match=r"There is no file .*009\.mat"):
        run("coco_stuff/10k", root, tmp_path / "c")


def test_coco_stuff_10k_converted_by_mmsegmentation(tmp_path):
    raw = all_values(list(range(172)))
    for folder in ("train2014", "test2014"):
        jpeg(tmp_path / "raw" / "images" / folder / "COCO_1.jpg", raw.shape)
        png(tmp_path / "raw" / "annotations" / folder / "COCO_1_labelTrainIds.png", raw)
    sources = run("coco_stuff/10k", tmp_path / "raw", tmp_path / "out")
    for split in ("train", "val"):
        check(sources[split], "COCO_1", raw, {i: i - 1 for i in range(172)})


@pytest.mark.parametrize("masks", ["annotations", "stuffthingmaps", "converted"])
def test_coco_stuff_164k(tmp_path, masks):
    root = tmp_path / "raw"
    if masks == "converted":
        values, class_of = [255, *range(171)], {i: i for i in range(171)}
    else:  # One less than the ids of COCO.
        values = [255, *(i - 1 for i in COCO_IDS)]
        class_of = {raw - 1: i for i, raw in enumerate(COCO_IDS)}
    raw = all_values(values)
    for split in ("train2017", "val2017"):
        images = root if masks == "stuffthingmaps" else root / "images"
        jpeg(images / split / "000000000139.jpg", raw.shape)
        folder = "annotations" if masks == "converted" else masks
        if masks != "stuffthingmaps":
            converted = np.full(raw.shape, 3) if masks == "annotations" else raw
            png(root / folder / split / "000000000139_labelTrainIds.png", converted)
        if masks != "converted":
            png(root / folder / split / "000000000139.png", raw)
    sources = run("coco_stuff/164k", root, tmp_path / "out")
    for split in ("train", "val"):
        check(sources[split], "000000000139", raw, class_of | {255: -1})


DETAIL = {0: 0, 2: 1, 9: 2, 18: 3, 31: 8, 284: 37, 296: 39, 427: 55, 458: 59}


def run_lengths(mask, compressed=True):
    if compressed:
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    edges = np.flatnonzero(np.diff(flat))
    return {
        "size": list(mask.shape),
        "counts": np.diff([0, *edges, mask.size]).tolist(),
    }


def make_detail(root, *, json_at="VOCdevkit/VOC2010"):
    """Regions that overlap: later ones lie on top, and what is left is background."""
    raw = np.zeros((9, 11), int)
    regions = []
    for i, category in enumerate([2, 9, 18, 31, 284, 296, 427, 458]):
        mask = np.zeros(raw.shape, bool)
        mask[i : i + 3, i : i + 4] = True
        raw[mask] = category
        regions.append((category, run_lengths(mask, compressed=i % 2 == 0)))
    pictures = [
        ("2008_000001", "train"),
        ("2008_000002", "val"),
        ("2008_000003", "test"),
    ]
    data = {"info": {}, "annos_segmentation": [], "images": [], "annos_joints": []}
    data["categories"] = [{"category_id": i, "name": str(i)} for i in DETAIL]
    for number, (stem, phase) in enumerate(pictures):
        jpeg(root / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{stem}.jpg", raw.shape)
        data["images"].append(
            {
                "file_name": f"{stem}.jpg",
                "image_id": 2008000001 + number,
                "phase": phase,
                "height": raw.shape[0],
                "width": raw.shape[1],
                "date_captured": "31-Dec-2007",
            }
        )
    for category, segmentation in regions:
        for number in range(3):
            data["annos_segmentation"].append(
                {
                    "id": len(data["annos_segmentation"]),
                    "image_id": 2008000001 + number,
                    "category_id": category,
                    "segmentation": segmentation,
                    "iscrowd": 0,
                    "area": 12,
                    "parts": [],
                }
            )
    (root / json_at / "trainval_merged.json").write_text(json.dumps(data))
    return raw, data


@pytest.mark.parametrize("json_at", [".", "VOCdevkit/VOC2010"])
def test_pascal_context_from_detail(tmp_path, json_at):
    raw, _ = make_detail(tmp_path / "raw", json_at=json_at)
    assert set(raw.ravel()) == set(DETAIL)
    sources = run("pascal_context", tmp_path / "raw", tmp_path / "out")
    assert set(sources) == {"train", "val"}
    check(sources["train"], "2008_000001", raw, DETAIL)
    sources = run("pascal_context/59", tmp_path / "raw", tmp_path / "out")
    check(sources["val"], "2008_000002", raw, {k: v - 1 for k, v in DETAIL.items()})


def test_pascal_context_from_detail_with_defects(tmp_path):
    root = tmp_path / "raw"
    _, data = make_detail(root)
    path = root / "VOCdevkit" / "VOC2010" / "trainval_merged.json"

    def expect(match, out):
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=match):
            run("pascal_context", root, tmp_path / out)

    region = data["annos_segmentation"][0]
    region["category_id"] = 3
    expect(r"image 2008_000001\.jpg\) has a region of the category 3,", "category")
    region["category_id"] = 2
    good, region["segmentation"] = (
        region["segmentation"],
        {"size": [9, 11], "counts": [200]},
    )
    expect("overrun", "overrun")
    region["segmentation"] = {"size": [11, 9], "counts": [99]}
    expect("swapped", "swapped")
    region["segmentation"] = good
    data["images"][0]["file_name"] = "../../../secret.jpg"
    expect("no path inside", "outside")
    data["images"][0]["file_name"] = "2008_000009.jpg"
    expect(r"no file .*2008_000009\.jpg", "missing")
    del data["annos_segmentation"]
    expect("not the JSON of PASCAL in Detail", "other")
    path.unlink()
    with pytest.raises(DataError, match="neither trainval_merged.json nor"):
        run("pascal_context", root, tmp_path / "none")


@pytest.mark.parametrize("variant", ["60", "59"])
def test_pascal_context_converted(tmp_path, variant):
    root, raw = tmp_path / "raw" / "VOCdevkit" / "VOC2010", all_values(list(range(60)))
    for split, stem in (("train", "2008_1"), ("val", "2008_2")):
        jpeg(root / "JPEGImages" / f"{stem}.jpg", raw.shape)
        png(root / "SegmentationClassContext" / f"{stem}.png", raw)
        lists = root / "ImageSets" / "SegmentationContext"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"{stem}\n")
    jpeg(root / "JPEGImages" / "2008_no_mask.jpg", raw.shape)
    sources = run(f"pascal_context/{variant}", tmp_path / "raw", tmp_path / "out")
    shift = 60 - int(variant)
    for split, stem in (("train", "2008_1"), ("val", "2008_2")):
        check(sources[split], stem, raw, {i: i - shift for i in range(60)})
    png(root / "SegmentationClassContext" / "2008_1.png", np.full(raw.shape, 60))
    with pytest.raises(DataError, match="holds the value 60"):
        run(f"pascal_context/{variant}", tmp_path / "raw", tmp_path / "bad")


def test_prepared_data_sets_open_by_configuration(tmp_path):
    make_ade(tmp_path / "raw")
    data = segmenter.get_config("dataset=ade20k").data
    with pytest.raises(DataError, match="add --config.data.path="):
        open_module.open_dataset(data, train=True)
    data.path = str(tmp_path / "out")
    with pytest.raises(DataError, match="prepare --dataset=ade20k --manual_dir"):
        open_module.open_dataset(data, train=True)
    run("ade20k", tmp_path / "raw", tmp_path / "out")
    assert open_module.open_dataset(data, train=True)[0]["name"] == "ADE_train_1"
    assert open_module.open_dataset(data, train=False)[0]["name"] == "ADE_val_1"
