"""Maps of results: their size, and what is sent of them."""

import base64
import dataclasses
import io
import zlib

import numpy as np
from PIL import Image

from mlseg_jax.export.predictor import Result, Seen
from mlseg_jax.typing import UInt


def at_size(seen: Seen, longest: int | None) -> Seen:
    """The same picture, whose maps have this longest side."""
    if longest is None:
        return seen
    factor = longest / max(seen.size)
    size = tuple(max(1, round(side * factor)) for side in seen.size)
    views = [
        [
            dataclasses.replace(axis, length=side)
            for axis, side in zip(view, size, strict=True)
        ]
        for view in seen.views
    ]
    return dataclasses.replace(seen, size=size, views=views)


def label_map_png(label_map: UInt[np.ndarray, "H W"], num_classes: int) -> bytes:
    """A grey PNG of class ids, of 8 bits up to 255 classes, else of 16."""
    file = io.BytesIO()
    kind = np.uint8 if num_classes <= 255 else np.uint16
    Image.fromarray(label_map.astype(kind)).save(file, "PNG", compress_level=3)
    return file.getvalue()


def top_arrays(result: Result) -> dict[str, str]:
    """``places`` of the likeliest labels of each pixel in the list of labels, uint16
    ``[n H W]``, and their ``percent``, uint8; packed with zlib, in base64.
    """
    ids, shares = result.top
    table = np.zeros(int(max(x["class_id"] for x in result.labels)) + 1, "<u2")
    for place, label in enumerate(result.labels):
        table[label["class_id"]] = place
    percent = np.rint(100 * shares.astype(np.float32)).astype(np.uint8)
    return {"places": _packed(table[ids]), "percent": _packed(percent)}


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode("ascii")
