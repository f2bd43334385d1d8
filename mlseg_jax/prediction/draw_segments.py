"""Segments as pictures: tinted, outlined and numbered, with a table of the numbers.

The n-th segment of a class has a shade of the class's colour that depends on n alone,
so that neighbours differ and a class looks alike in all pictures.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction import fonts
from mlseg_jax.prediction.legend import (
    INK,
    Drawing,
    em_of,
    row_bands,
    with_legend,
)
from mlseg_jax.prediction.visualise import (
    MAX_LEGEND_ROWS,
    class_colours,
    enlarge,
    line_width,
    percent,
    tint,
    with_neighbours,
)
from mlseg_jax.typing import VOID, Bool, Int, UInt8

SHADES = (0.0, 0.35, -0.3, 0.18, -0.16, 0.5, -0.42)
"""How far the next segments of a class are from its colour to white, or to black."""

MAX_MEASURED_SIDE = 1024
"""Pixels along a segment that are looked at for where it is widest."""

MIN_NUMBER_RADIUS = 3.0
"""Segments thinner than this, in pixels of the drawing, have their number only in the
table.
"""


def lay_over(
    segments: Sequence[Segment], size: tuple[int, int]
) -> Int[np.ndarray, "H W"]:
    """A map of segments that may overlap; those of higher score lie on top."""
    segment_map = np.full(size, VOID, np.int32)
    for segment in sorted(segments, key=lambda segment: segment.score):
        segment_map[segment.mask] = segment.segment_id
    return segment_map


def segment_colours(
    segments: Sequence[Segment], class_names: Sequence[str]
) -> UInt8[np.ndarray, "n 3"]:
    """One RGB colour for each segment, a shade of its class's."""
    class_ids = [segment.class_id for segment in segments]
    return shades(np.asarray(class_ids, int), class_colours(class_names))


def shades(
    class_ids: Int[np.ndarray, "n"], colours: UInt8[np.ndarray, "C 3"]
) -> UInt8[np.ndarray, "n 3"]:
    """The same of segments of these classes, which have these ``colours``."""
    seen: dict[int, int] = {}
    result = np.zeros((len(class_ids), 3), np.uint8)
    for i, class_id in enumerate(class_ids.tolist()):
        count = seen.get(class_id, 0)
        seen[class_id] = count + 1
        shade = SHADES[count % len(SHADES)]
        end = 255.0 if shade > 0 else 0.0
        colour = colours[class_id].astype(np.float64)
        result[i] = np.round(colour + abs(shade) * (end - colour))
    return result


def draw_segments(
    image: UInt8[np.ndarray, "_ _ 3"],
    found: Panoptic | Sequence[Segment],
    class_names: Sequence[str],
    alpha: float = 0.5,
    font: str = "",
    if_none: str = "no segments",
) -> Drawing:
    """The picture with its segments, their numbers and a table of them, of which a band
    of rows exists at a time.

    Pixels of no segment keep their colour. The table lists the largest segments: their
    number and label, their share of the pixels, their score. Pictures under
    ``MIN_PICTURE_SIDE`` are enlarged. ``font``: a file of letters for names of other
    scripts than ours (`fonts`). ``if_none`` stands in an empty table.

    Raises:
      ValueError: the picture and the segments have different sizes.
    """
    if isinstance(found, Panoptic):
        segments, segment_map = found.segments, found.segment_map
    else:
        segments, segment_map = found, lay_over(found, image.shape[:2])
    if image.shape[:2] != segment_map.shape:
        raise ValueError(
            f"image has shape {image.shape} but its segments {segment_map.shape}; "
            "resize one to the other first."
        )
    pixels = segment_map.size
    colours = segment_colours(segments, class_names)
    image, segment_map = enlarge(image, segment_map)
    table = np.zeros((int(segment_map.max(initial=0)) + 1, 3), np.uint8)
    for segment, colour in zip(segments, colours, strict=True):
        table[segment.segment_id : segment.segment_id + 1] = colour
    places, line = number_places(segment_map), line_width(segment_map.shape)

    def make_rows(rows: slice) -> np.ndarray:
        seen, own = with_neighbours(rows, segment_map.shape)
        part = segment_map[seen]
        colours, nothing = table[part], part == VOID
        tinted = tint(image[seen], part, colours, nothing, alpha, line)[own]
        return draw_numbers(tinted, places, segment_map.shape, rows.start)

    names = fonts.legible(class_names, {s.class_id for s in segments}, font)
    rows = _rows(segments, names, colours, pixels) or [(None, if_none, "", "")]
    heading = ("segment", "pixels", "score")
    return with_legend(segment_map.shape, make_rows, heading, rows, font)


class NumberPlace(NamedTuple):
    """Where a segment is widest: centre and radius of a disc in it."""

    number: int
    x: int
    y: int
    radius: float


def number_places(segment_map: Int[np.ndarray, "H W"]) -> list[NumberPlace]:
    """Of all segments that are wide enough for a number."""
    bands = [np.unique(segment_map[rows]) for rows in row_bands(segment_map.shape)]
    numbers = np.unique(np.concatenate(bands)).tolist()
    places = [_widest(i, segment_map == i) for i in numbers if i != VOID]
    return [place for place in places if place.radius >= MIN_NUMBER_RADIUS]


def draw_numbers(
    rows: UInt8[np.ndarray, "_ W 3"],
    places: Sequence[NumberPlace],
    size: tuple[int, int],
    first: int = 0,
) -> UInt8[np.ndarray, "_ W 3"]:
    """Rows from ``first`` on of a picture of this size, with segments' numbers."""
    canvas = Image.fromarray(rows)
    draw, largest = ImageDraw.Draw(canvas), 1.2 * em_of(size)
    for number, x, y, radius in places:
        letters = int(np.clip(1.2 * radius, 9, largest))
        if first - letters <= y < first + len(rows) + letters:
            draw.text(
                (x, y - first),
                str(number),
                (255, 255, 255),
                fonts.own_letters(letters),
                anchor="mm",
                stroke_width=max(1, letters // 8),
                stroke_fill=INK,
            )
    return np.asarray(canvas)


def _widest(number: int, mask: Bool[np.ndarray, "H W"]) -> NumberPlace:
    """About the largest disc in a segment, in its middle."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    # Of a large one, some of its pixels tell.
    step = -(-max(width, height) // MAX_MEASURED_SIDE)
    part = mask[y : y + height : step, x : x + width : step]
    if not part.any():  # A line between them.
        return NumberPlace(number, x, y, 0.0)
    part = np.pad(part, 1).astype(np.uint8)
    distance = cv2.distanceTransform(part, cv2.DIST_L2, 3)
    # Of a long segment a whole line of pixels is as far from its outline.
    far = np.argwhere(distance >= 0.95 * distance.max())
    nearest = np.square(far - np.argwhere(part).mean(axis=0)).sum(axis=1).argmin()
    top, left = (int(value) for value in far[nearest])
    radius = step * float(distance[top, left])
    return NumberPlace(number, x + step * (left - 1), y + step * (top - 1), radius)


def _rows(
    segments: Sequence[Segment],
    names: Mapping[int, str],
    colours: np.ndarray,
    pixels: int,
) -> list[tuple]:
    """Colour, number and label, share and score; a last row counts what is left out."""
    order = sorted(range(len(segments)), key=lambda i: -segments[i].area)
    rows = [
        (
            tuple(colours[i].tolist()),
            f"{segments[i].segment_id} {names[segments[i].class_id]}",
            percent(segments[i].area / pixels),
            percent(segments[i].score),
        )
        for i in order[:MAX_LEGEND_ROWS]
    ]
    if left := order[MAX_LEGEND_ROWS:]:
        share = percent(sum(segments[i].area for i in left) / pixels)
        rows.append((None, f"+{len(left)} more", share, ""))
    return rows
