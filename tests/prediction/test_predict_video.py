"""``predict --video``: results of every frame, gone on with after it was killed."""

import json
import shutil
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from etils import epath
from fake_model import POLICY, C, FakeModel, fake_engine, make_settings
from pycocotools import mask as coco_mask
from tiny_videos import HEIGHT, TICK, WIDTH, cut_off, frames, ticks, write_clip

from input_pipeline.files import coco_masks
from input_pipeline.files import video as video_files
from input_pipeline.files.video import open_video
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction import video as predicting
from mlseg_jax.prediction.segmenter import Segmenter
from mlseg_jax.prediction.video_writer import VideoWriter

INFO = DatasetInfo("fake", tuple(f"label {i}" for i in range(C)), (True,) * C)


def make_segmenter(find_segments=None, **changes):
    settings = make_settings(
        window=(48, 48), stride=(48, 48), clip_length=3, track_score=0.5, **changes
    )
    engine = fake_engine(FakeModel(), settings)
    return Segmenter(engine, INFO, POLICY, find_segments=find_segments)


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write_clip(path, [*frames(5), *frames(4, negative=True)], ticks(9))


def write(segmenter, video, output, job=None):
    place = epath.Path(output)
    return predicting.write_video(segmenter, open_video(video), place, job or {}, "")


def read_lines(output):
    return [json.loads(x) for x in (output / "labels.jsonl").read_text().splitlines()]


def results(output):
    """The content of all files but the encoded one, whose settings say when."""
    files = sorted(p for p in output.rglob("*") if p.is_file() and p.suffix != ".mp4")
    return {str(p.relative_to(output)): p.read_bytes() for p in files}


def test_results_of_every_frame(segmenter, clip, tmp_path, capfd):
    record = write(segmenter, clip, tmp_path)
    assert record.complete and record.num_frames == 9 and not record.problems
    assert "9/9" in capfd.readouterr().err
    lines = read_lines(tmp_path)
    pictures = [frame.image for frame in open_video(clip).frames()]
    predictions = list(segmenter.video(clip))
    for i, (line, prediction) in enumerate(zip(lines, predictions, strict=True)):
        assert line["frame"] == i
        assert line["time"] == pytest.approx(ticks(9)[i] * TICK, abs=1e-6)
        label_map = cv2.imread(str(tmp_path / line["label_map"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(label_map, segmenter(pictures[i]).label_map)
        np.testing.assert_array_equal(label_map, prediction.label_map)
        assert [x["name"] for x in line["labels"]] == [
            x.name for x in prediction.labels
        ]
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        drawn = list(container.decode(stream))
    times = [frame.pts * frame.time_base for frame in drawn]
    assert times == [t * TICK for t in ticks(9)]
    assert len({(frame.height, frame.width) for frame in drawn}) == 1
    # Done is done.
    before = (tmp_path / "overlay.mp4").stat().st_mtime_ns
    assert write(segmenter, clip, tmp_path).num_frames == 9
    assert (tmp_path / "overlay.mp4").stat().st_mtime_ns == before


@pytest.mark.parametrize("scope", ["per_window", "per_clip"])
def test_killed_in_the_middle(scope, clip, tmp_path, monkeypatch):
    segmenter = make_segmenter(find_sign, selection_scope=scope, clip_change=0.3)
    write(segmenter, clip, tmp_path / "whole")
    written = []

    def killed(path, label_map, num_classes):
        if len(written) in (5, 7):  # in the middle of a batch, and of a clip
            written.append("killed")
            raise KeyboardInterrupt
        written.append(path.name)
        usual(path, label_map, num_classes)

    usual = predicting.write_label_map
    monkeypatch.setattr(predicting, "write_label_map", killed)
    output = tmp_path / "killed"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(segmenter, clip, output)
        with (output / "labels.jsonl").open("a") as file:
            file.write('{"frame": 77, "torn')  # what was written last
    assert not (output / "overlay.mp4").exists()
    write(segmenter, clip, output)
    assert results(output) == results(tmp_path / "whole")
    assert [line["frame"] for line in read_lines(output)] == list(range(9))
    # What was counted is not done again, the frames before the kill at most.
    assert len(written) - written.count("killed") <= 9 + 2 * 3
    if scope == "per_clip":
        clips = [line["clip"] for line in read_lines(output)]
        assert clips == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    # Killed while drawing, it is drawn again.
    record = json.loads((output / "video.json").read_text())
    (output / "video.json").write_text(json.dumps(record | {"complete": False}))
    (output / "overlay.mp4").rename(output / "overlay.mp4.part")
    write(segmenter, clip, output)
    assert (output / "overlay.mp4").stat().st_size > 1000
    # Results that somebody else has spoilt.
    (output / "video.json").write_text(json.dumps(record | {"complete": False}))
    (output / "label_maps" / "000003.png").unlink()
    with pytest.raises(UserError, match="000003.png, which was written"):
        write(segmenter, clip, output)
    for spoil in (lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.unlink()):
        spoil(output / "labels.jsonl")
        with pytest.raises(UserError, match="video.json is damaged"):
            write(segmenter, clip, output)


def test_killed_beside_frames_that_cannot_be_read(segmenter, tmp_path, monkeypatch):
    """What was lost before the kill is said after it, too."""
    folder, output = tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    for i, picture in enumerate(frames(7)):
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    (folder / "1.png").write_bytes(b"no picture")
    usual = predicting.write_label_map

    def killed(path, *arguments):
        if path.name == "000005.png":
            raise KeyboardInterrupt
        usual(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predicting, "write_label_map", killed)
        write(segmenter, folder, output)
    assert json.loads((output / "video.json").read_text())["following"] > 1
    record = write(segmenter, folder, output)
    assert record.num_frames == 6 and len(record.problems) == 1
    assert "1.png" in record.problems[0]
    assert write(segmenter, folder, output).problems == record.problems
    # Frames that are lost before they are drawn upon: one, and then all.
    usual_draw, lost = predicting._draw, [3]

    def draw(*arguments):
        for i in lost:
            (folder / f"{i}.png").write_bytes(b"no picture")
        usual_draw(*arguments)

    monkeypatch.setattr(predicting, "_draw", draw)
    record = write(segmenter, folder, tmp_path / "again")
    assert record.num_frames == 6 and len(record.problems) == 2
    drawn = open_video(tmp_path / "again" / "overlay.mp4").frames()
    assert [25 * frame.time for frame in drawn] == [0, 2, 4, 5, 6]
    lost += range(7)
    with pytest.raises(DataError, match="no frame that was segmented"):
        write(segmenter, folder, tmp_path / "nothing")


def test_killed_in_the_first_batch(segmenter, clip, tmp_path, monkeypatch):
    """The same call goes on; another may take the place where nothing was written."""
    usual, done = predicting.write_label_map, []

    def killed(path, *arguments):
        done.append(path.name)
        if len(done) in (1, 3):
            raise KeyboardInterrupt
        usual(path, *arguments)

    monkeypatch.setattr(predicting, "write_label_map", killed)
    for job in ({"model": 1}, {}):
        with pytest.raises(KeyboardInterrupt):
            write(segmenter, clip, tmp_path, job)
    assert [p.name for p in (tmp_path / "label_maps").iterdir()] == ["000000.png"]
    with pytest.raises(UserError, match="other model"):
        write(segmenter, clip, tmp_path, {"model": 1})
    monkeypatch.setattr(predicting, "write_label_map", usual)
    assert write(segmenter, clip, tmp_path).num_frames == 9


def find_sign(segmented):
    """The most frequent label as one segment that a picture is divided into."""
    (label_map,) = segmented.label_maps()[:1]
    class_id = int(np.bincount(label_map.ravel()).argmax())
    segment_map = (label_map == class_id).astype(np.int32)
    runs = coco_mask.encode(np.asfortranarray(segment_map, np.uint8))
    area, box = int(segment_map.sum()), tuple(int(v) for v in coco_mask.toBbox(runs))
    name = INFO.class_names[class_id]
    segment = Segment(1, class_id, name, 0.8, area, box, 0, segment_map)
    return Panoptic(segment_map, (segment,))


def test_tracks_of_segments(clip, tmp_path):
    segmenter = make_segmenter(find_sign, batch_size=1)
    write(segmenter, clip, tmp_path)
    predictions = list(segmenter.video(clip))
    tracks = []
    for line, prediction in zip(read_lines(tmp_path), predictions, strict=True):
        (entry,) = line["segments"]
        assert (entry["track"],) == prediction.tracks
        runs = entry["segmentation"]
        runs["counts"] = runs["counts"].encode()
        mask = coco_masks.decode(runs, (HEIGHT, WIDTH), "segment")
        np.testing.assert_array_equal(mask, prediction.segments[0].mask)
        tracks.append((entry["class_id"], entry["track"]))
    # One of each scene: what moves little keeps its number.
    assert len(set(tracks[:5])) <= 2 and len(set(tracks)) < 6


def test_damaged_and_odd_files(segmenter, clip, tmp_path):
    short = shutil.copy(clip, tmp_path / "clip.mp4")
    record = write(segmenter, cut_off(tmp_path / "clip.mp4", 0.75), tmp_path / "short")
    assert 1 < record.num_frames < 9 and "damaged" in record.problems[0]
    assert len(read_lines(tmp_path / "short")) == record.num_frames
    assert (tmp_path / "short" / "overlay.mp4").exists()
    # The same is said again.
    again = write(segmenter, tmp_path / "cut_clip.mp4", tmp_path / "short")
    assert again.problems == record.problems
    # Frames of other sizes, and of an odd one.
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, (height, width) in enumerate([(31, 45), (31, 45), (20, 64)]):
        picture = cv2.resize(next(frames(1)), (width, height))
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    record = write(segmenter, folder, tmp_path / "odd")
    assert record.num_frames == 3
    assert [line["image"] for line in read_lines(tmp_path / "odd")] == [
        f"{i}.png" for i in range(3)
    ]
    sizes = [
        cv2.imread(str(p), -1).shape for p in sorted((tmp_path / "odd").glob("l*/*"))
    ]
    assert sizes == [(31, 45), (31, 45), (20, 64)]
    # Results are not mixed, and nothing is written over the video.
    with pytest.raises(UserError, match="other video"):
        write(segmenter, short, tmp_path / "odd")
    with pytest.raises(UserError, match="other model"):
        write(segmenter, folder, tmp_path / "odd", {"model": 1})
    overlay = tmp_path / "odd" / "overlay.mp4"
    left_out = json.loads((tmp_path / "odd" / "video.json").read_text())
    left_out["job"]["model"] = 1
    (tmp_path / "odd" / "video.json").write_text(json.dumps(left_out))
    with pytest.raises(UserError, match="other model"):
        write(segmenter, folder, tmp_path / "odd")
    with pytest.raises(UserError, match="would be written over"):
        write(segmenter, overlay, tmp_path / "odd")
    (tmp_path / "odd" / "video.json").unlink()
    with pytest.raises(UserError, match="results of another call"):
        write(segmenter, folder, tmp_path / "odd")


def test_frames_as_they_come(segmenter):
    taken = []

    def camera():
        for i, picture in enumerate(frames(10**9)):
            taken.append(i)
            yield picture

    for scope in ("per_window", "per_clip"):
        taken.clear()
        live = segmenter.video(camera(), read_ahead=2, selection_scope=scope)
        for i in range(5):
            prediction = next(live)
            assert len(taken) <= i + 2
            assert prediction.label_map.shape == (HEIGHT, WIDTH)
            assert prediction.clip == (None if scope == "per_window" else i // 2)
    stack = np.stack(list(frames(3)))
    assert len(list(segmenter.video(stack, k=2, allowed=["label 1", "label 2"]))) == 3
    for wrong in (stack[0], 7, b"mp4"):
        with pytest.raises(UserError, match="video"):
            segmenter.video(wrong)
    with pytest.raises(UserError, match="selection_scope"):
        segmenter.video(stack, selection_scope="per_film")


def test_only_selected_labels_are_the_likeliest(segmenter):
    (picture,) = frames(1)
    best = segmenter(picture).labels[0].class_id
    found = segmenter(picture, cumulative=1e-6, top_labels=3)
    assert [label.class_id for label in found.labels] == [best]
    assert found.top_class_ids.shape == (1, HEIGHT, WIDTH)
    assert (found.top_class_ids == best).all() and (found.top_probabilities == 1).all()


def test_a_damaged_video_ends_with_an_error(segmenter, clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.mp4")
    seen = []
    with pytest.raises(DataError, match="damaged"):
        for prediction in segmenter.video(cut_off(tmp_path / "clip.mp4", 0.75)):
            seen.append(prediction)
    assert len(seen) > 1


def test_written_frames_are_those_that_were_given(tmp_path):
    """Odd sides, times that stand still, and no x264."""
    made = [x[:39, :47] for x in frames(4)]
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, (39, 47), Fraction(25), Fraction(1, 50)) as writer:
        for picture, time in zip(made, (0, 2, 2, 9), strict=True):
            writer.add(picture, time * Fraction(1, 50))
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
    assert [f.pts * f.time_base * 50 for f in found] == [0, 2, 3, 9]
    for frame, picture in zip(found, made, strict=True):
        image = frame.to_ndarray(format="rgb24")
        assert image.shape == (40, 48, 3)
        assert np.abs(image[:39, :47].astype(int) - picture).mean() < 12
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_without_pyav(segmenter, clip, tmp_path, monkeypatch):
    found = video_files.importlib.util.find_spec
    monkeypatch.setattr(
        video_files.importlib.util,
        "find_spec",
        lambda name: None if name == "av" else found(name),
    )
    with pytest.raises(UserError, match=r"PyAV.*pip install"):
        write(segmenter, clip, tmp_path)
