"""Probabilities of every class at every pixel, on disk, for those who really need them.

This is the one place where the C-wide result exists, and only as a file: a Zarr array
``[C H W]`` that is written a tile at a time. Classes that were not selected are not
written at all; Zarr reads them as 0, which is what their softmax rounds to.
"""

import os
from collections.abc import Iterable

import jax
import numpy as np
import tensorstore as ts

from mlseg_jax.errors import UserError
from mlseg_jax.inference.rank_space import Segmented, tile_probabilities


def write_probabilities(
    parts: Iterable[tuple[int, Segmented]],
    path: str | os.PathLike,
    shape: tuple[int, int, int],
) -> None:
    """Writes float16 ``shape`` [C H W] of a picture; ``path`` must be new.

    ``parts``: bands of the picture, each with its first row; (0, all of it) is one.

    Raises:
      UserError: there is something at ``path`` already, or nothing can be there.
    """
    place = os.path.abspath(path)
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot write to {place} ({error.strerror}); give a new path."
        ) from error
    try:
        store = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": place},
                "metadata": {
                    "shape": list(shape),
                    "chunks": [1, *(min(side, 512) for side in shape[1:])],
                    "dtype": "<f2",
                    "fill_value": 0.0,
                },
            },
            create=True,
        ).result()
    except ValueError as error:
        raise UserError(
            f"There is something at {os.fspath(path)} already; give a new path."
        ) from error
    for start, segmented in parts:
        _write_part(store, start, segmented)


def _write_part(store, start: int, segmented: Segmented) -> None:
    selection = jax.device_get(segmented.selection)
    class_ids = selection.class_ids[0]
    valid = np.ones(len(class_ids), bool)
    if selection.valid is not None:
        valid = selection.valid[0]
    for y, x, pieces in segmented.tiles():
        tile = tile_probabilities(pieces)
        tile = np.asarray(tile)[0, :, : y.stop - y.start, : x.stop - x.start]
        rows = slice(start + y.start, start + y.stop)
        for class_id, values in zip(class_ids[valid], tile[valid], strict=True):
            store[int(class_id), rows, x].write(values.astype(np.float16)).result()
