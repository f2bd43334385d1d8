"""The video under its labels: colours, numbers and a legend that stay from frame to
frame.

It is drawn when all frames are segmented, out of what was written of them. Only then is
it known which labels the video has, so that the legend and the size stay the same, and
what is killed while drawing is drawn again.
"""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from input_pipeline.files import coco_masks
from mlseg_jax.prediction import fonts
from mlseg_jax.prediction.draw_segments import draw_numbers, number_places, shades
from mlseg_jax.prediction.legend import with_legend
from mlseg_jax.prediction.visualise import (
    MAX_LEGEND_ROWS,
    class_colours,
    colourise,
    enlarge,
    line_width,
    percent,
    tint,
)
from mlseg_jax.typing import VOID, Int, UInt, UInt8

_ALPHA = 0.5


class VideoOverlay:
    """Draws the frames of one video.

    Args:
      size: height and width of its first frame; others are brought to it.
      class_names: of all classes.
      lines: what was written of each frame (`video_record`); gone through once.
      font: a file of letters for names of other scripts than ours (`fonts`).

    Attributes:
      size: height and width of what `draw` gives.
    """

    def __init__(
        self,
        size: tuple[int, int],
        class_names: Sequence[str],
        lines: Iterable[dict],
        font: str = "",
    ):
        self._size, self._names = size, class_names
        self._colours = class_colours(class_names)
        shares, tracks = _sums(lines)
        self._colour_of_track = _track_colours(tracks, self._colours)
        if tracks:
            counts = np.bincount(list(tracks.values()), minlength=len(class_names))
            shares = dict(enumerate(counts.tolist()))
        order = [i for i in sorted(shares, key=lambda i: -shares[i]) if shares[i] > 0]
        shown = fonts.legible(class_names, order[:MAX_LEGEND_ROWS], font)
        write = str if tracks else percent
        rows = [
            (tuple(self._colours[i].tolist()), str(shown[i]), write(shares[i]))
            for i in order[:MAX_LEGEND_ROWS]
        ]
        if left := len(order) - len(rows):
            rows.append((None, f"+{left} more", ""))
        rows = rows or [(None, "no labels", "")]
        blank, _ = enlarge(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
        heading = ("label", "segments" if tracks else "pixels")
        drawing = with_legend(
            blank.shape[:2], lambda part: blank[part], heading, rows, font
        )
        self._canvas = drawing.whole()
        self.size = self._canvas.shape[:2]

    def draw(
        self,
        image: UInt8[np.ndarray, "_ _ 3"],
        label_map: UInt[np.ndarray, "_ _"],
        line: dict,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """A frame and its legend; ``line``: what was written of it."""
        if "segments" in line:
            ids = _track_map(line["segments"], image.shape[:2])
        else:
            ids = label_map
        if image.shape[:2] != self._size:
            size = self._size[::-1]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
        image, ids = enlarge(image, ids)
        width = line_width(ids.shape)
        if "segments" in line:
            colours, nothing = self._colour_of_track[ids], ids == VOID
            picture = tint(image, ids, colours, nothing, _ALPHA, width)
            picture = draw_numbers(picture, number_places(ids), ids.shape)
        else:
            colours, nothing = colourise(ids, self._colours), np.zeros(ids.shape, bool)
            picture = tint(image, ids, colours, nothing, _ALPHA, width)
        canvas = self._canvas.copy()
        canvas[: picture.shape[0], : picture.shape[1]] = picture
        return canvas


def _sums(lines: Iterable[dict]) -> tuple[dict[int, float], dict[int, int]]:
    """Mean share of each class over the frames, and the class of each track."""
    shares: dict[int, float] = {}
    tracks: dict[int, int] = {}
    count = 0
    for line in lines:
        count += 1
        for label in line["labels"]:
            number = label["class_id"]
            shares[number] = shares.get(number, 0.0) + label["pixel_share"]
        tracks |= {s["track"]: s["class_id"] for s in line.get("segments", ())}
    return {i: share / count for i, share in shares.items()}, tracks


def _track_colours(
    tracks: Mapping[int, int], colours: UInt8[np.ndarray, "C 3"]
) -> UInt8[np.ndarray, "n 3"]:
    """A row for each number: the n-th track of a class has the n-th of its shades."""
    table = np.zeros((max(tracks, default=0) + 1, 3), np.uint8)
    order = sorted(tracks)
    if order:
        table[order] = shades(np.asarray([tracks[i] for i in order]), colours)
    return table


def _track_map(
    segments: Sequence[dict], size: tuple[int, int]
) -> Int[np.ndarray, "H W"]:
    """The track of each pixel; those of higher score lie on top."""
    track_map = np.full(size, VOID, np.int32)
    for segment in sorted(segments, key=lambda segment: segment["score"]):
        runs = segment["segmentation"]
        runs = {"size": runs["size"], "counts": runs["counts"].encode()}
        mask = coco_masks.decode(runs, size, f"Segment {segment['track']}")
        track_map[mask] = segment["track"]
    return track_map
