"""What builders and readers of instances share: names from files, instance maps.

An ``instance_map`` is int32 ``[H W]``: 0 where there is no instance (stuff, or nothing
known), 1.. for instances, and IGNORE for a crowd, whose members nobody told apart. In
files it is a 16-bit PNG with 65535 for IGNORE, as label maps are.
"""

import os

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import class_statistics, prepared, stored
from mlseg_jax.typing import IGNORE

MAX_INSTANCES = stored.IGNORE_16 - 1


class NamedByFiles(prepared.SegmentationBuilder, skip_registration=True):
    """Base of the builders whose class names stand in the raw files.

    `raw_splits` of a final class sets ``found_info``; processes that get the builder
    afterwards get it too.
    """

    found_info: DatasetInfo | None = None

    def class_info(self) -> DatasetInfo:
        if self.found_info is None:
            raise RuntimeError("The classes are known once raw_splits has been called.")
        return self.found_info

    def __getstate__(self):
        return super().__getstate__(), self.found_info

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.found_info = state[1]


def feature() -> tfds.features.Image:
    """The TFDS feature of an instance map."""
    return tfds.features.Image(
        shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
    )


def to_file(instance_map: np.ndarray, where: str) -> np.ndarray:
    """int32 [H W] with IGNORE to uint16, as it is stored.

    Raises:
      DataError: there are more instances than 16 bits can number.
    """
    if instance_map.max(initial=0) > MAX_INSTANCES:
        raise DataError(
            f"{where} has over {MAX_INSTANCES:,} instances; split the image."
        )
    values = np.where(instance_map == IGNORE, stored.IGNORE_16, instance_map)
    return values.astype(np.uint16)


def from_file(picture: np.ndarray) -> np.ndarray:
    """The inverse of `to_file`."""
    return stored.with_ignore(picture)


class PreparedInstances:
    """`prepared.Prepared` of a data set with instances.

    Examples have ``instance_map`` beside the rest; see the module docstring.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self._source = prepared.Prepared(path, split)
        self.info = self._source.info

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        return example | {"instance_map": from_file(example["instance_map"])}

    @property
    def statistics(self) -> dict:
        """As `prepared.Prepared.statistics`."""
        return self._source.statistics

    @property
    def presence(self) -> class_statistics.Presence:
        """As `prepared.Prepared.presence`."""
        return self._source.presence
