"""Files of masks to their raw values: class numbers, or colours that stand for them."""

import os

import cv2
import numpy as np
from PIL import Image

from input_pipeline.files import images
from input_pipeline.info import DataError

# Not PPM, whose values Pillow stretches to 0..255, nor GIF, whose writers renumber.
_LOSSLESS = ("PNG", "TIFF", "BMP")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


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


def decode_mask(
    path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """Reads the raw values of a mask and the depth that says which one is ignore.

    Args:
      path: file of a lossless format, grey or with a palette.
      max_pixels: height times width of the largest that is read.

    Returns:
      uint8 or uint16 ``[H W]`` of raw values, and 8 or 16, the key of
      `images.IGNORE_RAW`.

    Raises:
      DataError: the file is missing, truncated, unreadable or too large, of a format
        that changes values, or a colour picture.
    """
    return mask_from_bytes(images.read_bytes(path), path, max_pixels)


def mask_from_bytes(
    data: bytes, path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """As `decode_mask`, of a file's content; ``path`` is what errors call it."""
    with open_mask(data, path, max_pixels) as picture:
        if picture.mode in ("I", "F"):
            raise DataError(
                f"Mask {path} holds 32-bit or floating-point values, not class "
                "numbers; save it as an 8-bit or 16-bit PNG."
            )
        if picture.mode not in ("1", "L", "P", *images.MODES_16_BIT):
            raise DataError(
                f"Mask {path} is a colour picture (mode {picture.mode}), but colours "
                "are not class numbers; save it with one channel of class numbers, as "
                "an 8-bit or 16-bit grey PNG or as a palette PNG, or give the colours "
                'classes in a classes.json like {"#ff0000": "car"}.'
            )
        depth = 16 if picture.mode in images.MODES_16_BIT else 8
        is_png = picture.format == "PNG"
        # cv2 lets other threads run meanwhile; of palettes it would give the colours.
        if is_png and picture.mode not in ("1", "P") and data[24] == depth:
            raw = np.frombuffer(data, np.uint8)
            values = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
            if values is not None and values.shape == picture.size[::-1]:
                return values, depth
        values = images.load_pixels(picture, path)
        if is_png and picture.mode == "L" and data[24] < 8:
            # Pillow stretches 2-bit and 4-bit grey to 0..255; the 25th byte of a PNG
            # is its bit depth, and the stretch is a whole factor (85 or 17).
            values = values // (255 // (2 ** data[24] - 1))
        return values.astype(np.uint8 if depth == 8 else np.uint16), depth


def open_mask(
    data: bytes, path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> Image.Image:
    """As `open_picture`, of one page in a format that keeps values as they are."""
    if data.startswith((b"\xff\xd8", b"RIFF")) or b"ftyp" in data[4:12]:
        raise _lossy(path, "JPEG, WebP or AVIF")
    picture = images.open_picture(data, path, max_pixels)
    compression = str(picture.info.get("compression", ""))
    if (
        picture.format not in _LOSSLESS
        or "jpeg" in compression
        or "webp" in compression
    ):
        raise _lossy(path, f"{picture.format} {compression}".strip())
    if picture.format == "TIFF" and picture.mode in ("1", "L"):
        tags = picture.tag_v2
        is_inverted = tags.get(_TIFF_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
        is_short = picture.mode == "L" and tags.get(_TIFF_BITS, (8,))[0] < 8
        if is_inverted or is_short:  # Pillow changes values.
            raise _lossy(path, "TIFF of 2 to 7 bits or with white as 0")
    pages = images.count_pages(picture, path) if picture.format == "TIFF" else 1
    if pages > 1:
        raise DataError(
            f"Mask {path} has {pages} pages, of which one would be read; save each as "
            "a file of its own."
        )
    return picture


def palette_colours(
    path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> dict[int, tuple[int, ...]] | None:
    """RGB by value of the values in a palette PNG; None if it has no palette."""
    with images.open_picture(images.read_bytes(path), path, max_pixels) as picture:
        if picture.mode != "P":
            return None
        colours = np.reshape(picture.getpalette("RGB"), (-1, 3))
        values = np.unique(images.load_pixels(picture, path))
        # Files may leave out the end of the palette.
        known = values[values < len(colours)].tolist()
        return {value: tuple(colours[value].tolist()) for value in known}


def read_colours(
    path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
    """Reads the colours of a mask in which colours stand for classes.

    Args:
      path: file of a lossless format; of a palette, the colours are read.
      max_pixels: height times width of the largest that is read.

    Returns:
      int32 ``[H W]`` of 65,536 red + 256 green + blue.

    Raises:
      DataError: as for `decode_mask`, or the file has 16 bits a colour.
    """
    return colours_from_bytes(images.read_bytes(path), path, max_pixels)


def colours_from_bytes(
    data: bytes, path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
    """As `read_colours`, of a file's content; ``path`` is what errors call it."""
    with open_mask(data, path, max_pixels) as picture:
        is_png = picture.format == "PNG"
        if picture.mode in images.MODES_16_BIT or (is_png and data[24] == 16):
            raise DataError(
                f"Mask {path} has 16 bits a colour, but colours of classes have 8; "
                "save it as an 8-bit RGB PNG."
            )
        rgb = images.to_rgb(picture, path).astype(np.int32)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _lossy(path: str | os.PathLike, found: str | None) -> DataError:
    return DataError(
        f"Mask {path} is not a PNG file inside but {found}, and other formats change "
        "the class numbers when they compress; save it as an 8-bit or 16-bit PNG."
    )
