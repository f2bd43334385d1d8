"""Image and mask files to arrays and back.

A file which cannot be read whole is an error here and never a picture padded with
grey: a model would train on the padding without anybody noticing.
"""

import dataclasses
import io
import os
import struct
import warnings
import zlib

import cv2
import numpy as np
from etils import epath
from PIL import ExifTags, Image, ImageFile

from input_pipeline.files.jpeg import decode_jpeg
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE, MAX_CLASSES

MAX_PIXELS = 2**28
"""Default of the largest picture: a phone makes 200 megapixels."""

WHITE = 65535
"""Default of the 16-bit value that is white."""

_DARK = WHITE // 8
"""Largest value of 16-bit pictures that may have been made with fewer bits."""

IGNORE_RAW = {8: 255, 16: 65535}
"""Raw mask value that means IGNORE, by bit depth of the file."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
)
"""Endings, in lower case, by which a file counts as an image."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# In a JPEG these modes need no colour management: every decoder gives the same.
_PLAIN_JPEG_MODES = ("L", "RGB")
# It is an error here from a limit on that is ours, see `open_picture`.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# 16-bit grey. A 16-bit colour file is opened by Pillow as 8 bits (its high bytes).
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How pictures are read.

    Attributes:
      max_pixels: height times width of the largest that is read.
      exif: whether they are turned as their EXIF says.
      white: 16-bit value that becomes 255: 4095 in files of a 12-bit camera.
    """

    max_pixels: int = MAX_PIXELS
    exif: bool = True
    white: int = WHITE


USUAL = ReadOptions()


def read_image(path: str | os.PathLike, options: ReadOptions = USUAL) -> np.ndarray:
    """Reads an image of any usual mode as 8-bit RGB, turned as EXIF says.

    Grey is repeated into three channels, alpha is dropped, 16-bit values
    (0..65535) are scaled to 8 bits, and an animation gives its first frame.

    Args:
      path: file to read.
      options: what of this is to be otherwise.

    Returns:
      uint8 ``[H W 3]``, RGB.

    Raises:
      DataError: the file is missing, empty, truncated, unreadable, less than 2 pixels
        high or wide, larger than the limit, or holds values with no fixed range
        (32-bit, float).
    """
    return image_from_bytes(read_bytes(path), path, options)


def image_from_bytes(
    data: bytes, path: str | os.PathLike, options: ReadOptions = USUAL
) -> np.ndarray:
    """As `read_image`, of a file's content; ``path`` is what errors call it."""
    with open_picture(data, path, options.max_pixels) as header:
        if min(header.size) < 2:
            raise DataError(
                f"Image {path} is {header.width}x{header.height} pixels, but both "
                "sides must have at least 2; remove it or replace it."
            )
        if header.mode in ("I", "F") and not _is_16_bit(header):
            raise DataError(
                f"Image {path} holds 32-bit or floating-point values, whose range is "
                "unknown; save it with 8 or 16 bits a channel."
            )
        if header.format in ("JPEG", "MPO"):
            orientation = read_orientation(header) if options.exif else 1
            try:
                if header.mode in _PLAIN_JPEG_MODES:
                    return _turn(decode_jpeg(data), orientation)
                decode_jpeg(data, "CMYK")  # Pillow says nothing of damage.
            except ValueError as error:
                raise _unreadable(path, error) from error
        return _decode_with_pillow(header, data, path, options)


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
    raw = label_map
    if label_map.dtype.kind != "u":  # unsigned ids are of no ignored pixel
        raw = np.where(label_map == IGNORE, IGNORE_RAW[depth], label_map)
    raw = raw.astype(np.uint8 if depth == 8 else np.uint16, copy=False)
    _, data = cv2.imencode(".png", raw)
    with epath.Path(path).open("wb") as file:
        file.write(data.data)


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
    except ValueError as error:  # a NUL character
        raise DataError(
            f"File {os.fspath(path)!r} cannot be read ({error}); correct the path."
        ) from error
    if not data:
        raise DataError(f"File {path} is empty; copy it again or remove it.")
    return data


def open_picture(
    data: bytes, path: str | os.PathLike, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Reads the header; pixels stay compressed until `load_pixels`; raises
    DataError.
    """
    # Pillow's own limit is of the whole process; it must not be below ours.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    # A library may have switched this on for the whole process; Pillow would then pad
    # what is missing with grey instead of raising.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data, path)
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > max_pixels:
            raise _too_large(path, max_pixels, f" ({picture.width}x{picture.height})")
        return _with_its_bits(picture, data)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, max_pixels) from error
    except Exception as error:  # Pillow's plugins raise nearly every type there is.
        raise _unreadable(path, error) from error


def _with_its_bits(picture: Image.Image, data: bytes) -> Image.Image:
    """As it is, but for a BMP whose palette is that of grey values: Pillow forgets how
    many bits its pixels have.
    """
    if picture.format != "BMP" or picture.mode not in ("1", "L"):
        return picture
    bits = data[24] if data[14] == 12 else data[28]  # 12: of OS/2.
    if bits == (1 if picture.mode == "1" else 8):
        return picture
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None or grey.shape != picture.size[::-1]:
        raise ValueError(f"a BMP of {bits} bits")
    decoded = Image.fromarray(grey > 127 if picture.mode == "1" else grey)
    decoded.format = picture.format
    return decoded


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


def remarks(path: str | os.PathLike, options: ReadOptions = USUAL) -> list[DataError]:
    """What is odd about a picture that can be read: kinds "exif" and "range"."""
    data, found = read_bytes(path), []
    with open_picture(data, path, options.max_pixels) as picture:
        orientation = read_orientation(picture)
        # Others swap the sides, so that a label of the wrong kind has another size.
        is_hidden = orientation in (2, 3, 4) or picture.width == picture.height
        if options.exif and orientation in range(2, 9) and is_hidden:
            fault = (
                f"Picture {path} is turned as its EXIF says (orientation "
                f"{orientation}); its label must be of the turned picture."
            )
            found.append(DataError(fault, kind="exif"))
        is_deep = _is_16_bit(picture) or (picture.format == "PNG" and data[24] == 16)
        if is_deep and options.white == WHITE:
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            most = 0 if values is None else int(values.max())
            if 0 < most <= _DARK:
                fault = (
                    f"Picture {path} has 16 bits but no value over {most}, so that "
                    f"{(most >> 8) + 1} of 256 grey levels are left."
                )
                found.append(DataError(fault, kind="range"))
    return found


def load_pixels(picture: Image.Image, path: str | os.PathLike) -> np.ndarray:
    """The pixels of what `open_picture` gave; raises DataError."""
    try:
        return np.asarray(picture)
    except Exception as error:
        raise _unreadable(path, error) from error


def read_orientation(picture: Image.Image) -> int:
    """EXIF's orientation 1..8 of what `open_picture` gave."""
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


def _is_16_bit(picture: Image.Image) -> bool:
    # Pillow makes whole numbers from 0 to 65535 of a PGM of more than 8 bits.
    is_pgm = picture.format == "PPM" and picture.mode == "I"
    return picture.mode in MODES_16_BIT or is_pgm


def _decode_with_pillow(
    picture: Image.Image, data: bytes, path: str | os.PathLike, options: ReadOptions
) -> np.ndarray:
    """Decodes to uint8 ``[H W 3]``."""
    stored = read_orientation(picture)
    orientation = stored if options.exif else 1
    if picture.format == "TIFF":  # Pillow and cv2 turn it, and no other, by themselves.
        orientation = 1 if options.exif else {6: 8, 8: 6}.get(stored, stored)
    if options.white != WHITE and picture.mode in ("RGB", "RGBA"):
        # Of 16-bit colours Pillow gives no more than the high bytes.
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is not None and values.dtype == np.uint16:
            return _turn(_to_8_bits(values[..., 2::-1], options.white), orientation)
    if _is_16_bit(picture):
        grey = _to_8_bits(load_pixels(picture, path), options.white)
        return _turn(np.repeat(grey[:, :, None], 3, axis=2), orientation)
    return _turn(to_rgb(picture, path), orientation)


def count_pages(picture: Image.Image, path: str | os.PathLike) -> int:
    """Pages of a TIFF that `open_picture` gave; raises DataError."""
    try:
        return picture.n_frames
    except Exception as error:  # It reads the headers of all of them.
        raise _unreadable(path, error) from error


def to_rgb(picture: Image.Image, path: str | os.PathLike) -> np.ndarray:
    """The colours of what `open_picture` gave, uint8 ``[H W 3]``; raises DataError."""
    try:
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # Without it, Pillow warns.
        return np.array(picture.convert("RGB"))
    except Exception as error:
        raise _unreadable(path, error) from error


def _to_8_bits(values: np.ndarray, white: int) -> np.ndarray:
    """The high byte where white is 65535."""
    scaled = values.astype(np.int64) * 256 // (white + 1)
    return np.ascontiguousarray(np.minimum(scaled, 255).astype(np.uint8))


def _too_large(path: str | os.PathLike, limit: int, size: str = "") -> DataError:
    return DataError(
        f"Picture {path} has so many pixels{size} that it may be a decompression bomb: "
        f"the limit data.max_pixels is {limit:,}; raise it, or cut the picture into "
        "tiles."
    )


def _unreadable(path: str | os.PathLike, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not a picture"  # Pillow's own words show a memory address.
    return DataError(
        f"File {path} is damaged or in an unknown format ({reason}); copy it again or "
        "remove it."
    )
