"""Tracks of random videos, and what TrackEval says of them: ``golden/tracks.json``.

    python3 -m venv /tmp/trackenv
    /tmp/trackenv/bin/pip install trackeval==1.3.0 pycocotools
    /tmp/trackenv/bin/python tests/parity/make_golden_tracks.py

TrackEval is what authors of tracking benchmarks evaluate with; its ``TrackMAP`` on its
``YouTubeVIS`` is average precision and recall of tracks by the IoU over time. Tracks
appear late, leave, swap places with one another and miss frames. There are no crowds:
it lets only one track be of a crowd, where YouTubeVIS's own evaluator lets many.
"""

import json
import pathlib
import tempfile

import numpy as np
import trackeval
from pycocotools import mask as coco_mask

CLASSES, SIZE = 3, (280, 300)
AREAS = [[0, 128**2], [128**2, 256**2], [256**2, 1e10]]
NAMES = "small", "medium", "large"
FILE = pathlib.Path(__file__).parent / "golden" / "tracks.json"


def runs_of(box: tuple[int, int, int] | None) -> dict | None:
    """Run lengths of a square (top, left, side); None where there is none."""
    if box is None:
        return None
    top, left, side = box
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    runs = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": runs["counts"].decode()}


def listed(runs: dict | None) -> dict | None:
    """With the lengths as numbers, as TrackEval reads truth."""
    if runs is None:
        return None
    pixels = coco_mask.decode(runs).ravel(order="F")
    ends = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    lengths = np.diff([0, *ends, pixels.size]).tolist()
    return runs | {"counts": lengths}


def make_video(random: np.random.Generator, length: int) -> tuple[list, list]:
    """True tracks (class, squares) and found ones (class, squares, score)."""
    true, found = [], []
    for _ in range(6):
        first, last = sorted(random.integers(0, length + 1, 2))
        last = max(last, min(first + 1, length))
        top, left = random.integers(0, 20, 2).tolist()
        side = int(random.choice([25, 110, 150, 230, 258]))
        boxes = [
            (top + 2 * i, left + i, side) if first <= i < last else None
            for i in range(length)
        ]
        if any(boxes):
            true.append((int(random.integers(CLASSES)), boxes))
    for number, (class_id, boxes) in enumerate(true):
        for _ in range(2):
            shift = int(random.integers(0, 1 + boxes[-1][2] // 5 if boxes[-1] else 6))
            moved = [box and (box[0], box[1] + shift, box[2]) for box in boxes]
            moved[random.integers(length)] = None  # a frame is missed
            other = true[(number + 1) % len(true)][1]
            if random.random() < 0.2:  # they swap places
                moved[length // 2 :] = other[length // 2 :]
            if random.random() < 0.15:  # the class of another
                class_id = (class_id + 1) % CLASSES
            if any(moved):
                score = float(random.choice([0.9, 0.5, round(random.random(), 3)]))
                found.append((class_id, moved, score))
    return true, found


def files() -> tuple[dict, list]:
    """Truth and results as YouTubeVIS has them."""
    random = np.random.default_rng(17)
    truth = {"videos": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": i + 1, "name": f"c{i}"} for i in range(CLASSES)]
    results = []
    for video, length in enumerate((1, 4, 6, 3), start=1):
        height, width = SIZE
        names = [f"{video}/{i}.jpg" for i in range(length)]
        size = {"height": height, "width": width}
        truth["videos"].append({"id": video, "file_names": names, **size})
        true, found = make_video(random, length)
        for class_id, boxes in true:
            runs = list(map(runs_of, boxes))
            areas = [run and int(coco_mask.area(run)) for run in runs]
            number = len(truth["annotations"]) + 1
            more = {"iscrowd": 0, "segmentations": runs, "areas": areas, **size}
            ids = {"id": number, "video_id": video, "category_id": class_id + 1}
            truth["annotations"].append(ids | more)
        for class_id, boxes, score in found:
            runs = list(map(runs_of, boxes))
            ids = {"video_id": video, "category_id": class_id + 1, "score": score}
            results.append(ids | {"segmentations": runs})
    return truth, results


def scores_of(truth: dict, results: list) -> dict[str, float]:
    """What TrackEval says."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "youtube_vis_val"
        (root / "ours" / "data").mkdir(parents=True)
        tracks = [
            track | {"segmentations": list(map(listed, track["segmentations"]))}
            for track in truth["annotations"]
        ]
        (root / "truth.json").write_text(json.dumps(truth | {"annotations": tracks}))
        (root / "ours" / "data" / "results.json").write_text(json.dumps(results))
        places = dict.fromkeys(("GT_FOLDER", "TRACKERS_FOLDER"), f"{folder}/")
        settings = {"SPLIT_TO_EVAL": "val", "TRACKERS_TO_EVAL": ["ours"]}
        data = trackeval.datasets.YouTubeVIS(places | settings)
        data.global_tid_counter = 1  # it takes the number 0 for "not matched"
        metric = trackeval.metrics.TrackMAP(
            {"AREA_RANGES": AREAS, "AREA_RANGE_LABELS": list(NAMES)}
            | {"USE_TIME_RANGES": False}
        )
        by_class = {}
        for name in data.class_list:
            of_videos = {}
            for video in data.seq_list:
                raw = data.get_raw_seq_data("ours", video)
                own = data.get_preprocessed_seq_data(raw, name)
                of_videos[video] = metric.eval_sequence(own)
            by_class[name] = metric.combine_sequences(of_videos)
        found = metric.combine_classes_class_averaged(by_class)
    scores = {"AP": found["AP_all"].mean(), "AR100": found["AR_all"].mean()}
    scores |= {"AP50": found["AP_all"][0], "AP75": found["AP_all"][5]}
    scores |= {f"AP_{name}": found[f"AP_{name}"].mean() for name in NAMES}
    return {name: float(value) for name, value in scores.items()}


def main() -> None:
    truth, results = files()
    scores = scores_of(truth, results)
    print(scores)
    golden = {"truth": truth, "results": results, "scores": scores}
    FILE.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
