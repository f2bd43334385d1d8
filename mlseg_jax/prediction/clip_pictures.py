"""A model of clips, used like one of pictures: `segmenter.Segmenter` knows no other.

Frames of a video go through it a chunk at a time, whatever the length of the video. The
queries of a chunk are matched with those of the chunk before by their cosine, so that
an object keeps its query, and by it its track (`prediction.tracks`).
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mlseg_jax.inference.clip_engine import ClipEngine, SegmentedClip
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.tracks import same_queries
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.typing import Bool, Int

CHUNK = 16
"""Frames that are seen together where training says whole videos: of these nobody knows
the length."""


class ClipPictures:
    """As `inference.engine.Engine` for pictures and frames."""

    def __init__(self, engine: ClipEngine, num_queries: int):
        self._engine = engine
        self._queries = None
        self.settings = engine.settings
        self.num_queries = num_queries
        self.batch_sizes = (engine.num_frames or CHUNK, 1)

    def begin(self) -> None:
        """A new video."""
        self._engine.begin()
        self._queries = None

    def segment(
        self,
        images: Sequence[np.ndarray],
        policies: Sequence[tuple[SelectionPolicy, Selection | None]],
        allowed: Bool[np.ndarray, "C"] | None = None,
        scope: str | None = None,
    ) -> list[list[SegmentedRegions]]:
        """Per policy, the regions of each picture.

        With a ``scope`` the pictures are the next frames of a video, and those of one
        size are a clip; without one every picture is a clip of one frame. A ``given``
        selection is that of the first of them.
        """
        results: list[list[SegmentedRegions]] = [[] for _ in policies]
        for start, run in self._clips(images, scope):
            own = [(policy, _row(given, start)) for policy, given in policies]
            if scope is None:
                self.begin()
            clips = self._engine.segment(run, own, allowed, scope)
            slots = None if scope is None else self._slots(clips[0])
            for result, clip in zip(results, clips, strict=True):
                result += [
                    dataclasses.replace(frame, slots=slots) for frame in clip.frames
                ]
        return results

    def _clips(self, images, scope):
        """Index of the first picture, and the pictures, of each clip."""
        if scope is None:
            yield from ((i, [image]) for i, image in enumerate(images))
            return
        start = 0
        for _, run in itertools.groupby(images, key=lambda image: image.shape):
            run = list(run)
            yield start, run
            start += len(run)

    def _slots(self, clip: SegmentedClip) -> Int[np.ndarray, "N"]:
        """What each query of a chunk is called in the whole video."""
        order = np.arange(len(clip.queries))
        if self._queries is not None:
            order = same_queries(self._queries, clip.queries)
        self._queries = clip.queries[order]
        slots = np.empty_like(order)
        slots[order] = np.arange(len(order))
        return slots


def _row(given: Selection | None, row: int) -> Selection | None:
    """One row of a selection of several pictures."""
    if given is None:
        return None
    valid = given.valid
    return Selection(
        given.class_ids[row : row + 1],
        None if valid is None else valid[row : row + 1],
        given.num_classes,
    )
