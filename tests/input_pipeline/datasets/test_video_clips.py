"""Clips of videos: how they are drawn, read and augmented, whatever the data set."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import mask2former
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.augmentation.clips import clip_segments
from input_pipeline.datasets import bad_examples
from input_pipeline.datasets.clips import Clips, Video, draw_places
from input_pipeline.datasets.open import open_dataset
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.datasets.sign_videos import SignVideos
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.pipeline import train_batches
from mlseg_jax.typing import IGNORE

SIDE = 32


def config_of(task="video_instance", **data):
    config = mask2former.get_config(f"dataset=sign_scenes,task={task}")
    with config.unlocked():
        config.data.update(
            num_classes=20, crop_size=(SIDE, SIDE), short_sides=(SIDE,),
            video_length=6, train_examples=5, eval_examples=3, max_segments=6,
        )  # fmt: skip
        config.data.update(data)
    return config.data


def test_reference_and_neighbours():
    """masks.md 6.2: within the window, with replacement, in order, without the
    reference; the only frame of a video again and again.
    """
    rng = np.random.default_rng(0)
    drawn = [draw_places(50, 3, 4, rng) for _ in range(600)]
    assert all(places == sorted(places) for places in drawn)
    assert {place for places in drawn for place in places} == set(range(50))
    # Of three frames two neighbours may be one, but none is the reference.
    assert all(max(p) - min(p) <= 8 and len(set(p)) >= 2 for p in drawn)
    assert any(len(set(places)) == 2 for places in drawn)
    assert draw_places(1, 2, 20, rng) == [0, 0]
    assert sorted({tuple(draw_places(2, 2, 20, rng)) for _ in range(9)}) == [(0, 1)]


def test_signs_move_appear_and_leave():
    scenes = SignScenes(num_classes=20, image_size=SIDE, num_examples=12)
    videos = SignVideos(scenes=scenes, length=8)
    again = SignVideos(scenes=scenes, length=8)
    assert len(videos.videos) == 12 and videos.videos[0].length == 8
    appears = leaves = moves = 0
    for index in range(12):
        clip = videos.read(index, range(8))
        part = again.read(index, [6, 2])
        for name, frames in clip.items():
            np.testing.assert_array_equal(part[name], frames[[6, 2]])
        tracks = clip["instance_map"]
        there = [{*np.unique(frame)} - {0} for frame in tracks]
        appears += bool(there[-1] - there[0])
        leaves += bool(there[0] - there[-1])
        moves += bool((tracks[0] != tracks[1]).any())
        for track in set.union(*there):  # one class throughout
            assert len(np.unique(clip["label_map"][tracks == track])) == 1
    assert appears >= 3 and leaves >= 2 and moves == 12


def test_batches_of_clips():
    """Arrays of the batch; the same after a resume; frames differ between epochs."""
    data = config_of()
    source = open_dataset(data, train=True)
    assert len(source) == 5 and source[3]["image"].shape == (SIDE, SIDE, 3)
    assert len(source[3]["frames"]) == 6
    how = dict(seed=3, batch_size=2, augment=make_augment(data, None, source.info))
    batches = train_batches(source, **how)
    first, second, *later = (next(batches) for _ in range(6))
    batches.close()
    resumed = train_batches(source, start_example=2, num_threads=0, **how)
    for name, values in next(resumed).items():
        np.testing.assert_array_equal(values, second[name])
    assert first["image"].shape == (2, 2, SIDE, SIDE, 3)
    assert first["masks"].shape == first["label_map"].shape == (2, 2, SIDE, SIDE)
    assert first["segment_classes"].shape == (2, 6)
    masks, classes = first["masks"], first["segment_classes"]
    for example in range(2):
        for number in np.unique(masks[example][masks[example] >= 0]):
            labels = first["label_map"][example][masks[example] == number]
            assert set(labels.tolist()) == {classes[example, number]}
    assert len({x["image"].tobytes() for x in (first, second, *later)}) == 6


def test_a_clip_is_augmented_as_a_whole():
    data = config_of(flip_rate=1.0, crop_size=(24, 40), short_sides=(24,))
    videos = SignVideos(scenes=SignScenes(num_classes=20, image_size=SIDE), length=6)
    clip = videos.read(0, [0, 3]) | {"name": "x"}
    made = make_augment(data, None, videos.info)(clip, np.random.default_rng(0))
    assert made["image"].shape == (2, 24, 40, 3)
    assert made["image_size"].tolist() == [24, 24]
    rows = (2 * np.arange(24) + 1) * SIDE // 48
    for frame in range(2):
        mirrored = clip["label_map"][frame][rows][:, rows][:, ::-1]
        np.testing.assert_array_equal(made["label_map"][frame, :, :24], mirrored)
    assert (made["label_map"][:, :, 24:] == IGNORE).all()
    assert (made["image"][:, :, 24:] == 128).all()
    # An upright video is shrunk to the canvas.
    tall = {k: np.repeat(v, 2, axis=1) for k, v in clip.items() if k != "name"}
    made = make_augment(data, None, videos.info)(
        tall | {"name": "y"}, np.random.default_rng(0)
    )
    assert made["image_size"].tolist() == [24, 12]


def test_segments_of_a_clip():
    """A track that one frame lacks; a crowd; more than fit, the smallest left out."""
    info = DatasetInfo("x", ("stuff", "car", "bus"), (False, True, True))
    labels = np.full((2, 4, 4), 0, np.int32)
    tracks = np.zeros((2, 4, 4), np.int32)
    labels[0, 0], tracks[0, 0] = 1, 5  # four pixels of car 5, in frame 0 alone
    labels[:, 1, :3], tracks[:, 1, :3] = 2, 2  # six of bus 2
    labels[1, 2, :2], tracks[1, 2, :2] = 1, 7  # two of car 7
    labels[1, 3], tracks[1, 3] = 2, IGNORE
    clip = {"name": "x", "label_map": labels, "instance_map": tracks}
    made = clip_segments("instances", clip, info, 2)
    assert made["segment_classes"].tolist() == [1, 2] and made["dropped_segments"] == 1
    np.testing.assert_array_equal(made["masks"] == 0, tracks == 5)
    np.testing.assert_array_equal(made["masks"] == 1, tracks == 2)
    del clip["instance_map"]
    made = clip_segments("classes", clip, info, 4)
    assert made["segment_classes"].tolist() == [0, 1, 2, IGNORE]
    with pytest.raises(DataError, match="no instances"):
        clip_segments("instances", clip, info, 4)


def write_frames(folder, count, shade, size=(10, 12)):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((*size, 3), shade + i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


def test_a_folder_of_videos(tmp_path):
    for split, videos in {"train": ("a", "b"), "val": ("c",)}.items():
        for shade, video in enumerate(videos):
            write_frames(tmp_path / "images" / split / video, 3 - shade, 50 * shade)
            masks = tmp_path / "masks" / split / video
            masks.mkdir(parents=True)
            for i in range(3 - shade):
                mask = np.full((10, 12), (i + shade) % 2, np.uint8)
                Image.fromarray(mask).save(masks / f"{i:03}.png")
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    data = config_of("video_semantic", name="folder", path=str(tmp_path), num_classes=0)
    with data.unlocked():
        data.update(train_examples=0, eval_examples=0)
    source = open_dataset(data, train=True)
    assert [source[i]["name"] for i in range(2)] == ["a", "b"]
    frames = source[0]["frames"]
    read = frames.read([0, 2])
    assert len(frames) == 3 and read["frame_names"] == ("000", "002")
    assert read["image"][:, 0, 0, 0].tolist() == [0, 2]
    assert read["label_map"][:, 0, 0].tolist() == [0, 0]
    assert frames.tracks() is None and frames.video_id == "a"
    clip = source.draw(1, np.random.default_rng(0))
    assert clip["image"].shape == (2, 10, 12, 3) and clip["name"] == "b"
    # As `predict` sees them, numbers in names are numbers.
    for kind in ("images", "masks"):
        for old, new in (("000", "f_2"), ("001", "f_10"), ("002", "f_9")):
            path = tmp_path / kind / "val/c" / f"{old}.png"
            path.rename(path.with_stem(new))
    read = open_dataset(data, train=False)[0]["frames"].read(range(3))
    assert read["frame_names"] == ("f_2", "f_9", "f_10")
    assert read["image"][:, 0, 0, 0].tolist() == [0, 2, 1]
    assert read["label_map"][:, 0, 0].tolist() == [0, 0, 1]
    with data.unlocked():
        data.update(name="lvis_json")
    with pytest.raises(DataError):
        open_dataset(data, train=True)


def test_videos_with_a_json(tmp_path):
    """Two tracks that overlap: maps show the first on top, the truth is both."""
    write_frames(tmp_path / "train/JPEGImages/v7", 2, 9)
    box = [[0, 0, 6, 0, 6, 10, 0, 10]]
    everything = {"size": [10, 12], "counts": [0, 120]}
    content = {
        "videos": [
            {"id": 7, "width": 12, "height": 10,
             "file_names": ["v7/000.png", "v7/001.png"]}
        ],
        "categories": [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}],
        "annotations": [
            {"id": 1, "video_id": 7, "category_id": 9, "segmentations": [box, None]},
            {"id": 2, "video_id": 7, "category_id": 4,
             "segmentations": [everything, everything]},
        ],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = config_of(name="video_json", path=str(tmp_path), num_classes=0)
    with data.unlocked():
        data.update(train_examples=0)
    source = open_dataset(data, train=True)
    frames = source[0]["frames"]
    assert source.info.class_names == ("dog", "cat") and frames.video_id == 7
    assert source.info.raw_values == (4, 9)  # for results with the file's own ids
    read = frames.read([0, 1])
    assert read["label_map"][:, 0, [0, 11]].tolist() == [[1, 0], [0, 0]]
    assert read["instance_map"][:, 0, [0, 11]].tolist() == [[1, 2], [2, 2]]
    (cat, _, cat_runs), (dog, crowd, dog_runs) = frames.tracks()
    assert (cat, dog, crowd) == (1, 0, False)
    assert cat_runs[1] is None and None not in dog_runs
    with data.unlocked():
        del data.num_frames
    with pytest.raises(DataError, match="is of videos; start from"):
        open_dataset(data, train=True)


class Broken:
    """Videos of which the first cannot be read."""

    info = DatasetInfo("x", ("a",), (False,))
    videos = tuple(Video(f"v{i}", i, 1) for i in range(3))

    def read(self, index, places):
        if index == 0:
            raise DataError("v0 is torn.", kind="unreadable")
        shape = (len(places), 2, 2)
        return {"image": np.zeros((*shape, 3), np.uint8), "label_map": np.ones(shape)}


def test_other_clips_stand_in_for_bad_ones():
    source = bad_examples.replace_bad(Clips(Broken(), 2, 3), "skip")
    clip = source.draw(0, np.random.default_rng(0))
    assert clip["name"] in ("v1", "v2") and clip["skipped"].startswith("unreadable")
    assert bad_examples.replace_bad([], "fail") == []
    with pytest.raises(DataError, match="torn"):
        Clips(Broken(), 2, 3).draw(0, np.random.default_rng(0))


def test_pictures_are_no_videos():
    data = config_of(name="coco_json", path="/nowhere", num_classes=0)
    with pytest.raises(DataError):
        open_dataset(data, train=True)
    data = config_of(augmentation="crop")
    with pytest.raises(DataError, match="clips are augmented with 'clip'"):
        make_augment(data)
