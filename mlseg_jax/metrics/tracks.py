"""Tracks as instances of one wide picture, for average precision of videos.

Run lengths go down the columns, so those of frames side by side are those of a picture
as wide as the video is long: the IoU of two such masks is YouTubeVIS's, the sum of
intersections over the sum of unions, and a frame where an object is absent counts as
an empty mask (masks.md 6.4).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from mlseg_jax.metrics.instance_precision import FoundInstance, TrueInstance

Runs = Sequence[Mapping | None]
"""COCO's run lengths of each frame; None where there is nothing."""


MOST_PIXELS = 2**31
"""Of a mask whose run lengths the library can add up."""


def in_parts(frames: Runs, size: tuple[int, int]) -> dict:
    """As `side_by_side`; of a long video, the masks of its parts as ``counts``.

    `instance_precision` adds up the pixels of parts.
    """
    length = max(1, MOST_PIXELS // (size[0] * size[1]))
    if len(frames) <= length:
        return side_by_side(frames, size)
    starts = range(0, len(frames), length)
    parts = tuple(side_by_side(frames[i : i + length], size) for i in starts)
    return {"size": [size[0], size[1] * len(frames)], "counts": parts}


def side_by_side(frames: Runs, size: tuple[int, int]) -> dict:
    """Run lengths of all frames, of height and width ``size``, as one mask."""
    height, width = size
    counts, value = [0], 0
    for runs in frames:
        if runs is None:
            lengths = [height * width]
        else:
            lengths = coco_masks.runs(dict(runs), size, "A track").tolist()
        for i, length in enumerate(lengths):
            if not length:
                continue
            if i % 2 == value:
                counts[-1] += length
            else:
                counts.append(length)
                value = 1 - value
    wide = [height, width * len(frames)]
    return coco_mask.frPyObjects({"size": wide, "counts": counts}, *wide)


def mean_area(frames: Runs) -> float:
    """Pixels of the frames that have any, which is a track's area."""
    areas = [coco_mask.area(dict(runs)) for runs in frames if runs is not None]
    areas = [area for area in areas if area]
    return float(np.mean(areas)) if areas else 0.0


def true_track(
    class_id: int, frames: Runs, size: tuple[int, int], is_crowd: bool = False
) -> TrueInstance:
    """A track that is to be found."""
    return TrueInstance(class_id, in_parts(frames, size), is_crowd, mean_area(frames))


def found_track(
    class_id: int, frames: Runs, size: tuple[int, int], score: float
) -> FoundInstance:
    """A predicted track."""
    return FoundInstance(class_id, in_parts(frames, size), score, mean_area(frames))
