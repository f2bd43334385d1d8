"""ADE20K and ADE20K-Full from their raw layouts.

Each fixture is written as the archives unpack, by code that shares nothing with the
readers; what a raw value should become is written down here by hand.
"""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image
from raw_layouts import all_values, check, jpeg, png, run

from configs import segmenter
from input_pipeline.datasets import ade20k_full
from input_pipeline.datasets import open as open_module
from input_pipeline.info import DataError
from input_pipeline.preparation import prepare


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
