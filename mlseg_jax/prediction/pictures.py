"""What the Python API takes as a picture."""

import os
from collections.abc import Sequence
from typing import no_type_check

import jax
import numpy as np
from PIL import Image

from input_pipeline.files.images import (
    USUAL,
    ReadOptions,
    image_from_bytes,
    read_image,
)
from mlseg_jax.errors import UserError
from mlseg_jax.typing import UInt8

Picture = np.ndarray | jax.Array | Image.Image | bytes | str | os.PathLike

CHANNELS = (1, 3, 4)
"""Grey, RGB, and RGB with alpha, which is dropped as it is of files."""

_ONE = (np.ndarray, jax.Array, Image.Image, bytes, bytearray, str, os.PathLike)
_ENCODED = (bytes, bytearray)


@no_type_check  # what is of another type is said in a sentence
def as_pictures(
    images: Picture | Sequence[Picture], options: ReadOptions = USUAL
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], bool]:
    """The pictures, and whether it is one that was given and not a list.

    Raises:
      UserError: something is no picture, or no list of them.
      DataError: a file that cannot be read.
    """
    if isinstance(images, _ONE):
        return [as_picture(images, options)], True
    if not isinstance(images, Sequence):
        raise UserError(
            f"A value of type {_type_of(images)} is neither a picture nor a list of "
            f"pictures; give a path, a uint8 array, a PIL picture, the bytes of a "
            f"file, or a list of them."
        )
    return [as_picture(image, options) for image in images], False


@no_type_check
def as_picture(
    image: Picture, options: ReadOptions = USUAL
) -> UInt8[np.ndarray, "H W 3"]:
    """uint8 ``[H W 3]`` of a file, its bytes, an array or a PIL picture.

    Arrays are ``[H W]`` or ``[H W c]`` with c of `CHANNELS`. A PIL picture is taken as
    it stands: only files and their bytes are turned as their EXIF says.

    Raises:
      UserError: it is none of them.
      DataError: a file that cannot be read.
    """
    if isinstance(image, _ENCODED):
        return _from_bytes(bytes(image), options)
    if isinstance(image, str | os.PathLike):
        return read_image(image, options)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, jax.core.Tracer):
        raise UserError(
            "A picture is a traced array; call the segmenter outside of jax.jit, "
            "jax.grad and jax.vmap."
        )
    if not isinstance(image, np.ndarray | jax.Array):
        raise UserError(
            f"A value of type {_type_of(image)} is no picture; give a path, a uint8 "
            f"array, a PIL picture or the bytes of a file."
        )
    return _from_array(np.asarray(image))


def _from_array(image: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    given = f"{image.dtype} {list(image.shape)}"
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in CHANNELS:
        raise UserError(
            f"A picture must be a uint8 array [height, width, 3], not {given}; "
            f"{_advice(image)}."
        )
    if min(image.shape[:2]) < 2:
        raise UserError(
            f"A picture of {image.shape[0]}x{image.shape[1]} pixels has nothing to "
            f"segment; both sides must be at least 2."
        )
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _advice(image: np.ndarray) -> str:
    """What to do with an array that is no picture."""
    if image.ndim == 4:
        return "give a list of pictures in place of a batch"
    if image.ndim == 3 and image.shape[2] not in CHANNELS:
        if image.shape[0] in CHANNELS:
            return "move the channels to the end (np.moveaxis(image, 0, -1))"
        return "give 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels"
    if image.ndim == 3 and np.issubdtype(image.dtype, np.floating):
        return "scale it to 0..255 and convert it with .astype(np.uint8)"
    return "convert it, or give the path of its file"


def _from_pil(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    try:
        if image.mode.startswith("I;16"):  # as of files: the high byte
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return _from_array(grey)
        if image.mode in ("I", "F"):
            raise UserError(
                f"A PIL picture of mode {image.mode!r} holds values whose range is "
                f"unknown; convert it to 'L' or 'RGB'."
            )
        if image.mode in ("La", "RGBa"):  # times alpha
            image = image.convert(image.mode.upper())
        return _from_array(np.asarray(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError) as error:  # read only now, and damaged
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"A PIL picture cannot be read ({str(error).rstrip('.')}); open it again, "
            f"or give the path of its file."
        ) from error


def _from_bytes(data: bytes, options: ReadOptions) -> UInt8[np.ndarray, "H W 3"]:
    where = f"in {len(data):,} bytes"
    if not data:
        raise UserError("The bytes of a picture are empty; read its file again.")
    return image_from_bytes(data, where, options)


def _type_of(value: object) -> str:
    return type(value).__name__
