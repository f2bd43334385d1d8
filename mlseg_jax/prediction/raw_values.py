"""Label maps in the raw values of the masks that a model was trained on."""

import os
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image

from input_pipeline.files.images import IGNORE_RAW
from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.typing import Int, UInt


def raw_value_writer(
    info: DatasetInfo, workdir: str
) -> Callable[
    [str | os.PathLike, Int[np.ndarray, "H W"] | UInt[np.ndarray, "H W"]], None
]:
    """What writes class ids ``[H W]`` as a PNG of raw values.

    A class that has several raw values gets the first of them. Values up to 255 give 8
    bits, larger ones 16; colours give RGB.

    Args:
      info: the classes of the run, with their raw values.
      workdir: of the run, for errors.

    Raises:
      UserError: the run knows no raw values, or they fit in no mask.
    """
    if info.raw_values is None:
        raise UserError(
            f"The run {workdir} does not say which raw values its classes have (runs "
            "of before and those on prepared data sets do not); leave out --raw_values "
            "for masks of class ids."
        )
    if any(isinstance(value, str) for value in info.raw_values):
        colours = [int(value[1:], 16) for value in info.raw_values]
        table = np.uint8([[c >> 16, c >> 8 & 255, c & 255] for c in colours])
    else:
        depth = 8 if max(info.raw_values) <= IGNORE_RAW[8] else 16
        if not 0 <= min(info.raw_values) <= max(info.raw_values) <= IGNORE_RAW[16]:
            raise UserError(
                f"The run {workdir} has the raw value {max(info.raw_values)}, which no "
                "16-bit mask holds; leave out --raw_values for masks of class ids."
            )
        table = np.array(info.raw_values, np.uint8 if depth == 8 else np.uint16)

    def write(
        path: str | os.PathLike,
        label_map: Int[np.ndarray, "H W"] | UInt[np.ndarray, "H W"],
    ) -> None:
        with epath.Path(path).open("wb") as file:
            Image.fromarray(table[label_map]).save(file, format="png")

    return write
