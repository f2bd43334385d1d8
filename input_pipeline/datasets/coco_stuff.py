"""COCO-Stuff: 80 things and 91 kinds of stuff, on 10,000 or on 123,287 images.

Layouts of ``manual_dir``; masks ``*_labelTrainIds.png``, as mmsegmentation makes them,
are read where there are no others::

    10k    images/COCO_train2014_*.jpg                  annotations of version 1.1
           annotations/COCO_train2014_*.mat             key S: 0 unlabeled, 1..182
           imageLists/{train,test}.txt
        or images/{train2014,test2014}/*.jpg
           annotations/{train2014,test2014}/*_labelTrainIds.png    0 unlabeled, 1..171

    164k   images/{train2017,val2017}/*.jpg             "images" may be absent
           annotations/{train2017,val2017}/*.png        0..181, 255 unlabeled
           (or stuffthingmaps/...)    *_labelTrainIds.png are 0..170, 255 unlabeled

Of the ids 1..182 eleven were never used. The split "val" of 10k is the published test.
"""

import functools
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_format, coco_images, names
from input_pipeline.files import images, raw_files
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import prepared, stored
from mlseg_jax.typing import IGNORE

_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
_IDS = [raw for raw in range(1, 183) if raw not in _UNUSED]
_LABELS_10K = stored.RawLabels({0: IGNORE} | {raw: i for i, raw in enumerate(_IDS)})
_LABELS_164K = stored.RawLabels(
    {255: IGNORE} | {raw - 1: i for i, raw in enumerate(_IDS)}
)
_CONVERTED_10K = stored.RawLabels({0: IGNORE} | {i + 1: i for i in range(171)})
_CONVERTED_164K = stored.RawLabels({255: IGNORE} | {i: i for i in range(171)})
_CONVERTED = "_labelTrainIds"


class CocoStuff(prepared.SegmentationBuilder):
    """TFDS builder with the variants 10k and 164k; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="10k", description="9,000 and 1,000 images."),
        tfds.core.BuilderConfig(name="164k", description="118,287 and 5,000 images."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "10k: unpack cocostuff-10k-v1.1.zip in manual_dir. 164k: unpack train2017.zip "
        "and val2017.zip in images, stuffthingmaps_trainval2017.zip in annotations."
    )

    def class_info(self) -> DatasetInfo:
        return names.read_info("coco_stuff", "coco_stuff")

    def expected_examples(self) -> dict[str, int]:
        if self.builder_config.name == "10k":
            return {"train": 9_000, "val": 1_000}
        return {"train": 118_287, "val": 5_000}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        if self.builder_config.name == "164k":
            return {s: _list_164k(manual_dir, s) for s in ("train", "val")}
        return {
            s: _list_10k(manual_dir, f) for s, f in (("train",) * 2, ("val", "test"))
        }


def _list_10k(manual_dir: pathlib.Path, split: str) -> list[prepared.RawExample]:
    root = raw_files.find_root(manual_dir, "annotations", "coco_stuff10k")
    names_file = root / "imageLists" / f"{split}.txt"
    if (root / "annotations" / f"{split}2014").is_dir():
        paths = raw_files.pair(
            root / "images" / f"{split}2014",
            root / "annotations" / f"{split}2014",
            ".png",
            mask_ending=_CONVERTED,
        )
        return _examples(paths, stored.read_label, _CONVERTED_10K)
    paths = [
        (
            stem,
            coco_images.image_file(root / "images", f"{stem}.jpg", names_file),
            coco_images.image_file(root / "annotations", f"{stem}.mat", names_file),
        )
        for stem in raw_files.read_lines(names_file)
    ]
    return _examples(paths, read_mat, _LABELS_10K)


def _list_164k(manual_dir: pathlib.Path, split: str) -> list[prepared.RawExample]:
    folder = f"{split}2017"
    image_dir = coco_format.find(manual_dir, (f"images/{folder}", folder), "images")
    places = (f"annotations/{folder}", f"stuffthingmaps/{folder}")
    mask_dir = coco_format.find(manual_dir, places, "masks")
    stems = raw_files.list_files(mask_dir, (".png",))
    if all(stem.endswith(_CONVERTED) for stem in stems):
        endings, labels = {"mask_ending": _CONVERTED}, _CONVERTED_164K
    else:
        endings, labels = {"other_ending": "TrainIds"}, _LABELS_164K
    paths = raw_files.pair(image_dir, mask_dir, ".png", **endings)
    return _examples(paths, stored.read_label, labels)


def _examples(paths, read, labels) -> list[prepared.RawExample]:
    return [
        prepared.RawExample(stem, image, functools.partial(read, mask, labels))
        for stem, image, mask in paths
    ]


def read_mat(path: str | os.PathLike, labels: stored.RawLabels) -> np.ndarray:
    """Reads the matrix S of a MATLAB file as int32 [H W] of class ids.

    Raises:
      DataError: it is missing, damaged or without S, or a value has no class.
    """
    data = images.read_bytes(path)
    try:
        raw = scipy.io.loadmat(io.BytesIO(data), variable_names=["S"])["S"]
    except KeyError:
        raise DataError(
            f"Annotation {path} has no matrix S; get version 1.1 of COCO-Stuff 10k."
        ) from None
    # scipy raises nearly everything for a damaged file.
    except Exception as error:
        raise DataError(
            f"Annotation {path} is damaged ({error}); unpack the archive again."
        ) from error
    if raw.ndim != 2 or raw.dtype.kind not in "iuf" or (raw % 1 != 0).any():
        raise DataError(
            f"The matrix S of annotation {path} is no matrix of whole numbers; unpack "
            "the archive again."
        )
    return labels(raw.astype(np.int64), path)
