"""ADE20K panoptic, 150 classes: the 100 things and 50 kinds of stuff of ADE20K.

Layout of ``manual_dir``, or of ``manual_dir/ADEChallengeData2016``::

    images/{training,validation}/ADE_*.jpg
    ade20k_panoptic_{train,val}.json, ade20k_panoptic_{train,val}/ADE_*.png

as Mask2Former's script makes them. Without these two, they are made here from what that
script reads, by its rule (stuff first, then things over it; things without an instance
become void)::

    annotations/{training,validation}/ADE_*.png           8 bits: 0 other, 1..150
    annotations_instance/{training,validation}/ADE_*.png  R: thing 1..100, G: instance
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import instances, names, panoptic
from input_pipeline.files import images, mask_files, raw_files
from input_pipeline.info import DataError
from input_pipeline.preparation import prepared
from mlseg_jax.typing import IGNORE

_SEMANTIC = names.read_info("ade20k_panoptic", "ade20k")
# The instance annotation numbers the things from 1 in the order of their class ids
# (Mask2Former's ade20k_instance_catid_mapping.txt says the same).
_THINGS = np.flatnonzero(_SEMANTIC.is_thing)


class Ade20kPanoptic(instances.NamedByFiles):
    """TFDS builder; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack ADEChallengeData2016.zip and annotations_instance.tar in manual_dir."
    )

    def expected_examples(self) -> dict[str, int]:
        return {"train": 20_210, "val": 2_000}

    def extra_features(self) -> dict[str, Any]:
        return {"instance_map": instances.feature()}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        root = raw_files.find_root(manual_dir, "images", "ADEChallengeData2016")
        splits = {}
        for split, folder in (("train", "training"), ("val", "validation")):
            name = f"ade20k_panoptic_{split}"
            if (root / f"{name}.json").is_file():
                self.found_info, splits[split] = panoptic.list_examples(
                    root / f"{name}.json",
                    root / name,
                    root / "images" / folder,
                    "ade20k_panoptic",
                )
            else:
                splits[split] = _list_instances(root, folder)
                self.found_info = _SEMANTIC
        return splits


def _list_instances(root: pathlib.Path, folder: str) -> list[prepared.RawExample]:
    image_dir = root / "images" / folder
    pairs = raw_files.pair(image_dir, root / "annotations" / folder, ".png")
    instance_dir = root / "annotations_instance" / folder
    if not instance_dir.is_dir():
        raise DataError(
            f"Directory {root} has neither ade20k_panoptic_*.json nor "
            f"{instance_dir}; unpack annotations_instance.tar there."
        )
    return [
        prepared.RawExample(
            key=stem,
            image=image,
            make_label=functools.partial(
                label_instances, mask, instance_dir / f"{stem}.png"
            ),
        )
        for stem, image, mask in pairs
    ]


def label_instances(
    semantic: str | os.PathLike, instance: str | os.PathLike
) -> dict[str, np.ndarray]:
    """Joins a semantic and an instance PNG.

    Returns:
      ``label_map`` int32 [H W] and ``instance_map`` as stored.

    Raises:
      DataError: a file cannot be read, the sizes differ, a value is out of range, or an
        instance has several classes.
    """
    classes = mask_files.read_mask(semantic)
    thing, number, _ = np.moveaxis(images.read_image(instance).astype(np.int32), -1, 0)
    if thing.shape != classes.shape:
        raise DataError(
            f"Instance PNG {instance} is {thing.shape[1]}x{thing.shape[0]} pixels but "
            f"{semantic} is {classes.shape[1]}x{classes.shape[0]}; get both again."
        )
    for values, limit, path in ((classes, 150, semantic), (thing, 100, instance)):
        if values.max() > limit:
            raise DataError(
                f"PNG {path} holds the class {values.max()}, but there are {limit}; "
                "get it again."
            )
    stuff = np.where(_SEMANTIC.is_thing, IGNORE, np.arange(150, dtype=np.int32))
    label_map = np.append(np.int32(IGNORE), stuff)[classes]
    for found in np.unique(number[number > 0]):
        inside = number == found
        kinds = np.unique(thing[inside])
        if len(kinds) > 1 or kinds[0] == 0:
            raise DataError(
                f"Instance {found} of {instance} has the classes {kinds.tolist()} "
                "instead of one from 1 to 100; get the file again."
            )
        label_map[inside] = _THINGS[kinds[0] - 1]
    return {
        "label_map": label_map,
        "instance_map": instances.to_file(number, str(instance)),
    }
