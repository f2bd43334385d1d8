"""ADE20K with 847 classes (ADE20K-Full).

One of three layouts of ``manual_dir``; the prefix ``ADE20K_2021_17_01`` may be absent::

    ADE20K_2021_17_01/index_ade20k.pkl                           as published
    ADE20K_2021_17_01/images/ADE/{training,validation}/*/*/ADE_*.jpg and ADE_*_seg.png

    ADE20K_2021_17_01/images_detectron2/{training,validation}/ADE_*.jpg
    ADE20K_2021_17_01/annotations_detectron2/{training,validation}/ADE_*.tif

    ade20k_full/{train,val}/{image,label}/ADE_*.{jpg,tif}        as RankSeg has it

In a published mask an object id is ``R // 10 * 256 + G``; ids of no class are ignored.
The TIFFs hold class ids in 16 bits, with 65535 to ignore. As in the preparation of
MaskFormer, pictures whose short side is over 512 pixels are scaled down to that.
"""

import codecs
import functools
import os
import pathlib
import pickle
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_images, names
from input_pipeline.files import images, raw_files
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import prepared, stored
from mlseg_jax.typing import IGNORE

_FOLDER = "ADE20K_2021_17_01"
_NUM_CLASSES = 847
_CLASS_IDS = stored.RawLabels(
    {raw: raw for raw in range(_NUM_CLASSES)} | {stored.IGNORE_16: IGNORE}
)
# What an index may be made of: containers, text, numbers and NumPy arrays of them.
_SAFE_GLOBALS = {
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _core in ("numpy.core", "numpy._core"):  # The name until NumPy 2, and since.
    _SAFE_GLOBALS |= {
        (f"{_core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        (f"{_core}.multiarray", "scalar"): np._core.multiarray.scalar,
        (f"{_core}.numeric", "_frombuffer"): np._core.numeric._frombuffer,
    }


class Ade20kFull(prepared.SegmentationBuilder):
    """TFDS builder; images are named by their stems."""

    VERSION = tfds.core.Version("1.0.0")
    MAX_SHORT_SIDE = 512
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack ADE20K_2021_17_01.zip in manual_dir."

    def class_info(self) -> DatasetInfo:
        return names.read_info("ade20k_full", "ade20k_full")

    def expected_examples(self) -> dict[str, int]:
        return {"train": 25_574, "val": 2_000}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        for root in (manual_dir, manual_dir / _FOLDER):
            if (root / "annotations_detectron2").is_dir():
                masks = root / "annotations_detectron2"
                return {
                    split: _pair_tiffs(root / "images_detectron2" / name, masks / name)
                    for split, name in (("train", "training"), ("val", "validation"))
                }
            if (root / "index_ade20k.pkl").is_file():
                return _read_published(root)
        root = raw_files.find_root(manual_dir, "train/label", "ade20k_full")
        return {
            split: _pair_tiffs(root / split / "image", root / split / "label")
            for split in ("train", "val")
        }


def _pair_tiffs(
    image_dir: pathlib.Path, mask_dir: pathlib.Path
) -> list[prepared.RawExample]:
    return [
        prepared.RawExample(stem, image, functools.partial(_read_tiff, mask))
        for stem, image, mask in raw_files.pair(image_dir, mask_dir, ".tif")
    ]


def _read_published(root: pathlib.Path) -> dict[str, list[prepared.RawExample]]:
    path = root / "index_ade20k.pkl"
    splits = {"train": [], "val": []}
    for folder, name in read_index(path):
        # The index counts from the directory that holds ADE20K_2021_17_01.
        inside = folder.replace("\\", "/").removeprefix(_FOLDER).strip("/")
        image = coco_images.image_file(root, f"{inside}/{name}", path)
        stem = name.removesuffix(".jpg")
        mask = image.with_name(f"{stem}_seg.png")
        split = "val" if name.split("_")[1:2] == ["val"] else "train"
        splits[split].append(
            prepared.RawExample(stem, image, functools.partial(_read_objects, mask))
        )
    return splits


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _SAFE_GLOBALS[module, name]


def read_index(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Folder and name of each image of ``index_ade20k.pkl``, a pickle of plain data.

    Raises:
      DataError: it is damaged, holds code, or lacks the lists of files.
    """
    try:
        with open(path, "rb") as file:
            index = _IndexUnpickler(file, encoding="latin1").load()
        folders, files = (list(index[key]) for key in ("folder", "filename"))
    # A damaged pickle can raise nearly everything.
    except Exception as error:
        raise DataError(
            f"Index {path} is damaged or is no plain table of files "
            f"({type(error).__name__}: {error}); get it again."
        ) from error
    if len(folders) != len(files) or not all(
        isinstance(text, str) for text in folders + files
    ):
        raise DataError(f"Index {path} has no folder for each file name; get it again.")
    return list(zip(folders, files, strict=True))


@functools.cache
def _class_of_object() -> np.ndarray:
    """Class id by object id, IGNORE for objects of no class."""
    table = np.full(26 * 256, IGNORE, np.int32)
    for class_id, object_id in enumerate(names.read_numbers("ade20k_full_object_ids")):
        table[object_id] = class_id
    return table


def _read_objects(path: str | os.PathLike) -> np.ndarray:
    """Reads a published ``*_seg.png`` as int32 [H W] of class ids."""
    colours = raw_files.read_pixels(path, ("RGB",))
    red, green = colours[..., 0].astype(np.int32), colours[..., 1].astype(np.int32)
    return _class_of_object()[red // 10 * 256 + green]


def _read_tiff(path: str | os.PathLike) -> np.ndarray:
    raw = raw_files.read_pixels(path, images.MODES_16_BIT)
    return _CLASS_IDS(raw.astype(np.int32), path)
