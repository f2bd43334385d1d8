"""PASCAL-Context from its raw layouts.

Each fixture is written as the archives unpack, by code that shares nothing with the
readers; what a raw value should become is written down here by hand.
"""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from raw_layouts import all_values, check, jpeg, png, run

from input_pipeline.info import DataError

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
