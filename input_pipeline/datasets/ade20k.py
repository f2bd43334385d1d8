"""ADE20K with 150 classes (SceneParse150).

Layout of ``manual_dir``, or of ``manual_dir/ADEChallengeData2016``::

    images/{training,validation}/ADE_*.jpg
    annotations/{training,validation}/ADE_*.png      8 bits: 0 other, 1..150 classes
"""

import functools
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds

from input_pipeline.datasets import names
from input_pipeline.files import raw_files
from input_pipeline.info import DatasetInfo
from input_pipeline.preparation import prepared, stored
from mlseg_jax.typing import IGNORE

_LABELS = stored.RawLabels({0: IGNORE} | {raw: raw - 1 for raw in range(1, 151)})


class Ade20k(prepared.SegmentationBuilder):
    """TFDS builder; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack ADEChallengeData2016.zip in manual_dir."

    def class_info(self) -> DatasetInfo:
        return names.read_info("ade20k", "ade20k")

    def expected_examples(self) -> dict[str, int]:
        return {"train": 20_210, "val": 2_000}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        root = raw_files.find_root(manual_dir, "annotations", "ADEChallengeData2016")
        return {
            split: [
                prepared.RawExample(
                    key=stem,
                    image=image,
                    make_label=functools.partial(stored.read_label, mask, _LABELS),
                )
                for stem, image, mask in raw_files.pair(
                    root / "images" / folder, root / "annotations" / folder, ".png"
                )
            ]
            for split, folder in (("train", "training"), ("val", "validation"))
        }
