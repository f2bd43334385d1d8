"""Frames of videos: all that can be read, at their times."""

import importlib.util
import os
from fractions import Fraction

import cv2
import numpy as np
import pytest
from tiny_videos import HEIGHT, TICK, WIDTH, cut_off, frames, ticks, write_clip

from input_pipeline.files.images import ReadOptions
from input_pipeline.files.video import open_video
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError


def near(read, made, most=4):
    """Codecs change colours a little, old ones more."""
    return np.abs(read.astype(int) - made.astype(int)).mean() < most


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("gif", "gif")],
)
def test_every_frame_at_its_time(tmp_path, ending, codec):
    made = list(frames())
    path = write_clip(tmp_path / f"clip.{ending}", made, codec=codec)
    video = open_video(path)
    found = list(video.frames())
    assert video.num_frames == len(found) == 8 and not video.problems
    assert [frame.index for frame in found] == list(range(8))
    assert [frame.time for frame in found] == [Fraction(i, 25) for i in range(8)]
    for frame, picture in zip(found, made, strict=True):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert near(frame.image, picture, 4 if codec == "libx264" else 20)
    # From the middle on: what is before has no picture where that is quicker.
    late = list(video.frames(5))
    np.testing.assert_array_equal(late[-1].image, found[-1].image)
    assert late[4].image is None and late[5].image is not None


def test_cameras_that_do_not_keep_the_beat(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames(), ticks(8))
    video = open_video(path)
    assert [frame.time for frame in video.frames()] == [t * TICK for t in ticks(8)]
    assert (video.time_base / TICK).denominator == 1 or video.time_base <= TICK


def test_films_made_on_their_side(tmp_path):
    made = list(frames())
    path = write_clip(tmp_path / "clip.mp4", made, rotation=90)
    found = next(open_video(path).frames())
    assert found.image.shape == (WIDTH, HEIGHT, 3)
    assert near(found.image, np.rot90(made[0]))


def test_a_damaged_tail_costs_the_tail_alone(tmp_path):
    for ending in ("mp4", "mkv"):
        path = cut_off(write_clip(tmp_path / f"clip.{ending}", frames(20)))
        video = open_video(path)
        found = list(video.frames())
        assert 3 < len(found) < 20
        (sentence,) = video.problems
        assert f"{len(found)} of about 20 frames" in sentence and path.name in sentence
    # One that begins late is whole.
    late = [64000 + 512 * i for i in range(20)]
    video = open_video(write_clip(tmp_path / "late.mkv", frames(20), late))
    assert len(list(video.frames())) == 20 and not video.problems
    # Of a GIF the end alone says that it is one.
    whole = write_clip(tmp_path / "clip.gif", frames(20), codec="gif")
    assert list(open_video(whole).frames())
    video = open_video(cut_off(whole))
    assert 3 < len(list(video.frames())) < 20 and "damaged" in video.problems[0]


def test_frames_in_a_folder(tmp_path):
    made = list(frames(11))
    for i, picture in enumerate(made):
        cv2.imwrite(str(tmp_path / f"frame_{i}.png"), picture[..., ::-1])
    (tmp_path / "frame_4.png").write_bytes(b"no picture")
    (tmp_path / ".frame_5.png").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("passed over")
    video = open_video(tmp_path, frame_rate=Fraction(10))
    found = list(video.frames())
    assert video.num_frames == 11
    assert [f.index for f in found] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [f.time for f in found] == [Fraction(f.index, 10) for f in found]
    np.testing.assert_array_equal(found[-1].image, made[-1])
    assert found[-1].name == "frame_10.png"
    (sentence,) = video.problems
    assert "frame_4.png" in sentence
    # Other frames of the same names are another video: of another size, or newer.
    known, middle = video.identity(), tmp_path / "frame_3.png"
    assert open_video(tmp_path).identity() == known
    stat = middle.stat()
    middle.write_bytes(middle.read_bytes() + b" ")
    os.utime(middle, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    longer = open_video(tmp_path).identity()
    os.utime(middle, (stat.st_atime, stat.st_mtime + 5))
    newer = open_video(tmp_path).identity()
    assert len({each["files"] for each in (known, longer, newer)}) == 3


def test_what_is_no_video_is_said(tmp_path, monkeypatch):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "text.txt").write_text("not a film\n" * 50)
    (tmp_path / "nothing").mkdir()
    sentences = {
        "none.mp4": "There is no video",
        "empty.mp4": "is empty",
        "noise.mp4": "no video that can be read",
        "text.txt": "holds no video",
        "nothing": "holds no pictures",
    }
    for name, sentence in sentences.items():
        with pytest.raises(DataError, match=sentence):
            open_video(tmp_path / name)
    path = write_clip(tmp_path / "clip.mp4", frames(2))
    small = ReadOptions(max_pixels=100)
    with pytest.raises(DataError, match="48x40"):
        list(open_video(path, small).frames())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*video"):
        open_video(path)
