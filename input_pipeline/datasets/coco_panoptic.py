"""COCO panoptic, 133 classes: 80 things, then 53 kinds of stuff.

Layout of ``manual_dir``, in which ``annotations/`` and ``images/`` may be left out::

    annotations/panoptic_{train,val}2017.json
    annotations/panoptic_{train,val}2017/*.png
    images/{train,val}2017/*.jpg
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_format, instances, panoptic
from input_pipeline.preparation import prepared


class CocoPanoptic(instances.NamedByFiles):
    """TFDS builder; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack COCO's panoptic annotations (also the archives of PNG in the archive) "
        "and images of 2017 in manual_dir."
    )

    def expected_examples(self) -> dict[str, int]:
        return {"train": 118_287, "val": 5_000}

    def extra_features(self) -> dict[str, Any]:
        return {"instance_map": instances.feature()}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        splits = {}
        for split in ("train", "val"):
            name = f"panoptic_{split}2017"
            json_path, png_dir, image_dir = (
                coco_format.find(manual_dir, [f"{folder}/{file}", file], what)
                for folder, file, what in (
                    ("annotations", f"{name}.json", "panoptic JSON"),
                    ("annotations", name, "folder of panoptic PNG"),
                    ("images", f"{split}2017", "folder of images"),
                )
            )
            self.found_info, splits[split] = panoptic.list_examples(
                json_path, png_dir, image_dir, "coco_panoptic"
            )
        return splits
