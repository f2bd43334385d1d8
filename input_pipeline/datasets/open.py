"""From the ``data`` part of a configuration to a source of examples."""

import pathlib

import ml_collections

from input_pipeline.datasets.builders import BUILDERS, find_prepared
from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.info import DataError
from input_pipeline.datasets.sign_scenes import SignScenes


def _open_folder(data: ml_collections.ConfigDict, split: str):
    if not data.path:
        raise DataError(
            "The folder data set has no place; add --config.data.path=DIRECTORY."
        )
    return Folder(data.path, split)


def _open_sign_scenes(data: ml_collections.ConfigDict, split: str):
    is_train = split == data.train_split
    count = data.train_examples if is_train else data.eval_examples
    return SignScenes(
        num_classes=data.num_classes,
        image_size=tuple(data.crop_size),
        split=split,
        num_examples=count,
    )


def _open_prepared(data: ml_collections.ConfigDict, split: str):
    # Here, because it imports TFDS, which other data sets need not wait for.
    from input_pipeline.datasets import prepared

    if not data.path:
        raise DataError(
            f"The data set {data.name!r} has no place; add what was --data_dir of the "
            "command prepare as --config.data.path=DIRECTORY."
        )
    path = pathlib.Path(data.path)
    if not (path / prepared.CLASSES_FILE).is_file():
        path = find_prepared(data.name, data.path)
    if not (path / prepared.CLASSES_FILE).is_file():
        raise DataError(
            f"The data set {data.name!r} is not prepared in {data.path}; run: python "
            f"main.py prepare --dataset={data.name} --manual_dir=RAW_FILES "
            f"--data_dir={data.path}"
        )
    return prepared.Prepared(path, split)


DATASETS = {
    "folder": _open_folder,
    "sign_scenes": _open_sign_scenes,
    **dict.fromkeys(BUILDERS, _open_prepared),
}


def open_dataset(data: ml_collections.ConfigDict, *, train: bool):
    """The training or the evaluation split of the configured data set.

    Raises:
      DataError: there is no such data set, its files are not as they should be, or it
        has other classes than the configuration says.
    """
    name = data.name.partition("/")[0]  # What follows is a variant: coco_stuff/164k.
    if name not in DATASETS:
        raise DataError(
            f"There is no reader for the data set {data.name!r} (there are "
            f"{', '.join(DATASETS)}); convert it to a folder of images and masks."
        )
    split = data.train_split if train else data.eval_split
    source = DATASETS[name](data, split)
    if data.num_classes not in (0, source.info.num_classes):
        raise DataError(
            f"Data set {data.name!r} has {source.info.num_classes} classes, but "
            f"data.num_classes is {data.num_classes}; set it to 0 or correct the data."
        )
    limit = data.train_examples if train else data.eval_examples
    if 0 < limit < len(source) or data.cache:
        return _Subset(source, limit or len(source), data.cache)
    return source


class _Subset:
    """The first examples of a source, kept in memory once read if wanted."""

    def __init__(self, source, count: int, cache: bool):
        self.info = source.info
        self._source = source
        self._count = min(count, len(source))
        self._kept = {} if cache else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        if self._kept is None:
            return self._source[index]
        if index not in self._kept:
            self._kept[index] = self._source[index]
        return self._kept[index]
