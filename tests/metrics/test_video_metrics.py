"""Video consistency and precision of tracks, against slow versions written out."""

import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from mlseg_jax.metrics import tracks as of_tracks
from mlseg_jax.metrics.instance_precision import InstancePrecision, _iou_of_parts
from mlseg_jax.metrics.tracks import found_track, mean_area, side_by_side, true_track
from mlseg_jax.metrics.video_consistency import ConsistencyOfVideo, VideoConsistency

SIZE = (6, 7)


def slow_consistency(videos, length):
    """masks.md 6.3: window by window."""
    values = []
    for predictions, truths in videos:
        for start in range(len(truths) - length):
            window = slice(start, start + length)
            still = (truths[window] == truths[start]).all(0)
            same = (predictions[window] == predictions[start]).all(0)
            values.append((still & same).sum() / still.sum() if still.any() else np.nan)
    return values


def test_consistency_window_by_window():
    """Videos of all lengths around the windows'; changes; a window without G."""
    rng = np.random.default_rng(0)
    videos, total = [], VideoConsistency.empty()
    for length in (1, 7, 8, 9, 16, 17, 30):
        changes = rng.random((2, length, *SIZE)) < 0.05
        predictions, truths = np.cumsum(changes, axis=1) - 1
        if length == 30:
            truths[10] = 99  # all pixels change
        videos.append((predictions, truths))
        video = ConsistencyOfVideo()
        for prediction, truth in zip(predictions, truths, strict=True):
            total = total.merge(video.add(prediction.astype(np.uint8), truth))
    lists = [slow_consistency(videos, length) for length in (8, 16)]
    metrics = total.compute()
    assert np.isnan(lists[0] + lists[1]).any()
    assert metrics["VC8"] == pytest.approx(np.nanmean(lists[0]), abs=1e-12)
    assert metrics["VC16"] == pytest.approx(np.nanmean(lists[1]), abs=1e-12)
    # The list is not cleared between the two.
    slip = np.nanmean(lists[0] + lists[1])
    assert metrics["VC16_as_scripted"] == pytest.approx(slip, abs=1e-12)
    assert np.isnan(VideoConsistency.empty().compute()["VC8"])


# ------------------------------------------------------------------------------ tracks


def encode(masks):
    """Run lengths of each frame; None where it is empty."""
    return [
        coco_mask.encode(np.asfortranarray(mask, np.uint8)) if mask.any() else None
        for mask in masks
    ]


def box(rng, length, side):
    """A box that moves, appears late and leaves early, bool [F H W]."""
    masks = np.zeros((length, 300, 320), bool)
    first, last = sorted(rng.integers(0, length + 1, 2))
    top, left = rng.integers(0, 40, 2)
    for frame in range(first, last):
        y, x = top + 3 * frame, left + 2 * frame
        masks[frame, y : y + side, x : x + side] = True
    return masks


def make_videos(rng):
    """True and found tracks: class, masks, crowd or score."""
    videos = []
    for length in (1, 3, 5):
        true, found = [], []
        for _ in range(5):
            side = int(rng.choice([20, 120, 200, 250]))
            masks = box(rng, length, side)
            class_id = int(rng.integers(2))
            true.append((class_id, masks, bool(rng.random() < 0.2)))
            for shift in rng.integers(0, 8, 2):
                moved = np.roll(masks, shift, axis=2)
                moved[rng.integers(length)] = False  # a frame is missed
                score = float(rng.choice([0.9, 0.5, rng.random()]))
                found.append((class_id, moved, score))
        found.append((0, box(rng, length, 30), 0.7))  # false
        videos.append((true, found))
    return videos


def spatio_temporal_iou(first, second):
    union = sum((a | b).sum() for a, b in zip(first, second, strict=True))
    common = sum((a & b).sum() for a, b in zip(first, second, strict=True))
    return common / union if union else 0.0


def track_area(masks):
    areas = [mask.sum() for mask in masks if mask.any()]
    return float(np.mean(areas)) if areas else 0.0


def slow_precision(videos, class_id, threshold, low, high, cap):
    """masks.md 6.4: mean precision and last recall; None without truth."""
    entries, num_true = [], 0
    for true, found in videos:
        true = [(m, crowd) for c, m, crowd in true if c == class_id]
        ignored = [c or not low <= track_area(m) <= high for m, c in true]
        order = sorted(range(len(true)), key=lambda i: ignored[i])
        found = sorted((f for f in found if f[0] == class_id), key=lambda f: -f[2])
        taken = set()
        for _, masks, score in found[:cap]:
            best, match = min(threshold, 1 - 1e-10), None
            for i in order:
                if i in taken and not true[i][1]:
                    continue
                if match is not None and not ignored[match] and ignored[i]:
                    break
                iou = spatio_temporal_iou(masks, true[i][0])
                if iou >= best:
                    best, match = iou, i
            if match is not None:
                taken.add(match)
                entries.append((score, True, ignored[match]))
            else:
                outside = not low <= track_area(masks) <= high
                entries.append((score, False, outside))
        num_true += ignored.count(False)
    if not num_true:
        return None
    entries.sort(key=lambda e: -e[0])
    hits = np.cumsum([h and not i for _, h, i in entries])
    false = np.cumsum([not h and not i for _, h, i in entries])
    recall = hits / num_true
    precision = hits / np.maximum(hits + false, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    curve = [precision[p] if p < len(precision) else 0.0 for p in places]
    return np.mean(curve), recall[-1] if len(recall) else 0.0


def test_tracks_against_loops():
    """Objects that appear late, leave, miss frames, are crowds; ties of scores."""
    videos = make_videos(np.random.default_rng(1))
    state = InstancePrecision.empty(3, is_video=True)
    for number, (true, found) in enumerate(videos):
        size = (300, 320)
        state = state.merge(
            InstancePrecision.empty(3, is_video=True).update(
                f"video {number}",
                size,
                tuple(true_track(c, encode(m), size, k) for c, m, k in true),
                tuple(found_track(c, encode(m), size, s) for c, m, s in found),
            )
        )
    metrics = state.compute()
    thresholds = np.linspace(0.5, 0.95, 10)
    ranges = {
        "AP": (0, 1e10, 100),
        "AP_small": (0, 128**2, 100),
        "AP_medium": (128**2, 256**2, 100),
        "AR1": (0, 1e10, 1),
        "AR10": (0, 1e10, 10),
    }
    for name, (low, high, cap) in ranges.items():
        values = [
            slow_precision(videos, class_id, threshold, low, high, cap)
            for class_id, threshold in itertools.product(range(2), thresholds)
        ]
        expected = np.mean([v[name.startswith("AR")] for v in values if v is not None])
        assert metrics[name] == pytest.approx(expected, abs=1e-9), name
    assert 0 < metrics["AP"] < 1 and np.isnan(state.per_class()["AP"][2])


def test_tracks_of_more_pixels_than_32_bits_count(monkeypatch):
    """Five frames of 2^30 pixels: of the truth's columns 72 in 100 are found."""
    size, column = (2**15, 2**15), 2**15

    def columns(count):
        runs = {"size": size, "counts": [0, count * column, (2**15 - count) * column]}
        return coco_mask.frPyObjects(runs, *size)

    true = true_track(0, [None, *[columns(10_000)] * 4], size)
    found = found_track(0, [None, *[columns(7_200)] * 4], size, 0.9)
    assert len(true.run_lengths["counts"]) == 3
    empty = InstancePrecision.empty(1, is_video=True)
    metrics = empty.update("long", size, (true,), (found,)).compute()
    assert metrics["AP"] == pytest.approx(0.5)  # at 0.5, 0.55, ..., 0.7
    assert metrics["AP_large"] == metrics["AP"]
    # As of one wide mask.
    rng = np.random.default_rng(0)
    tracks = [encode(box(rng, 5, 150)) for _ in range(4)]
    wide = [side_by_side(each, (300, 320)) for each in tracks]
    monkeypatch.setattr(of_tracks, "MOST_PIXELS", 2 * 300 * 320)
    parts = [of_tracks.in_parts(each, (300, 320))["counts"] for each in tracks]
    np.testing.assert_allclose(
        _iou_of_parts(parts[:2], parts), coco_mask.iou(wide[:2], wide, [0] * 4)
    )


def test_frames_side_by_side():
    rng = np.random.default_rng(0)
    masks = rng.random((4, *SIZE)) < 0.5
    masks[2] = False
    masks[0, -1, -1] = masks[1, 0, 0] = True  # a run goes on in the next frame
    wide = coco_masks.draw(side_by_side(encode(masks), SIZE))
    np.testing.assert_array_equal(wide, np.concatenate(list(masks), axis=1))
    assert coco_mask.area(side_by_side([None, None], SIZE)) == 0
    assert mean_area(encode(masks)) == masks.sum() / 3
    assert mean_area([None]) == 0
