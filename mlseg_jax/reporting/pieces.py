"""Small parts that several sections of a report are made of."""

import base64
import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from mlseg_jax.reporting.charts import Html, fill

MAX_PICTURE_SIDE = 512
MAX_PNG_BYTES = 90_000  # photographs, and label maps of noise, become JPEGs
WORST_CLASSES, SHOWN_CLASSES = 20, 500
"""Rows of tables of classes: those that stand open, and with those that unfold."""


def css(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def cut_name(name: str) -> Html:
    """A class name that is cut in front of its end, where class names differ."""
    return fill("name", name=name, head=name[:-9], tail=name[-9:])


def class_tables(heads: Sequence[str], rows: Sequence[Html]) -> dict:
    """What fragments of the worst classes have in common; rows from the worst on."""
    columns = [fill("class head", text=head) for head in heads]
    worst, others = rows[:WORST_CLASSES], rows[WORST_CLASSES:]
    more = Html()
    if others:
        more = fill("other classes", count=len(others), heads=columns, rows=others)
    return {"count": len(worst), "heads": columns, "rows": worst, "others": more}


def load_examples(archive: bytes, count: int) -> tuple[list[dict], list[str]]:
    """The arrays of each picture in ``evaluation_examples.npz``, and class names."""
    with np.load(io.BytesIO(archive)) as arrays:
        indices = sorted(int(n[6:]) for n in arrays.files if n.startswith("image_"))
        examples = [_of_example(arrays, i) for i in indices[:count]]
        return examples, arrays["names"].tolist()


def _of_example(arrays: Mapping, number: int) -> dict[str, np.ndarray]:
    end = f"_{number}"
    names = [name for name in arrays if name.endswith(end)]
    return {name.removesuffix(end): arrays[name] for name in names}


def picture_of(pixels: np.ndarray, alt: str, side: int, photo: bool) -> Html:
    scale = min(1, side / max(pixels.shape[:2]))
    size = [max(1, round(n * scale)) for n in pixels.shape[1::-1]]
    how = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
    bgr = cv2.resize(pixels[..., ::-1], size, interpolation=how)
    kind, data = "png", cv2.imencode(".png", bgr)[1]
    if len(data) > MAX_PNG_BYTES:
        quality = [cv2.IMWRITE_JPEG_QUALITY, 82]
        kind, data = "jpeg", cv2.imencode(".jpg", bgr, quality)[1]
    return fill("picture", alt=alt, kind=kind, data=base64.b64encode(data).decode())
