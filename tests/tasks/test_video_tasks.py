"""Evaluations of videos: perfect and imperfect answers, whole and in chunks."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from etils import epath
from tiny_regions import CLASSES, SIDE, region_config

from input_pipeline.datasets.clips import Clips
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError
from mlseg_jax.inference.clip_engine import ClipEngine, SegmentedClip
from mlseg_jax.inference.mask_tiles import Masks
from mlseg_jax.inference.regions import regions_of_views
from mlseg_jax.inference.tracks import same_queries
from mlseg_jax.inference.views import make_views
from mlseg_jax.label_selection import Selection
from mlseg_jax.prediction.clip_pictures import ClipPictures
from mlseg_jax.prediction.segmenter import Segmenter
from mlseg_jax.prediction.video_files import LabelMapFiles, TrackFiles
from mlseg_jax.reporting.report import write_report
from mlseg_jax.runs.checkpoint import without_nan
from mlseg_jax.tasks import instance
from mlseg_jax.tasks.engines import evaluation_policy, evaluation_settings
from mlseg_jax.tasks.evaluation import evaluate
from mlseg_jax.tasks.table import find_task
from mlseg_jax.tasks.video_evaluation import chunks
from mlseg_jax.typing import IGNORE

LENGTH, QUERIES = 10, 12


def config_of(task, num_frames):
    config = region_config(task=task)
    with config.unlocked():
        config.data.update(
            short_sides=(SIDE,), video_length=LENGTH, eval_examples=4, num_classes=20
        )
        config.eval.num_frames = num_frames
        config.selection.k = CLASSES
    return config


class OracleEngine(ClipEngine):
    """Knows the truth of every frame; the queries of each chunk are in another order.

    Query 1 + i is of track (or class) i, the others are of nothing.
    """

    def __init__(self, config, source, wrong=()):
        self.num_frames = config.eval.num_frames
        self.settings = evaluation_settings(config)
        self._by_class = config.task == "video_semantic"
        self._wrong = wrong
        self._rng = np.random.default_rng(0)
        self._truth = {}
        self.scopes = set()
        for index in range(len(source)):
            frames = source[index]["frames"]
            clip = frames.read(range(len(frames)))
            for i, image in enumerate(clip["image"]):
                own = {name: clip[name][i] for name in ("label_map", "instance_map")}
                self._truth[image.tobytes()] = own

    def begin(self, memory=None):
        known = (memory or {}).get("names", np.empty((0, 2), int))
        self._names = dict(known.tolist())

    def memory(self):
        names = np.asarray([*self._names.items()], int).reshape(-1, 2)
        return {"names": names}

    def segment(self, images, policies, allowed=None, scope=None):
        self.scopes.add(scope)
        truths = [self._truth[image.tobytes()] for image in images]
        order = self._rng.permutation(QUERIES)
        logits = np.full((QUERIES, CLASSES + 1), -20.0, np.float32)
        logits[:, -1] = 0.0
        masks = np.full((len(images), SIDE, SIDE, QUERIES), -9.0, np.float32)
        for frame, truth in enumerate(truths):
            what = truth["label_map"] if self._by_class else truth["instance_map"]
            for number in np.unique(what).tolist():
                if not self._by_class and not number:
                    continue
                query = order[self._names.setdefault(number, len(self._names))]
                masks[frame, ..., query] = np.where(what == number, 9.0, -9.0)
                (class_id,) = np.unique(truth["label_map"][what == number])
                said = (class_id + (number in self._wrong)) % CLASSES
                logits[query, CLASSES - 1 - said] = 20.0
        # Not in the order of the scores, which know of no chunk before.
        class_ids = np.arange(CLASSES, dtype=np.int32)[None, ::-1]
        selection = Selection(class_ids, None, CLASSES)
        scores = np.zeros((1, CLASSES), np.float32)
        frames = []
        for row, image in enumerate(images):
            views = make_views(image, self.settings, lambda n: n, False, 1)
            window = logits, Masks(masks, None, row)
            frames.append(
                regions_of_views(image.shape[:2], views, [window], selection, scores)
            )
        queries = np.eye(QUERIES)[np.argsort(order)]
        queries += 0.1 * self._rng.normal(size=queries.shape)
        clip = SegmentedClip(tuple(frames), queries)
        return [clip] * len(policies)


def run(task, num_frames, wrong=(), on_segments=None, **more):
    config = config_of(task, num_frames)
    source = open_dataset(config.data, train=False)
    evaluation = find_task(config).make_evaluation(config, source.info, **more)
    evaluation.on_segments = on_segments
    engine = OracleEngine(config, source, wrong)
    return evaluation, evaluate(evaluation, engine, source, config), source


@pytest.mark.parametrize("num_frames", [0, 3])
def test_right_tracks_have_full_precision(num_frames, tmp_path):
    """Also where the queries of every chunk must be found again by their cosines."""
    files = []

    def keep(example, tracks):
        if not files:
            files.append(
                TrackFiles(tmp_path, dataclasses.replace(info, raw_values=ids))
            )
        files[0].add(example, tracks)

    info = open_dataset(config_of("video_instance", 0).data, train=False).info
    ids = tuple(range(100, 300, 10)) if num_frames else None  # as of some JSON
    evaluation, metrics, source = run(
        "video_instance", num_frames, on_segments=keep, with_oracle=True
    )
    assert metrics["AP"] == metrics["AR10"] == metrics["oracle_AP"] == 1.0
    assert metrics["examples"] == 4 and metrics["frames"] == 4 * LENGTH
    # The report compares label scores with the things of the chunk, not of a frame.
    shown = [first["label_map"][0].tolist() for first, *_ in evaluation.pictures]
    chunk = range(num_frames or LENGTH)
    for i, labels in enumerate(shown):
        there = np.unique(source[i]["frames"].read(chunk)["label_map"]).tolist()
        assert labels == [x for x in there if x >= 0 and info.is_thing[x]]
    files[0].close()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {entry["video_id"] for entry in results} == {
        source[i]["name"] for i in range(4)
    }
    for entry in results:
        assert len(entry["segmentations"]) == LENGTH
        assert entry["category_id"] in (ids or range(1, 21))
        # The mean over all frames, also over chunks that do not show it.
        assert (0.1 if num_frames else 0.9) < entry["score"] <= 1
    # A track that appears late or leaves is null where it is not there.
    assert any(None in entry["segmentations"] for entry in results)


class Torn:
    """A source of videos, some of whose frames cannot be read, or are of another size
    than the first of their video.
    """

    def __init__(self, source):
        self.info, self._whole = source.info, source[0]["frames"].videos
        self.videos = self._whole.videos

    def read(self, index, places):
        truth = self._whole.read(index, places)
        if index == 1 and LENGTH - 1 in places:
            raise DataError("It is torn.", kind="unreadable")
        if index == 2 and 0 in places:
            if len(places) > 3:
                raise DataError("It changes its size.", kind="size")
            return {key: value[:, 1:] for key, value in truth.items()}
        return truth


def test_a_video_with_one_bad_frame_counts_nowhere():
    """Whichever frame it is: what was counted of the frames before is taken back."""
    config = config_of("video_instance", 3)
    source = open_dataset(config.data, train=False)
    engine = OracleEngine(config, source)
    torn = Clips(Torn(source), 2, 3)
    task = find_task(config)
    whole = task.make_evaluation(config, source.info)
    for index in (0, 3):
        whole.add(engine, [source[index]])
    with config.unlocked():
        config.data.on_bad_example = "skip"
    found = task.make_evaluation(config, source.info)
    evaluate(found, engine, torn, config)
    expected = whole.compute()
    assert expected["examples"] == 2 and expected["frames"] == 2 * LENGTH
    assert expected["AP"] > 0.99
    np.testing.assert_equal(found.compute(), expected)
    np.testing.assert_array_equal(found.true_pixels, whole.true_pixels)
    with config.unlocked():
        config.data.on_bad_example = "fail"
    with pytest.raises(DataError, match="torn"):
        evaluate(task.make_evaluation(config, source.info), engine, torn, config)


def test_frames_of_a_bad_video_are_taken_back(tmp_path):
    """Those that were written, and shown, before the one that cannot be read."""
    config = config_of("video_semantic", 3)
    source = open_dataset(config.data, train=False)
    evaluation = find_task(config).make_evaluation(config, source.info)
    written = []

    def keep(example, label_map):
        LabelMapFiles(tmp_path, source.info).add(example, label_map)
        written.append(len(list(tmp_path.rglob("*.png"))))

    evaluation.on_segments = keep
    engine = OracleEngine(config, source)
    with pytest.raises(DataError, match="torn"):
        evaluation.add(engine, [Clips(Torn(source), 2, 3)[1]])
    assert written == [*range(1, LENGTH), 0] and not evaluation.pictures


def test_tracks_of_wrong_classes():
    _, metrics, _ = run("video_instance", 0, wrong=(1,))
    assert 0.0 < metrics["AP"] < 1.0


@pytest.mark.parametrize("num_frames", [0, 4])
def test_right_labels_of_videos(num_frames, tmp_path):
    files = []

    def keep(example, label_map):
        if not files:
            files.append(LabelMapFiles(tmp_path / "maps", evaluation_info))
        files[0].add(example, label_map)

    evaluation_info = open_dataset(
        config_of("video_semantic", 0).data, train=False
    ).info
    evaluation, metrics, source = run(
        "video_semantic", num_frames, on_segments=keep, with_oracle=True
    )
    assert metrics["mIoU"] == metrics["mIoU_present"] == metrics["oracle_mIoU"] == 1.0
    # Where the truth stands still, so does what equals it; there are too few frames.
    assert metrics["VC8"] == 1.0 and np.isnan(metrics["VC16"])
    assert metrics["frames"] == 4 * LENGTH
    for _, first, strip, _ in evaluation.pictures:
        labelled = strip["strip_truth"] != IGNORE
        assert len(labelled) == (num_frames or 6)
        np.testing.assert_array_equal(first, strip["strip_prediction"][0])
        expected = strip["strip_truth"][labelled]
        np.testing.assert_array_equal(strip["strip_prediction"][labelled], expected)
    # Recall is of what was selected, whatever the scores of the chunk alone would be.
    there = [
        np.setdiff1d(source[i]["frames"].read(places)["label_map"], [IGNORE])
        for i in range(4)
        for places in chunks(LENGTH, num_frames)
    ]
    expected = np.mean([np.mean(labels >= CLASSES // 2) for labels in there])
    recall = evaluation.recall.curve()["image_recall"][CLASSES - CLASSES // 2 - 1]
    assert recall == pytest.approx(expected) and 0 < recall < 1
    paths = sorted((tmp_path / "maps").rglob("*.png"))
    assert len(paths) == 4 * LENGTH and paths[3].name == "00000003.png"
    if num_frames:
        (tmp_path / "metrics.json").write_text(json.dumps(without_nan(metrics)))
        evaluation.save_pictures(epath.Path(tmp_path / "evaluation_examples.npz"))
        page = write_report(tmp_path).read_text()
        assert "Video 4" in page and "VC8" in page


def test_frames_of_a_stream_keep_their_tracks():
    """Chunks whose queries are in other orders, through what `predict` uses."""
    config = config_of("video_instance", 3)
    source = open_dataset(config.data, train=False)
    engine = OracleEngine(config, source)
    pictures = ClipPictures(engine, QUERIES)
    info, policy = source.info, evaluation_policy(config, CLASSES)
    find = functools.partial(
        instance.find_segments, settings=config.eval, info=source.info
    )
    segmenter = Segmenter(pictures, info, policy, find_segments=find)
    clip, other = (source[i]["frames"].read(range(LENGTH)) for i in (1, 2))

    def check(predictions):
        """Each true object is one track."""
        tracks = {}
        for place, prediction in enumerate(predictions):
            pairs = zip(prediction.segments, prediction.tracks, strict=True)
            for segment, track in pairs:
                (true,) = np.unique(clip["instance_map"][place][segment.mask])
                if track is not None:
                    tracks.setdefault(int(true), set()).add(track)
        assert len(tracks) >= 2 and all(len(each) == 1 for each in tracks.values())
        assert len(set.union(*tracks.values())) == len(tracks)

    check(segmenter.video(clip["image"]))
    # Also if a picture and another video are asked for between two frames.
    video, mixed = segmenter.video(clip["image"]), []
    for _ in segmenter.video(other["image"]):
        mixed.append(next(video))
        segmenter(other["image"][0])
    check(mixed)
    # The caller's scope is the engine's; clips of pictures' models are not to be had.
    assert engine.scopes == {"per_window", None}
    list(segmenter.video(clip["image"][:2], selection_scope="per_image"))
    assert engine.scopes == {"per_window", "per_image", None}
    with pytest.raises(UserError, match="per_clip is of models of pictures"):
        segmenter.video(clip["image"], selection_scope="per_clip")
    with config.unlocked(), pytest.raises(UserError, match="per_clip is of models"):
        config.eval.selection_scope = "per_clip"
        find_task(config)
    # Pictures that are no video have no queries of their own.
    (alone,) = pictures.segment(list(clip["image"][:1]), [(policy, None)])
    assert alone[0].slots is None


def test_chunks_and_the_same_queries():
    assert list(chunks(7, 3)) == [range(3), range(3, 6), range(6, 7)]
    assert list(chunks(5, 0)) == [range(5)]
    rng = np.random.default_rng(0)
    before, order = rng.normal(size=(6, 8)), rng.permutation(6)
    after = 3.0 * before[order] + 0.2 * rng.normal(size=(6, 8))
    np.testing.assert_array_equal(order[same_queries(before, after)], np.arange(6))
