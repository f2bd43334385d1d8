"""Precision of tracks against TrackEval's (`make_golden_tracks`)."""

import json
import pathlib

import pytest

from mlseg_jax.metrics.instance_precision import InstancePrecision
from mlseg_jax.metrics.tracks import found_track, true_track

FILE = pathlib.Path(__file__).parent / "golden" / "tracks.json"


def test_precision_of_tracks():
    golden = json.loads(FILE.read_text())
    truth, results, expected = (golden[k] for k in ("truth", "results", "scores"))
    state = InstancePrecision.empty(len(truth["categories"]), is_video=True)
    for video in truth["videos"]:
        size, number = (video["height"], video["width"]), video["id"]
        true = [
            true_track(track["category_id"] - 1, track["segmentations"], size)
            for track in truth["annotations"]
            if track["video_id"] == number
        ]
        found = [
            found_track(
                track["category_id"] - 1, track["segmentations"], size, track["score"]
            )
            for track in results
            if track["video_id"] == number
        ]
        state = state.update(str(number), size, tuple(true), tuple(found))
    metrics = state.compute()
    assert 0.1 < expected["AP"] < expected["AP50"] < 1
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
