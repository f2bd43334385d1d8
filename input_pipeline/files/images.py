"""Image and mask files to arrays and back.

A file which cannot be read whole is an error here and never a picture padded with
grey: a model would train on the padding without anybody noticing.
"""

import io
import math
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from etils import epath
from PIL import ExifTags, Image, ImageFile, ImageOps

from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE

IGNORE_RAW = {8: 255, 16: 65535}
"""Raw mask value that means IGNORE, by bit depth of the file."""

MAX_CLASSES = 65535
"""Most classes that a 16-bit mask can hold beside its ignore value."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Endings, in lower case, by which a file counts as an image."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# In a JPEG these modes need no colour management: every decoder gives the same.
_PLAIN_JPEG_MODES = ("L", "RGB")
# It is an error here, see `open_picture`.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# 16-bit grey. A 16-bit colour file is opened by Pillow as 8 bits (its high bytes).
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image of any usual mode as 8-bit RGB, turned as EXIF says.

    Grey is repeated into three channels, alpha is dropped, 16-bit values
    (0..65535) are scaled to 8 bits, and an animation gives its first frame.

    Args:
      path: file to read.

    Returns:
      uint8 ``[H W 3]``, RGB.

    Raises:
      DataError: the file is missing, empty, truncated, unreadable, less than 2 pixels
        high or wide, so large that it looks like a decompression bomb, or holds
        values with no fixed range (32-bit, float).
    """
    return image_from_bytes(read_bytes(path), path)


def image_from_bytes(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """As `read_image`, of a file's content; ``path`` is what errors call it."""
    with open_picture(data, path) as header:
        if min(header.size) < 2:
            raise DataError(
                f"Image {path} is {header.width}x{header.height} pixels, but both "
                "sides must have at least 2; remove it or replace it."
            )
        if header.mode in ("I", "F"):
            raise DataError(
                f"Image {path} holds 32-bit or floating-point values, whose range is "
                "unknown; save it with 8 or 16 bits a channel."
            )
        if header.format in ("JPEG", "MPO") and header.mode in _PLAIN_JPEG_MODES:
            try:
                return _turn(decode_jpeg(data), _orientation(header))
            except ValueError as error:
                raise _unreadable(path, error) from error
        return _decode_with_pillow(header, path)


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decodes a JPEG file as cv2 does, but not turned and 1.7 times as fast.

    Returns:
      uint8 ``[H W 3]``, RGB.

    Raises:
      ValueError: it is truncated or damaged, with libjpeg's words.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        # Padding of careless programs; every other warning is about lost pixels.
        if "extraneous bytes" in str(error):
            return simplejpeg.decode_jpeg(data, "RGB", strict=False)
        raise


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads the raw values of a mask.

    Args:
      path: PNG file, grey or with a palette, whose indices are then the values.

    Returns:
      int32 ``[H W]``, the values as they are in the file.

    Raises:
      DataError: as for `decode_mask`.
    """
    return decode_mask(path)[0].astype(np.int32)


def decode_mask(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Reads the raw values of a mask and the depth that says which one is ignore.

    Args:
      path: PNG file, grey or with a palette.

    Returns:
      uint8 or uint16 ``[H W]`` of raw values, and 8 or 16, the key of `IGNORE_RAW`.

    Raises:
      DataError: the file is missing, truncated, unreadable or too large, is no PNG, or
        is a colour picture.
    """
    return mask_from_bytes(read_bytes(path), path)


def mask_from_bytes(data: bytes, path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """As `decode_mask`, of a file's content; ``path`` is what errors call it."""
    if not data.startswith(_PNG_SIGNATURE):
        raise DataError(
            f"Mask {path} is not a PNG file inside, and other formats change the class "
            "numbers when they compress; save it as an 8-bit or 16-bit PNG."
        )
    with open_picture(data, path) as picture:
        if picture.mode not in ("1", "L", "P", *MODES_16_BIT):
            raise DataError(
                f"Mask {path} is a colour picture (mode {picture.mode}), but colours "
                "are not class numbers; save it with one channel of class numbers, as "
                "an 8-bit or 16-bit grey PNG or as a palette PNG."
            )
        depth = 16 if picture.mode in MODES_16_BIT else 8
        # cv2 lets other threads run meanwhile; of palettes it would give the colours.
        if picture.mode not in ("1", "P") and data[24] == depth:
            raw = np.frombuffer(data, np.uint8)
            values = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
            if values is not None and values.shape == picture.size[::-1]:
                return values, depth
        values = load_pixels(picture, path)
        if picture.mode == "L" and data[24] < 8:
            # Pillow stretches 2-bit and 4-bit grey to 0..255; the 25th byte of a PNG
            # is its bit depth, and the stretch is a whole factor (85 or 17).
            values = values // (255 // (2 ** data[24] - 1))
        return values.astype(np.uint8 if depth == 8 else np.uint16), depth


def palette_colours(
    path: str | os.PathLike,
) -> dict[int, tuple[int, ...]] | None:
    """RGB by value of the values in a palette PNG; None if it has no palette."""
    with open_picture(read_bytes(path), path) as picture:
        if picture.mode != "P":
            return None
        colours = np.reshape(picture.getpalette("RGB"), (-1, 3))
        values = np.unique(load_pixels(picture, path))
        # Files may leave out the end of the palette.
        known = values[values < len(colours)].tolist()
        return {value: tuple(colours[value].tolist()) for value in known}


def write_label_map(
    path: str | os.PathLike, label_map: np.ndarray, num_classes: int
) -> None:
    """Writes class ids as a grey PNG that `Folder` reads back unchanged.

    Args:
      path: file to write, ending in ``.png``.
      label_map: integers ``[H W]``, class ids ``0..num_classes-1`` or IGNORE.
      num_classes: C. Up to 255 classes give 8 bits with 255 for IGNORE, more give 16
        bits with 65535 for IGNORE.

    Raises:
      ValueError: an id is not a class, or there are more than 65,535 classes.
    """
    if not 0 < num_classes <= MAX_CLASSES:
        raise ValueError(
            f"A mask file holds 1 to {MAX_CLASSES} classes, not {num_classes}."
        )
    if label_map.size and not (
        label_map.min() >= IGNORE and label_map.max() < num_classes
    ):
        raise ValueError(
            f"Label map for {path} holds ids from {label_map.min()} to "
            f"{label_map.max()}, but there are only {num_classes} classes."
        )
    depth = 8 if num_classes <= IGNORE_RAW[8] else 16
    raw = np.where(label_map == IGNORE, IGNORE_RAW[depth], label_map)
    _, data = cv2.imencode(".png", raw.astype(np.uint8 if depth == 8 else np.uint16))
    epath.Path(path).write_bytes(data.tobytes())


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file, which must have some; raises DataError."""
    try:
        data = epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the path.") from None
    except OSError as error:
        raise DataError(
            f"File {path} cannot be read ({error.strerror}); check that it is a file "
            "and may be read."
        ) from error
    if not data:
        raise DataError(f"File {path} is empty; copy it again or remove it.")
    return data


def open_picture(data: bytes, path: str | os.PathLike) -> Image.Image:
    """Reads the header; pixels stay compressed until `load_pixels`; raises
    DataError.
    """
    # A library may have switched this on for the whole process; Pillow would then pad
    # what is missing with grey instead of raising.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data, path)
    try:
        picture = Image.open(io.BytesIO(data))
        # Pillow only warns up to twice its limit, where a picture is 270 MB.
        if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise _too_large(path)
        return picture
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Exception as error:  # Pillow's plugins raise nearly every type there is.
        raise _unreadable(path, error) from error


def _check_png(data: bytes, path: str | os.PathLike) -> None:
    """Compares the check sums of the pixels, which Pillow does not."""
    start = len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if kind == b"IDAT" and end <= len(data):
            (expected,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(data[start + 4 : end - 4]) != expected:
                raise _unreadable(path, ValueError("its check sum is wrong"))
        start = end


def load_pixels(picture: Image.Image, path: str | os.PathLike) -> np.ndarray:
    """The pixels of what `open_picture` gave; raises DataError."""
    try:
        return np.asarray(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Damaged EXIF.
        return 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as EXIF's orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if axis is None else cv2.flip(image, axis)


def _decode_with_pillow(picture: Image.Image, path: str | os.PathLike) -> np.ndarray:
    """Decodes to uint8 ``[H W 3]``."""
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in MODES_16_BIT:
            return np.array(picture.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    # Pillow clips 16-bit grey to 255; keep the high byte, as it does for colour.
    grey = (load_pixels(picture, path) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _too_large(path: str | os.PathLike) -> DataError:
    return DataError(
        f"Picture {path} has so many pixels that it may be a decompression bomb; cut "
        f"it into tiles of at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels."
    )


def _unreadable(path: str | os.PathLike, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not a picture"  # Pillow's own words show a memory address.
    return DataError(
        f"File {path} is damaged or in an unknown format ({reason}); copy it again or "
        "remove it."
    )
