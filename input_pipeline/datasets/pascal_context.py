"""PASCAL-Context with 60 classes (background is one) or 59 (background is ignored).

Layout of ``manual_dir``; the prefix ``VOCdevkit/VOC2010`` may be absent::

    VOCdevkit/VOC2010/JPEGImages/*.jpg
    VOCdevkit/VOC2010/trainval_merged.json              PASCAL in Detail (or manual_dir)
 or VOCdevkit/VOC2010/SegmentationClassContext/*.png    0 background, 1..59 classes
    VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt

The PNGs, which mmsegmentation makes from the JSON, are read if they are there. In the
JSON each region has a mask (COCO's run lengths) and one of 59 category ids; regions are
painted in the order of the file, later ones on top, on a background of 0.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_format, coco_images, names
from input_pipeline.files import coco_masks, raw_files
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import prepared, stored
from mlseg_jax.typing import IGNORE

# Category ids of the JSON, ascending: the position is the class of the 60.
DETAIL_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98,
    104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284,
    295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424,
    427, 440, 445, 454, 458,
)  # fmt: skip
_JSON = "trainval_merged.json"
_SPLITS = ("train", "val")


class PascalContext(prepared.SegmentationBuilder):
    """TFDS builder with the variants 60 and 59; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="60", description="Background is class 0."),
        tfds.core.BuilderConfig(name="59", description="Background is ignored."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack VOCtrainval_03-May-2010.tar in manual_dir and put trainval_merged.json "
        "of PASCAL in Detail there."
    )

    def class_info(self) -> DatasetInfo:
        info = names.read_info("pascal_context", "pascal_context")
        skip = self._first_class
        return DatasetInfo(info.name, info.class_names[skip:], info.is_thing[skip:])

    @property
    def _first_class(self) -> int:
        return 0 if self.builder_config.name == "60" else 1

    def expected_examples(self) -> dict[str, int]:
        return {"train": 4_998, "val": 5_105}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        root = raw_files.find_root(
            manual_dir, "JPEGImages", "VOC2010", "VOCdevkit/VOC2010"
        )
        class_of = {raw: raw - self._first_class for raw in range(60)}
        if self._first_class:
            class_of[0] = IGNORE
        if (root / "SegmentationClassContext").is_dir():
            # 255 is not in the files, but every reader of them ignores it.
            labels = stored.RawLabels(class_of | {255: IGNORE})
            return {split: _list_converted(root, split, labels) for split in _SPLITS}
        labels = stored.RawLabels(
            {raw: class_of[i] for i, raw in enumerate(DETAIL_IDS)}
        )
        path = root / _JSON if (root / _JSON).is_file() else manual_dir / _JSON
        return _list_detail(path, root, labels)


def _list_converted(
    root: pathlib.Path, split: str, labels: stored.RawLabels
) -> list[prepared.RawExample]:
    path = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return [
        prepared.RawExample(
            stem,
            coco_images.image_file(root / "JPEGImages", f"{stem}.jpg", path),
            functools.partial(
                stored.read_label,
                coco_images.image_file(
                    root / "SegmentationClassContext", f"{stem}.png", path
                ),
                labels,
            ),
        )
        for stem in raw_files.read_lines(path)
    ]


def _list_detail(
    path: pathlib.Path, root: pathlib.Path, labels: stored.RawLabels
) -> dict[str, list[prepared.RawExample]]:
    if not path.is_file():
        raise DataError(
            f"Directory {root} has neither {_JSON} nor SegmentationClassContext; see "
            "docs/datasets.md."
        )
    data = coco_format.read_json(path)
    splits = {split: [] for split in _SPLITS}
    regions_of = {}
    try:
        for region in data["annos_segmentation"]:
            regions_of.setdefault(region["image_id"], []).append(
                (region["category_id"], region["segmentation"])
            )
        for picture in data["images"]:
            if picture["phase"] not in splits:
                continue
            name = picture["file_name"]
            make_label = functools.partial(
                paint_regions,
                f"{path} (image {name})",
                coco_masks.check_image_size(
                    picture["width"], picture["height"], f"Image {name} of {path}"
                ),
                regions_of.get(picture["image_id"], []),
                labels,
            )
            splits[picture["phase"]].append(
                prepared.RawExample(
                    os.path.splitext(name)[0],
                    coco_images.image_file(root / "JPEGImages", name, path),
                    make_label,
                )
            )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the JSON of PASCAL in Detail ({error}); get it again."
        ) from error
    return splits


def paint_regions(
    where: str,
    size: tuple[int, int],
    regions: Sequence[tuple[int, Mapping[str, Any]]],
    labels: stored.RawLabels,
) -> np.ndarray:
    """Paints (category id, run lengths), the last on top: int32 [H W] of class ids."""
    for category_id, _ in regions:
        if category_id not in DETAIL_IDS:
            raise DataError(
                f"{where} has a region of the category {category_id!r}, which is none "
                "of the 59; get it again."
            )
    layers = (
        (category_id, coco_masks.decode(segmentation, size, where))
        for category_id, segmentation in reversed(regions)
    )
    return labels(coco_masks.paint(layers, size, empty=0), where)
