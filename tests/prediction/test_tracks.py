"""Tracks: which segment of a frame is which of those before."""

import numpy as np
from pycocotools import mask as coco_mask

from mlseg_jax.inference.segments import Segment
from mlseg_jax.prediction.tracks import MAX_GAP, Tracker

SIZE = (24, 60)
SIGN, CAR, SKY = range(3)
IS_THING = (True, True, False)


def segment(class_id, left, score=0.9, size=SIZE, query=None):
    mask = np.zeros(size, np.uint8, order="F")
    mask[4:16, left : left + 10] = 1
    runs = coco_mask.encode(mask)
    area, box = int(mask.sum()), (left, 4, 10, 12)
    return Segment(1, class_id, "name", score, area, box, 0, runs, query)


def entry(segment, track):
    runs = segment.run_lengths
    runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    return {"track": track, "class_id": segment.class_id, "segmentation": runs}


def test_one_number_for_what_moves_and_crosses():
    tracker = Tracker(IS_THING, 0.5)
    numbers = set()
    for time in range(10):
        right, left = segment(SIGN, 2 * time), segment(CAR, 20 - 2 * time)
        unlikely = segment(SIGN, 45, score=0.4)
        # The order within a frame means nothing.
        order = [0, 1, 2] if time % 2 else [1, 2, 0]
        found = tracker.add([(right, left, unlikely)[i] for i in order])
        numbers.add(tuple(found[order.index(i)] for i in range(3)))
    ((sign, car, unlikely),) = numbers
    assert sign != car and unlikely is None


def test_stuff_is_one_track_and_gaps_are_bridged():
    tracker = Tracker(IS_THING, 0.5)
    seen = {}
    for time in range(4 + MAX_GAP + 4 + MAX_GAP + 3):
        found = [segment(SKY, time)]
        here = time < 3 or 3 + MAX_GAP <= time < 6 + MAX_GAP or time == 6 + 2 * MAX_GAP
        if here:
            found.append(segment(SIGN, 20))
        seen[time] = tracker.add(found)
    skies = {numbers[0] for numbers in seen.values()}
    assert skies == {seen[0][0]}
    signs = [numbers[1] for numbers in seen.values() if len(numbers) > 1]
    assert len(signs) == 7 and len(set(signs[:6])) == 1
    assert seen[6 + 2 * MAX_GAP][1] == signs[0]
    # Once it is missing for longer, it is another one.
    for _ in range(MAX_GAP + 1):
        tracker.add([])
    assert tracker.add([segment(SIGN, 20)])[0] not in (*signs, *skies)
    # And what is of another class, far away or of another size.
    assert tracker.add([segment(CAR, 20)])[0] > signs[0]
    last = tracker.add([segment(CAR, 45), segment(CAR, 20, size=(30, 60))])
    assert len(set(last)) == 2


def test_frames_of_another_size():
    """Tracks of the old size are in nobody's way, and queries need no masks."""
    tracker = Tracker(IS_THING, 0.5)
    first = tracker.add([segment(SIGN, 20), segment(SIGN, 40, query=3)])
    wide = [segment(SIGN, 20, size=(30, 60)), segment(SIGN, 0, size=(30, 60), query=3)]
    later = [tracker.add(wide) for _ in range(MAX_GAP)]
    assert len(set(later)) == 1 and later[0][1] == first[1]
    assert later[0][0] not in first


def test_taken_up_where_it_was_left():
    rng = np.random.default_rng(2)
    film = [
        [segment(int(rng.integers(3)), int(rng.integers(50))) for _ in range(3)]
        for _ in range(12)
    ]
    # Equal masks, of which the tracks are told by their order alone.
    for count in rng.integers(0, 4, 12):
        film.append([segment(SIGN, 2 * int(x)) for x in rng.integers(0, 4, count)])
    whole = Tracker(IS_THING, 0.5)
    expected = [whole.add(found) for found in film]
    for start in range(1, len(film)):
        again = Tracker(IS_THING, 0.5)
        for found, numbers in zip(film[:start], expected, strict=False):
            again.repeat([entry(s, n) for s, n in zip(found, numbers, strict=True)])
        assert [again.add(found) for found in film[start:]] == expected[start:]
