"""Labelme's JSON: shapes with a label each, of which later ones lie on top."""

import base64
import json
import math
import os
from collections.abc import Iterator

import numpy as np

from input_pipeline.files import coco_masks, images, mask_files
from input_pipeline.info import DataError

ENDING = ".json"
CORNERS = 64
"""Of the polygon that stands for a circle."""

_POLYGONS = ("polygon", "rectangle", "oriented_rectangle", None)
"""Types of shapes whose points are corners."""


def is_labelme(path: str | os.PathLike) -> bool:
    """Whether a mask is a file of Labelme, by its name."""
    return os.fspath(path).lower().endswith(ENDING)


def shapes_from_bytes(
    data: bytes, path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> tuple[tuple[int, int], list[str], Iterator[tuple[str, np.ndarray]]]:
    """Reads what was drawn on a picture.

    Args:
      data: content of the file.
      path: what errors call it.
      max_pixels: height times width of the largest picture whose shapes are drawn.

    Returns:
      (H, W) of the picture, the label of each shape, and an iterator of each shape's
      label and bool mask ``[H W]``, the topmost last. Masks are drawn one by one, for
      they are large; a rectangle or circle without extent has an empty one.

    Raises:
      DataError: it is no file of Labelme; while iterating, a shape is damaged or of a
        type that has no area.
    """
    try:
        content = json.loads(data)
        shapes, height, width = (
            content[key] for key in ("shapes", "imageHeight", "imageWidth")
        )
        described = [(s["label"], s["points"], s) for s in shapes]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no JSON of Labelme (shapes with label and points, imageHeight, "
            f"imageWidth); save it in Labelme again, or remove it."
        ) from error
    size = coco_masks.check_image_size(width, height, f"{path}", max_pixels)

    def masks():
        for number, (label, points, shape) in enumerate(described, start=1):
            where = f"Shape {number} ({label!r}) of {path}"
            yield str(label), _mask(shape, points, size, where, max_pixels)

    return size, [str(label) for label, _, _ in described], masks()


def _mask(shape: dict, points, size, where: str, max_pixels: int) -> np.ndarray:
    kind = shape.get("shape_type", "polygon")
    try:
        points = np.asarray(points, np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("not finite")
        if kind == "rectangle" and len(points) == 2:  # Else all four corners are there.
            (x0, y0), (x1, y1) = points
            points = np.asarray([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        elif kind == "circle":
            centre, edge = points
            angles = np.arange(CORNERS) * 2 * math.pi / CORNERS
            ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            points = centre + math.dist(centre, edge) * ring
            points = np.clip(points, 0, size[::-1])
        elif kind == "mask":
            return _pasted(shape["mask"], points, size, where, max_pixels)
        elif kind not in _POLYGONS:
            raise DataError(
                f"{where} is a {kind}, which has no area; draw a polygon in its place, "
                f"or remove it."
            )
    except DataError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"{where} has damaged points; draw it again, or remove it."
        ) from error
    return coco_masks.decode([points.ravel().tolist()], size, where)


def _pasted(encoded: str, points, size, where: str, max_pixels: int) -> np.ndarray:
    """A mask that is stored for its box alone, a PNG in base 64."""
    patch, _ = mask_files.mask_from_bytes(
        base64.b64decode(encoded), f"of {where}", max_pixels
    )
    x, y = np.floor(points[0]).astype(int)
    whole = np.zeros(size, bool)
    room = whole[y : y + patch.shape[0], x : x + patch.shape[1]]
    if min(x, y) < 0 or room.shape != patch.shape:
        raise ValueError("the box leaves the picture")
    room[:] = patch > 0
    return whole
