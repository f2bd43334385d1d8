"""Probabilities of every class at every pixel, on disk, for those who really need them.

This is the one place where the C-wide result exists, and only as a file: a Zarr array
``[C H W]`` that is written a tile at a time. Classes that were not selected are not
written at all; Zarr reads them as 0, which is what their softmax rounds to.
"""

import os

import jax
import numpy as np
import tensorstore as ts

from mlseg_jax.errors import UserError
from mlseg_jax.inference.rank_space import Segmented, tile_probabilities


def write_probabilities(
    segmented: Segmented, path: str | os.PathLike, row: int = 0
) -> None:
    """Writes float16 ``[C H W]`` for one picture of a batch; ``path`` must be new.

    Raises:
      UserError: there is something at ``path`` already.
    """
    num_classes = segmented.selection.num_classes
    try:
        store = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": os.path.abspath(path)},
                "metadata": {
                    "shape": [num_classes, *segmented.size],
                    "chunks": [1, *(min(side, 512) for side in segmented.size)],
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
    selection = jax.device_get(segmented.selection)
    class_ids = selection.class_ids[row]
    valid = np.ones(len(class_ids), bool)
    if selection.valid is not None:
        valid = selection.valid[row]
    for y, x, pieces in segmented.tiles():
        tile = tile_probabilities(pieces)
        tile = np.asarray(tile)[row, :, : y.stop - y.start, : x.stop - x.start]
        for class_id, values in zip(class_ids[valid], tile[valid], strict=True):
            store[int(class_id), y, x].write(values.astype(np.float16)).result()
