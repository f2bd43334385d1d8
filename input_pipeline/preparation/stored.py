"""How pictures and labels are stored in a prepared data set.

Images keep their original bytes; labels are 16-bit PNG of class ids with 65535 for
IGNORE, whatever the number of classes.
"""

import os
import pathlib
from collections.abc import Mapping

import cv2
import numpy as np

from input_pipeline.files import images, mask_files
from input_pipeline.files.jpeg import decode_jpeg
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE

IGNORE_16 = images.IGNORE_RAW[16]
_JPEG_QUALITY = 95
_PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    *(cv2.IMWRITE_PNG_COMPRESSION, 6),
)


class RawLabels:
    """A table raw value -> class id; picklable, so that it may stand in a partial.

    Args:
      class_of: class id or IGNORE by raw value, 0..65535.
    """

    def __init__(self, class_of: Mapping[int, int]):
        self._class_of = dict(class_of)

    def __call__(self, raw: np.ndarray, path: str | os.PathLike) -> np.ndarray:
        """Maps integers [H W] to int32 [H W].

        Raises:
          DataError: a raw value has no class.
        """
        no_class = IGNORE - 1
        table = np.full(max(self._class_of) + 2, no_class, np.int32)
        table[list(self._class_of)] = list(self._class_of.values())
        # Whatever lies outside the table meets its last entry, which has no class.
        inside = (raw >= 0) & (raw < len(table))
        label_map = table[np.where(inside, raw, len(table) - 1)]
        if label_map.min() == no_class:
            unknown = raw[label_map == no_class]
            raise DataError(
                f"Mask {path} holds the value {unknown[0]} ({unknown.size} pixels have "
                "no class), which this data set does not have; get the file again or "
                "check that it is of the right version.",
                kind="unmapped",
                path=str(path),
                values=tuple(np.unique(unknown).tolist()),
            )
        return label_map


def read_label(path: str | os.PathLike, labels: RawLabels) -> np.ndarray:
    """Reads a grey or palette PNG of raw values as int32 [H W] of class ids."""
    return labels(mask_files.read_mask(path), path)


def encode_png(array: np.ndarray) -> bytes:
    """Grey PNG of [H W], 8 bits if the array is uint8 and else 16 bits.

    Without PNG's filters: label maps are then smaller and read 2.8 times as fast.
    """
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 65535:
            raise ValueError("A PNG holds 0 to 65535.")
        array = array.astype(np.uint16)
    return cv2.imencode(".png", array, _PNG_OPTIONS)[1].tobytes()


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales [H W] to ``size`` as cv2 and with it the published scripts do."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_NEAREST)


def read_image_file(
    path: str | os.PathLike, label_size: tuple[int, int], max_short_side: int | None
) -> tuple[bytes, tuple[int, int]]:
    """Reads an image whole and returns bytes that `decode_image` turns into it.

    These are the original ones unless the image has to be scaled down (JPEG), is in a
    format that cv2 would show differently (PNG), or is turned by its EXIF although its
    label is not (PNG).

    Returns:
      Bytes of a JPEG or PNG file, and its (H, W).

    Raises:
      DataError: it cannot be read, or differs in size from its label.
    """
    image = images.read_image(path)
    data = pathlib.Path(path).read_bytes()
    if image.shape[:2] != label_size:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        unturned = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if unturned is None or unturned.shape[:2] != label_size:
            raise DataError(
                f"Image {path} is {image.shape[1]}x{image.shape[0]} pixels but its "
                f"label is {label_size[1]}x{label_size[0]}; get both files again.",
                kind="size",
            )
        image = unturned
    short = min(label_size)
    if max_short_side and short > max_short_side:
        height, width = (round(side / short * max_short_side) for side in label_size)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        return cv2.imencode(".jpg", bgr, quality)[1].tobytes(), (height, width)
    if not _decodes_to(data, image):
        data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data, label_size


def _decodes_to(data: bytes, image: np.ndarray) -> bool:
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        return False
    return np.array_equal(decode_image(data), image)


def decode_image(data: bytes) -> np.ndarray | None:
    """Bytes of a picture as uint8 [H W 3], RGB; None if they are damaged."""
    if data.startswith(b"\xff\xd8"):
        try:
            return decode_jpeg(data)
        except ValueError:
            return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def decode_label(data: bytes) -> np.ndarray:
    """Bytes of a stored label as int32 [H W] of class ids."""
    return with_ignore(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    )


def with_ignore(stored: np.ndarray) -> np.ndarray:
    """Stored values as int32 class ids and IGNORE."""
    label_map = stored.astype(np.int32)
    label_map[label_map == IGNORE_16] = IGNORE
    return label_map
