"""Small files in COCO's formats, for the tests of their readers."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.info import DataError

SIZE = (8, 10)


def box(top, left, bottom, right, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def rle(mask, compressed=True):
    if compressed:
        found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": found["counts"].decode()}
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    edges = [0] * (1 + int(flat[0])) + ends.tolist() + [flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_image(path, size=SIZE, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (value, 90, 60)).save(path)


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def message_of(function, *args, **kwargs):
    """The one sentence of the DataError that a call raises."""
    with pytest.raises(DataError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message
