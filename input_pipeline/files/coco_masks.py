"""Polygons and COCO run lengths to masks, and layers of masks to one label map.

A segmentation is what COCO writes: a list of polygons ``[[x0, y0, x1, y1, ...], ...]``,
or run lengths ``{"size": [H, W], "counts": ...}`` down the columns, as a list of
numbers or compressed into a string. Everything is checked before it is drawn:
pycocotools draws run lengths of another size, and takes a polygon of two points for a
box, without a word.
"""

import array
from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.info import DataError

MAX_PIXELS = 2**28
"""Largest mask; a file that claims more is damaged or hostile."""

# How far a polygon may reach out of its image: drawing tools overshoot by a little, but
# more means that it was drawn on another image or on one of another size.
_SLACK_PIXELS, _SLACK_SHARE = 2, 0.01


def decode(segmentation, size: tuple[int, int], where: str) -> np.ndarray:
    """Draws one segmentation.

    Args:
      segmentation: polygons or run lengths, as in this module's docstring. A polygon
        may also be an array of numbers.
      size: (H, W) of the image.
      where: what the segmentation is, for errors, such as ``"Annotation 7 of x.json"``.

    Returns:
      bool ``[H W]``.

    Raises:
      DataError: the segmentation is of no known kind, does not have the size of the
        image, or leaves it.
    """
    if isinstance(segmentation, dict):
        return _fill(runs(segmentation, size, where), size)
    return draw(encode(segmentation, size, where))


def encode(segmentation, size: tuple[int, int], where: str) -> dict:
    """What `decode` draws, as compressed run lengths ``{"size": [H, W], "counts"}``.

    Args and errors are those of `decode`.
    """
    if isinstance(segmentation, dict):
        lengths = runs(segmentation, size, where).tolist()
        return coco_mask.frPyObjects({"size": [*size], "counts": lengths}, *size)
    polygons = check_polygons(segmentation, size, where)
    return coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], *size))


def draw(run_lengths: dict) -> np.ndarray:
    """The mask, bool [H W], of what `encode` gave."""
    return _fill(_uncompress(run_lengths["counts"]), tuple(run_lengths["size"]))


def runs(segmentation: dict, size: tuple[int, int], where: str) -> np.ndarray:
    """Lengths of the runs of 0, 1, 0, ... down the columns, checked.

    Returns:
      int64 ``[n]``, none negative, whose sum is H * W.

    Raises:
      DataError: the run lengths are damaged, or do not fill exactly this size.
    """
    given, counts = segmentation.get("size"), segmentation.get("counts")
    if not _is_size(given):
        raise DataError(
            f"{where} has run lengths of the size {_short(given)}, which is not "
            "[height, width]; export it again."
        )
    if tuple(given) != tuple(size):
        turned = " (height and width are swapped)" if given[::-1] == [*size] else ""
        raise DataError(
            f"{where} has run lengths for {given[1]}x{given[0]} pixels, but its image "
            f"is {size[1]}x{size[0]}{turned}; export it for this image."
        )
    if isinstance(counts, str | bytes):
        lengths = _uncompress(counts)
    else:
        lengths = _as_numbers(counts, np.int64)
    if lengths is None or (lengths < 0).any():
        raise DataError(
            f"{where} has damaged run lengths ({_short(counts)}); export it again."
        )
    # As Python's whole numbers, which cannot wrap around to the right sum.
    total, pixels = sum(lengths.tolist()), size[0] * size[1]
    if total != pixels:
        verb = "overrun" if total > pixels else "do not fill"
        raise DataError(
            f"{where} has run lengths that {verb} its mask ({total} of {pixels} "
            "pixels); export it again."
        )
    return lengths


def check_polygons(polygons, size: tuple[int, int], where: str) -> list[np.ndarray]:
    """Polygons as float64 ``[2 n]`` of x and y by turns.

    Raises:
      DataError: there is none, one has under three points or reaches out of the image.
    """
    if not isinstance(polygons, list) or not polygons:
        raise DataError(
            f"{where} has the segmentation {_short(polygons)}, which is neither a list "
            "of polygons nor run lengths; export it again or remove it."
        )
    result = []
    for polygon in polygons:
        points = _as_numbers(polygon, np.float64)
        if points is None or len(points) < 6 or len(points) % 2:
            raise DataError(
                f"{where} has the polygon {_short(polygon)}, which is not a list of at "
                "least three points x, y, x, y, ...; correct it or remove it."
            )
        for axis, length in (("x", size[1]), ("y", size[0])):
            slack = max(_SLACK_PIXELS, _SLACK_SHARE * length)
            values = points[axis == "y" :: 2]
            low, high = values.min(), values.max()
            # So that what is not a number fails as well.
            if not (low >= -slack and high <= length + slack):
                raise DataError(
                    f"{where} has a polygon outside its image ({axis} from {low:g} to "
                    f"{high:g}, but the image is {size[1]}x{size[0]}); correct it, or "
                    "the size of the image."
                )
        result.append(points)
    return result


def is_line(polygon) -> bool:
    """Whether these are numbers, but fewer than three points."""
    if isinstance(polygon, list | array.array) and not len(polygon):
        return True
    points = _as_numbers(polygon, np.float64)
    return points is not None and len(points) < 6 and len(points) % 2 == 0


def line_fault(polygon, where: str) -> DataError:
    """What is wrong with a polygon that `is_line`."""
    return DataError(
        f"{where} has the polygon {_short(polygon)}, which has fewer than three points "
        "and so no pixels; correct it or remove it.",
        kind="polygon",
    )


def surround(lines, size: tuple[int, int]) -> list[list[float]]:
    """A rectangle around the points of some polygons, within (H, W)."""
    points = np.concatenate([np.asarray(line, np.float64) for line in lines])
    if not points.size or not np.isfinite(points).all():
        points = np.zeros(2)
    (x0, x1), (y0, y1) = (
        (
            np.clip(np.floor(values.min()), 0, length - 1),
            np.clip(np.floor(values.max()) + 1, 1, length),
        )
        for values, length in ((points[::2], size[1]), (points[1::2], size[0]))
    )
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def paint(
    layers: Iterable[tuple[int, np.ndarray]], size: tuple[int, int], empty: int
) -> np.ndarray:
    """Lays masks behind each other: where they overlap, the first one stays.

    Args:
      layers: a value and a bool mask ``[H W]`` each, topmost first.
      size: (H, W).
      empty: value where no mask is; no layer may have it.

    Returns:
      int32 ``[H W]``.
    """
    canvas = np.full(size, empty, np.int32)
    for value, mask in layers:
        canvas[mask & (canvas == empty)] = value
    return canvas


def check_image_size(
    width, height, where: str, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(H, W) that a file claims, if a mask of it can be made.

    Raises:
      DataError: they are no whole numbers from 1, or too many pixels.
    """
    if (
        not _is_size([height, width])
        or min(height, width) < 1
        or height * width > max_pixels
    ):
        raise DataError(
            f"{where} has the size {_short(width)}x{_short(height)}, but both must be "
            f"whole numbers from 1 and the product at most {max_pixels:,} "
            "(data.max_pixels); correct it."
        )
    return height, width


def _fill(lengths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size[::-1]).T


def _uncompress(counts: str | bytes) -> np.ndarray | None:
    """COCO's string to run lengths int64, or None if it is none.

    Each character holds 6 bits above "0": five of a number, lowest first, and whether
    more of it follow; the sign is the highest bit of the last five. From the fourth
    number on, numbers are differences to the one before the last.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        return None
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    last = np.flatnonzero(digits & 32 == 0)
    first = np.r_[0, last[:-1] + 1]
    if (last - first).max() > 8:  # Over 45 bits: no run is that long.
        return None
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((digits & 31) << (5 * place), first)
    negative = digits[last] & 16 != 0
    numbers -= np.where(negative, 1 << (5 * (last - first + 1)), 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def _as_numbers(values, dtype) -> np.ndarray | None:
    """One axis of numbers, or None if that is not what `values` are."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # A ragged list.
        return None
    kinds = "iu" if dtype == np.int64 else "iuf"
    if array.ndim != 1 or not array.size or array.dtype.kind not in kinds:
        return None
    return array.astype(dtype)


def _is_size(value) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    )


def _short(value) -> str:
    if isinstance(value, array.array):
        value = value.tolist()
    elif isinstance(value, list):
        value = [v.tolist() if isinstance(v, array.array) else v for v in value]
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
