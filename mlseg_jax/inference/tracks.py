"""Tracks: what video instance segmentation finds, from a whole video or from chunks.

Seen whole, a query is a track. Of a video in chunks, or one without end, the queries of
neighbouring chunks are matched by their cosine, without a parameter more (near-online,
masks.md 6.5); a track's class is the mean over the frames. Masks are run lengths as
soon as a chunk is done, and of the queries alone that may become tracks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from mlseg_jax.inference.clip_engine import SegmentedClip
from mlseg_jax.inference.instances import encode_masks
from mlseg_jax.typing import Bool, Float, Int

SPARE = 4
"""Queries of a chunk whose masks are kept, in multiples of the tracks wanted."""


@dataclasses.dataclass(frozen=True)
class Track:
    """An object in a video.

    Attributes:
      track_id: number in the video, from 1.
      class_id: which class.
      label: its name.
      score: probability of the class, mean over the video.
      run_lengths: COCO's of each frame; None where it is not seen.
    """

    track_id: int
    class_id: int
    label: str
    score: float
    run_lengths: tuple[Mapping | None, ...] = dataclasses.field(
        repr=False, compare=False
    )

    @property
    def areas(self) -> tuple[int, ...]:
        """Pixels in each frame."""
        return tuple(
            0 if runs is None else int(coco_mask.area(dict(runs)))
            for runs in self.run_lengths
        )


def same_queries(
    before: Float[np.ndarray, "N D"], after: Float[np.ndarray, "N D"]
) -> Int[np.ndarray, "N"]:
    """The query of ``after`` that each of ``before`` goes on as: of all assignments the
    one with the largest sum of cosines.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    cosines = unit(np.asarray(before, np.float64)) @ unit(np.asarray(after, float)).T
    return linear_sum_assignment(cosines, maximize=True)[1]


class Tracker:
    """Puts the chunks of a video together.

    Args:
      class_names: name of each class.
      is_thing: the classes that are kept, after the best pairs were chosen.
      max_tracks: pairs of a query and a class, by the class's probability.
      whole: whether the first chunk is all of the video: then masks are made of what
        was chosen alone.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        is_thing: Bool[np.ndarray, "C"],
        max_tracks: int,
        *,
        whole: bool = False,
    ):
        self._names = class_names
        self._is_thing = np.asarray(is_thing, bool)
        self._max_tracks = max_tracks
        self._whole = whole
        self._queries = None
        self._probabilities = None
        self._num_frames = self._frames_done = 0
        self._masks: dict[int, list[Mapping | None]] = {}

    def add(self, clip: SegmentedClip) -> Int[np.ndarray, "N"]:
        """The next chunk; returns the query of it that each track goes on as."""
        order = np.arange(len(clip.queries))
        if self._queries is not None:
            order = same_queries(self._queries, clip.queries)
        self._queries = clip.queries[order]
        own = _of_classes(clip, len(self._names))[order]
        total = len(clip) * own.astype(np.float64)
        if self._probabilities is None:
            self._probabilities = total
        else:
            self._probabilities = self._probabilities + total
        self._num_frames += len(clip)
        kept = self._kept(own)
        for frame in clip.frames:
            self._add_masks(frame, order, kept)
        return order

    def finish(self) -> tuple[Track, ...]:
        """All tracks, best first; those of things that some frame shows."""
        if self._probabilities is None:
            return ()
        mean = self._probabilities / self._num_frames
        tracks = []
        for query, class_id in self._pairs(mean):
            runs = self._masks.get(query, [])
            runs = (*runs, *[None] * (self._num_frames - len(runs)))
            if self._is_thing[class_id] and any(run is not None for run in runs):
                score = float(mean[query, class_id])
                label = str(self._names[class_id])
                tracks.append(Track(len(tracks) + 1, class_id, label, score, runs))
        return tuple(tracks)

    def _pairs(self, probabilities) -> list[tuple[int, int]]:
        order = np.argsort(-probabilities.ravel(), kind="stable")[: self._max_tracks]
        return [
            (int(query), int(class_id))
            for query, class_id in zip(
                *np.unravel_index(order, probabilities.shape), strict=True
            )
        ]

    def _kept(self, own: Float[np.ndarray, "N C"]) -> list[int]:
        """Queries whose masks in a chunk are wanted."""
        if self._whole:
            return sorted({query for query, _ in self._pairs(own)})
        best = own[:, self._is_thing].max(axis=1, initial=0.0)
        order = np.argsort(-best, kind="stable")[: SPARE * self._max_tracks]
        return sorted(set(order.tolist()))

    def _add_masks(self, frame, order, kept: list[int]) -> None:
        """Run lengths of one frame, for the tracks that are kept."""
        runs, _ = encode_masks(frame.only_window(), frame.size, order[kept])
        for query, run in zip(kept, runs, strict=True):
            masks = self._masks.setdefault(query, [])
            masks += [None] * (self._frames_done - len(masks))
            masks.append(run if coco_mask.area(run) else None)
        self._frames_done += 1


def _of_classes(clip: SegmentedClip, num_classes: int) -> Float[np.ndarray, "N C"]:
    """Probability of each class; ranks of two chunks may mean different classes."""
    picture = clip.frames[0]
    probabilities = picture.only_window().probabilities()
    of_classes = np.zeros((len(probabilities), num_classes), np.float32)
    of_classes[:, picture.class_ids[picture.ranks]] = probabilities[:, picture.ranks]
    return of_classes
