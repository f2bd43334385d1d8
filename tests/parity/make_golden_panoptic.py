"""Writes `golden/panoptic.npz`: maps of segments, and what panopticapi says of them.

    pip install --no-deps panopticapi-lite==0.2.0   (code of COCO's authors)
    python tests/parity/make_golden_panoptic.py

Keys per picture i: `truth_<i>`, `prediction_<i>` maps of ids; `true_segments_<i>` rows
of id, class, crowd, area as the JSON has it; `segments_<i>` rows of id and class.
`per_class` rows: IoU sum, TP, FP, FN; `scores` rows All, Things, Stuff: PQ, SQ, RQ.
"""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
from panopticapi import evaluation
from panopticapi.utils import id2rgb
from PIL import Image

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "panoptic.npz"
NUM_CLASSES, NUM_THINGS = 9, 5  # class 8 is nowhere


def segments_of(random, ids) -> np.ndarray:
    classes = random.integers(0, NUM_CLASSES - 1, len(ids))
    return np.stack([ids, classes], axis=1)


def blobs(random, shape, count, void) -> np.ndarray:
    """Cells of random seeds, which touch, and boxes of void over them."""
    seeds = random.random((count, 2)) * shape
    pixels = np.stack(np.indices(shape), -1).reshape(-1, 1, 2)
    ids = 1 + np.square(pixels - seeds).sum(-1).argmin(1).reshape(shape)
    for _ in range(void):
        y, x = random.integers(0, shape[0] - 4), random.integers(0, shape[1] - 4)
        ids[y : y + 12, x : x + 9] = 0
    return ids


def disturb(random, ids, share) -> np.ndarray:
    """Segments shifted, some swallowed by a neighbour, some void."""
    moved = np.roll(ids, random.integers(-1, 2, 2), (0, 1))
    for segment in np.unique(moved):
        if random.random() < share:
            moved[moved == segment] = random.choice(np.unique(moved))
    return moved


def picture(random, shape, count, void, crowds, share) -> dict:
    truth = blobs(random, shape, count, void)
    prediction = disturb(random, truth, share)
    far = 65_536 * 3 + 257  # ids that need all three bytes
    true_ids = np.unique(truth[truth > 0])
    segments = segments_of(random, true_ids)
    crowd = random.random(len(segments)) < crowds
    area = np.asarray([(truth == i).sum() for i in true_ids], int)
    area += random.random(len(area)) < 0.1  # JSON and PNG may disagree
    classes = dict(segments.tolist())
    found = np.unique(prediction[prediction > 0])
    own = [
        classes.get(i, 0)
        if random.random() > share
        else random.integers(NUM_CLASSES - 1)
        for i in found.tolist()
    ]
    return {
        "truth": truth,
        "true_segments": np.column_stack([segments, crowd, area]).astype(int),
        "prediction": np.where(prediction > 0, prediction + far, 0),
        "segments": np.column_stack([found + far, own]).astype(int).reshape(-1, 2),
    }


def pictures() -> list[dict]:
    random = np.random.default_rng(0)
    cases = [picture(random, (40, 56), n, 2, 0.15, 0.15) for n in (1, 2, 5, 9, 14, 30)]
    cases += [picture(random, (96, 120), 300, 6, 0.1, 0.05)]
    nothing = picture(random, (24, 24), 4, 0, 0, 0)
    nothing["prediction"] = np.zeros((24, 24), int)
    nothing["segments"] = np.zeros((0, 2), int)
    all_void = picture(random, (24, 24), 4, 0, 0, 0)
    all_void["truth"] = np.zeros((24, 24), int)
    all_void["true_segments"] = np.zeros((0, 4), int)
    # Exactly half: an IoU of 0.5 is no match, a half of void or crowd not ignored.
    half = np.zeros((20, 20), int)
    half[:10], half[10:, :10], half[10:, 10:] = 1, 2, 3
    own = np.zeros((20, 20), int)
    own[:5], own[5:10, :10], own[10:] = 7, 8, 9
    own[5:10, 10:15] = 6
    exact = {
        "truth": half * (np.arange(20) < 15),
        "true_segments": np.asarray(
            [[1, 0, 0, 150], [2, 1, 1, 100], [3, 6, 0, 50]], int
        ),
        "prediction": own,
        "segments": np.asarray([[6, 0], [7, 0], [8, 2], [9, 1]], int),
    }
    return cases + [nothing, all_void, exact]


def evaluate(cases) -> evaluation.PQStat:
    """panopticapi's own function, on files."""
    categories = {
        i: {"id": i, "name": str(i), "isthing": int(i < NUM_THINGS)}
        for i in range(NUM_CLASSES)
    }
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for i, case in enumerate(cases):
            for kind in ("truth", "prediction"):
                name = root / f"{kind}_{i}.png"
                Image.fromarray(id2rgb(case[kind].astype(np.uint32))).save(name)
            keys = ("id", "category_id", "iscrowd", "area")
            pairs.append(
                tuple(
                    {
                        "image_id": i,
                        "file_name": f"{kind}_{i}.png",
                        "segments_info": json.loads(
                            json.dumps(
                                [
                                    dict(zip(keys, row, strict=False))
                                    for row in case[table].tolist()
                                ]
                            )
                        ),
                    }
                    for kind, table in (
                        ("truth", "true_segments"),
                        ("prediction", "segments"),
                    )
                )
            )
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluation.pq_compute_single_core(0, pairs, root, root, categories)


def main() -> None:
    cases = pictures()
    statistics = evaluate(cases)
    categories = {i: {"isthing": int(i < NUM_THINGS)} for i in range(NUM_CLASSES)}
    scores = [
        [statistics.pq_average(categories, group)[0][key] for key in ("pq", "sq", "rq")]
        for group in (None, True, False)
    ]
    per_class = [
        [getattr(statistics[i], key) for key in ("iou", "tp", "fp", "fn")]
        for i in range(NUM_CLASSES)
    ]
    arrays = {
        f"{key}_{i}": value.astype(np.int32)
        for i, case in enumerate(cases)
        for key, value in case.items()
    }
    np.savez_compressed(
        GOLDEN,
        num_things=NUM_THINGS,
        per_class=np.asarray(per_class),
        scores=np.asarray(scores),
        **arrays,
    )
    print(np.asarray(per_class), np.asarray(scores), sep="\n")


if __name__ == "__main__":
    main()
