"""Which segment of a frame is which of the frames before: tracks.

Models of single pictures number segments anew in each. Here segments of neighbouring
frames with one class are matched by how much their masks overlap, those of stuff by
class alone, of which a picture has one segment. Models of clips say which query a
segment is of in all frames; that goes before any overlap. A track is kept while its
segment is missing for a few frames. Nothing is learned.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from mlseg_jax.inference.segments import Segment
from mlseg_jax.typing import Float

LEAST_OVERLAP = 0.3
"""Least IoU of masks that may be of one object."""

MAX_GAP = 5
"""Frames after which what is missing has gone."""


@dataclasses.dataclass
class _Track:
    """Where a track was last seen."""

    number: int
    class_id: int
    run_lengths: dict
    frame: int
    query: int | None = None


class Tracker:
    """Numbers the segments of one video, frame after frame.

    Args:
      is_thing: whether a class has instances, or is one region.
      least_score: segments of a lower score are not followed.
    """

    def __init__(self, is_thing: Sequence[bool], least_score: float):
        self._is_thing, self._least_score = is_thing, least_score
        self._tracks: list[_Track] = []
        self._stuff: dict[int, int] = {}
        self._next, self._frame = 1, 0

    def add(self, segments: Sequence[Segment]) -> tuple[int | None, ...]:
        """The track of each segment of the next frame, from 1; None for those whose
        score is too low.
        """
        likely = [i for i, s in enumerate(segments) if s.score >= self._least_score]
        numbers: list[int | None] = [None] * len(segments)
        things = []
        for i in likely:
            if self._is_thing[segments[i].class_id]:
                things.append(i)
            else:
                numbers[i] = self._number_of_stuff(segments[i].class_id)
        chosen = [
            (segments[i].class_id, segments[i].run_lengths, segments[i].query)
            for i in things
        ]
        for i, number in zip(things, self._match(chosen), strict=True):
            numbers[i] = number
        return tuple(numbers)

    def repeat(self, segments: Sequence[dict]) -> None:
        """A frame that was done before, as it was written: of each segment ``track``,
        ``class_id`` and ``segmentation``. So a video is taken up where it was left.
        """
        self._frame += 1
        self._tracks = self._lately()
        for segment in segments:
            number, class_id = segment["track"], segment["class_id"]
            self._next = max(self._next, number + 1)
            if not self._is_thing[class_id]:
                self._stuff[class_id] = number
                continue
            runs = segment["segmentation"]
            runs = {"size": runs["size"], "counts": runs["counts"].encode()}
            # In the order of their first frames, as `add` has them: of equal overlaps
            # the first one wins.
            track = next((t for t in self._tracks if t.number == number), None)
            if track is None:
                track = _Track(number, class_id, runs, self._frame)
                self._tracks.append(track)
            track.run_lengths, track.frame = runs, self._frame

    def memory(self) -> dict[str, np.ndarray]:
        """What lines do not say: the queries of tracks, of models that have them."""
        queries = [(t.number, t.query) for t in self._tracks if t.query is not None]
        return {"track_queries": np.asarray(queries)} if queries else {}

    def recall(self, memory: Mapping[str, np.ndarray]) -> None:
        """After `repeat` of all frames: the `memory` of after the last of them."""
        queries = dict(memory.get("track_queries", np.empty((0, 2), int)).tolist())
        for track in self._tracks:
            track.query = queries.get(track.number)

    def _lately(self) -> list[_Track]:
        return [t for t in self._tracks if self._frame - t.frame <= MAX_GAP + 1]

    def _number_of_stuff(self, class_id: int) -> int:
        if class_id not in self._stuff:
            self._stuff[class_id] = self._new_number()
        return self._stuff[class_id]

    def _new_number(self) -> int:
        self._next += 1
        return self._next - 1

    def _match(self, found: list[tuple[int, dict, int | None]]) -> list[int]:
        self._frame += 1
        tracks = self._lately()
        overlaps = _overlaps(found, tracks)
        numbers: list[int | None] = [None] * len(found)
        for row, column in zip(*linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, column] > 0:
                track = tracks[column]
                track.run_lengths, track.frame = found[row][1], self._frame
                track.query = found[row][2]
                numbers[row] = track.number
        for row, (class_id, runs, query) in enumerate(found):
            if numbers[row] is None:
                numbers[row] = self._new_number()
                tracks.append(_Track(numbers[row], class_id, runs, self._frame, query))
        self._tracks = tracks
        return numbers


def _overlaps(
    found: list[tuple[int, dict, int | None]], tracks: list[_Track]
) -> Float[np.ndarray, "n m"]:
    """IoU of masks of one class; 0 where that is too little, or the video has changed
    its size since. One query more than that.
    """
    result = np.zeros((len(found), len(tracks)))
    if not result.size:
        return result
    masks = [runs for _, runs, _ in found], [track.run_lengths for track in tracks]
    # Of masks of two sizes it is 0 or -1.
    overlaps = np.asarray(coco_mask.iou(*masks, [0] * len(tracks)))
    classes = np.asarray([class_id for class_id, *_ in found])
    same = classes[:, None] == [track.class_id for track in tracks]
    result = np.where(overlaps >= LEAST_OVERLAP, overlaps, 0.0)
    for row, (*_, query) in enumerate(found):
        if query is not None:
            result[row] += [track.query == query for track in tracks]
    return np.where(same, result, 0.0)
