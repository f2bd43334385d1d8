"""VSPW and YouTubeVIS in their layouts, prepared and read back as clips."""

import pickle

import coco_fixtures as coco
import numpy as np
import pytest

from input_pipeline.datasets import vspw, youtube_vis
from input_pipeline.datasets.clips import Clips
from input_pipeline.datasets.videos import PreparedVideos, Video
from input_pipeline.preparation import builders, prepare
from mlseg_jax.typing import IGNORE

SIZE = coco.SIZE


def _prepare(name, root, monkeypatch, **kwargs):
    for row, builder in (("vspw", "vspw:Vspw"),
                         ("youtube_vis", "youtube_vis:YoutubeVis2019")):  # fmt: skip
        monkeypatch.setitem(
            builders.BUILDERS, row, f"input_pipeline.datasets.{builder}"
        )
    return prepare.prepare(
        name, root, root / "out", num_workers=0, allow_incomplete=True,
        progress=lambda *_: None, **kwargs,
    )  # fmt: skip


@pytest.fixture
def vspw_root(tmp_path):
    """Video v1: 5 images, of which 4 have masks, and a mask alone; v2 and v3 of 2."""
    root = tmp_path / "VSPW_480p"
    for video, images, masks in (("1_v", range(5), (0, 1, 3, 4, 9)),
                                 ("2_v", range(2), range(2)),
                                 ("3_v", range(2), range(2))):  # fmt: skip
        for i in images:
            coco.write_image(root / f"data/{video}/origin/{i:08}.jpg", value=i * 40)
        for i in masks:
            raw = np.full(SIZE, [0, 1, 2, 123, 124, 125, 254, 255, i, 7])
            coco.write_png(root / f"data/{video}/mask/{i:08}.png", raw)
    (root / "train.txt").write_text("2_v\n1_v\n\n")
    (root / "val.txt").write_text("3_v")
    return tmp_path


def test_vspw(vspw_root, monkeypatch):
    source = PreparedVideos(_prepare("vspw", vspw_root, monkeypatch), "train")
    assert source.info.num_classes == 124 and sum(source.info.is_thing) == 81
    assert source.info.class_names[0] == "wall"
    assert source.info.class_names[43] == "flag" and source.info.is_thing[43]
    assert source.info.class_names[-1] == "train"
    assert source.videos == (Video("2_v", 0, 2), Video("1_v", 2, 4))
    assert [source[i]["name"] for i in (0, 2, 4)] == [
        "2_v/00000000",
        "1_v/00000000",
        "1_v/00000003",
    ]
    assert sorted(source[0]) == ["image", "label_map", "name"]
    row = [IGNORE, 0, 1, 122, 123, IGNORE, IGNORE, IGNORE]
    for index, last in ((2, IGNORE), (3, 0), (4, 2)):
        expected = np.tile([*row, last, 6], (SIZE[0], 1))
        np.testing.assert_array_equal(source[index]["label_map"], expected)
    clip = source.clip(1, 2, start=1, stride=2)
    assert clip["name"] == "1_v/1" and "instance_map" not in clip
    assert clip["image"].shape == (2, *SIZE, 3) and clip["image"].dtype == np.uint8
    assert clip["label_map"][:, 0, 8].tolist() == [0, 3]
    np.testing.assert_array_equal(clip["image"][1], source[5]["image"])
    # The beginning of a longer clip; and as many frames as there are.
    np.testing.assert_array_equal(source.clip(1, 1)["image"][0], source[2]["image"])
    assert len(source.clip(1)["image"]) == len(source.clip(1, 99)["image"]) == 4
    for kwargs in ({"num_frames": 0}, {"start": 4}, {"stride": 0}, {"start": -1}):
        assert "has 4 frames, so none" in coco.message_of(source.clip, 1, **kwargs)
    with pytest.raises(IndexError):
        source.clip(2)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.videos == source.videos
    clips = Clips(source, 3, 20)
    assert len(clips) == 2 and clips[1]["name"] == "1_v"
    assert clips.draw(1, np.random.default_rng(0))["image"].shape == (3, *SIZE, 3)
    frames = clips[1]["frames"].read([3, 0])
    assert frames["frame_names"] == ("00000004", "00000000")
    np.testing.assert_array_equal(frames["label_map"][0], source[5]["label_map"])


def test_skipped_frames_leave_videos_whole(vspw_root, monkeypatch):
    data = vspw_root / "VSPW_480p/data"
    for name in ("1_v/origin/00000000.jpg", "1_v/origin/00000003.jpg",
                 "2_v/origin/00000001.jpg"):  # fmt: skip
        (data / name).write_bytes(b"broken")
    path = _prepare("vspw", vspw_root, monkeypatch, on_bad_example="skip")
    source = PreparedVideos(path, "train")
    assert source.videos == (Video("2_v", 0, 1), Video("1_v", 1, 2))
    assert source.clip(1)["label_map"][:, 0, 8].tolist() == [0, 3]


def test_vspw_counts_and_defects(vspw_root, tmp_path):
    builder = vspw.Vspw(data_dir=tmp_path / "out", file_format="array_record")
    splits = builder.raw_splits(vspw_root)
    message = builders.count_message(builder, splits)
    assert "6 of 198,244 train examples and 2 of 24,502 val" in message
    path = vspw_root / "VSPW_480p/train.txt"
    for text, expected in (("../x\n", "no name of a folder"), ("1_v\n1_v", "twice"),
                           ("5_v", "no directory")):  # fmt: skip
        path.write_text(text)
        assert expected in coco.message_of(builder.raw_splits, vspw_root)
    path.unlink()
    assert "There is no list" in coco.message_of(builder.raw_splits, vspw_root)


def _youtube_json(tracks):
    """Video 7 of three frames and video 3 of one; tracks: (video, category, masks)."""
    return {
        "videos": [
            {
                "id": number,
                "width": SIZE[1],
                "height": SIZE[0],
                "length": len(frames),
                "file_names": [f"{name}/{frame:05}.jpg" for frame in frames],
            }
            for number, name, frames in ((7, "aa", (0, 5, 10)), (3, "bb", (0,)))
        ],
        "categories": [{"id": i, "name": f"kind_{i}"} for i in range(1, 41)],
        "annotations": [
            {
                "id": i + 1,
                "video_id": video,
                "category_id": category,
                "segmentations": masks,
                "areas": [m and 1 for m in masks],
                "bboxes": [m and [0, 0, 1, 1] for m in masks],
                "iscrowd": int(category == 2),
            }
            for i, (video, category, masks) in enumerate(tracks)
        ],
    }


@pytest.fixture
def youtube_root(tmp_path):
    first = coco.rle(coco.box(0, 0, 4, 4), compressed=False)
    second = coco.rle(coco.box(2, 2, 6, 6))
    tracks = [
        # Track 1 is absent in the second frame, track 2 lies behind it in the third.
        (7, 40, [first, None, first]),
        (7, 1, [None, coco.polygon(2, 2, 6, 6), second]),
        (3, 2, [second]),
    ]
    coco.write_json(tmp_path / "train.json", _youtube_json(tracks))
    file = _youtube_json([])
    del file["annotations"]
    coco.write_json(tmp_path / "valid.json", file)
    for split in ("train", "valid"):
        for name in ("aa/00000", "aa/00005", "aa/00010", "bb/00000"):
            coco.write_image(tmp_path / f"{split}/JPEGImages/{name}.jpg")
    return tmp_path


def test_youtube_vis(youtube_root, monkeypatch):
    path = _prepare("youtube_vis", youtube_root, monkeypatch)
    source = PreparedVideos(path, "train")
    assert source.info.class_names == tuple(f"kind_{i}" for i in range(1, 41))
    assert all(source.info.is_thing)
    assert source.videos == (Video("aa", 0, 3), Video("bb", 3, 1))
    clip = source.clip(0, 3)
    label_map = np.full((3, *SIZE), IGNORE)
    instance_map = np.zeros((3, *SIZE))
    for frame in (1, 2):
        label_map[frame, 2:6, 2:6], instance_map[frame, 2:6, 2:6] = 0, 2
    for frame in (0, 2):
        label_map[frame, :4, :4], instance_map[frame, :4, :4] = 39, 1
    np.testing.assert_array_equal(clip["label_map"], label_map)
    np.testing.assert_array_equal(clip["instance_map"], instance_map)
    assert clip["instance_map"].dtype == np.int32
    crowd = source[3]
    assert crowd["name"] == "bb/00000"
    assert set(np.unique(crowd["instance_map"])) == {IGNORE, 0}
    assert set(np.unique(crowd["label_map"])) == {IGNORE, 1}
    secret = PreparedVideos(path, "val")
    assert len(secret) == 4 and (secret.clip(0)["label_map"] == IGNORE).all()


def test_youtube_vis_defects(youtube_root, tmp_path):
    builder = youtube_vis.YoutubeVis2019(data_dir=tmp_path / "out")

    def message(file):
        coco.write_json(youtube_root / "train.json", file)
        return coco.message_of(builder.raw_splits, youtube_root)

    mask = coco.rle(coco.box(0, 0, 1, 1))
    assert "has 1 segmentations for a video of 3" in message(
        _youtube_json([(7, 1, [mask])])
    )
    assert "belongs to the video 9" in message(_youtube_json([(9, 1, [mask])]))
    file = _youtube_json([])
    assert 'no list "annotations"' in message(file | {"annotations": None})
    assert "has 39 categories" in message(file | {"categories": file["categories"][1:]})
    file["videos"][0]["file_names"] = []
    assert 'has no "file_names"' in message(file)
    wrong = {"size": [SIZE[1], SIZE[0]], "counts": [80]}
    file = _youtube_json([(7, 1, [wrong, None, None])])
    coco.write_json(youtube_root / "train.json", file)
    raw = builder.raw_splits(youtube_root)["train"][0]
    text = coco.message_of(raw.make_label)
    assert "Track 1 in frame 0 of video 7" in text and "swapped" in text
