"""PNG files that are written a band of rows at a time, whatever their size."""

import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlseg_jax.typing import UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BITS = (8, 2, 0, 0, 0)  # depth, colour, compression, filters, no interlace
_SUB, _UP = 1, 2
_LEVEL = 4


def write_png(
    file: Any,
    size: tuple[int, int],
    bands: Iterable[UInt8[np.ndarray, "_ W 3"]],
) -> None:
    """Writes an RGB picture of this height and width, out of bands from its top.

    ``file`` is open for bytes.
    """
    height, width = size
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">II5B", width, height, *_RGB_8_BITS))
    compressor = zlib.compressobj(_LEVEL, strategy=zlib.Z_FILTERED)
    above = np.zeros((1, width, 3), np.uint8)
    for band in bands:
        data = compressor.compress(_filtered(band, above))
        if data:
            _write_chunk(file, b"IDAT", data)
        above = band[-1:]
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(
    band: UInt8[np.ndarray, "n W 3"], above: UInt8[np.ndarray, "1 W 3"]
) -> bytes:
    """Differences to the pixel on the left or above, whichever are smaller in a row."""
    by_left, by_above = band.copy(), band.copy()
    by_left[:, 1:] -= band[:, :-1]
    by_above[:1] -= above
    by_above[1:] -= band[:-1]
    size = [
        np.abs(x.view(np.int8)).sum(axis=(1, 2), dtype=np.int64)
        for x in (by_left, by_above)
    ]
    up = size[1] < size[0]
    by_left[up] = by_above[up]
    kinds = np.where(up, _UP, _SUB).astype(np.uint8)[:, None]
    return np.concatenate([kinds, by_left.reshape(len(band), -1)], axis=1).tobytes()


def _write_chunk(file: Any, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
