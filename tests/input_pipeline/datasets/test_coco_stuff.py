"""COCO-Stuff from its raw layouts.

Each fixture is written as the archives unpack, by code that shares nothing with the
readers; what a raw value should become is written down here by hand.
"""

import numpy as np
import pytest
import scipy.io
from raw_layouts import all_values, check, jpeg, png, run

from input_pipeline.info import DataError

# COCO ids that are used; class ids count them.
COCO_IDS = [
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
    *range(72, 83), *range(84, 91), *range(92, 183),
]  # fmt: skip


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
