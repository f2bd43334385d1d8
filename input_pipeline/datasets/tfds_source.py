"""Any data set of TFDS that holds pictures and masks, without its code.

What is read is the directory that ``tfds build --file_format=array_record`` wrote:
random access needs ArrayRecord files. Masks are PNG of raw values, whose classes a
classes.json gives as in a folder of masks: raw value -> class | ignore.
"""

import os
import pathlib

import tensorflow_datasets as tfds

from input_pipeline.datasets import label_schema
from input_pipeline.datasets.mask_labels import MaskLabels
from input_pipeline.files import images
from input_pipeline.info import DataError, DatasetInfo


class TfdsSource:
    """A split of a data set of TFDS, by random access from several threads.

    Args:
      name: name of the data set, such as ``oxford_iiit_pet`` or ``name/config``.
      path: TFDS's data_dir, or the directory of one version.
      split: such as "train".
      image_key: feature with the picture.
      label_key: feature with the mask.
      classes: JSON file raw value -> class | ignore.
      options: how pictures are read.

    Raises:
      DataError: nothing is there, or something else than is described.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike,
        split: str,
        *,
        image_key: str,
        label_key: str,
        classes: str | os.PathLike,
        options: images.ReadOptions = images.USUAL,
    ):
        self._where = f"TFDS data set {name!r} in {path}"
        table = label_schema.read_class_table(classes)
        self.info = DatasetInfo(
            name, table.names, (False,) * len(table.names), table.raw_values
        )
        self._labels = MaskLabels(table, options.max_pixels)
        self._options = options
        self._keys = image_key, label_key
        builder = _find(name, pathlib.Path(path), self._where)
        features = builder.info.features
        pictures = [
            key for key, f in features.items() if isinstance(f, tfds.features.Image)
        ]
        for key in self._keys:
            if key not in pictures:
                raise DataError(
                    f"{self._where} has no picture {key!r}; set data.image_key and "
                    f"data.label_key to two of {', '.join(pictures) or 'none'}."
                )
        if split not in builder.info.splits:
            raise DataError(
                f"{self._where} has no split {split!r}, only "
                f"{', '.join(builder.info.splits)}; choose one of these."
            )
        skip = tfds.decode.SkipDecoding()
        try:
            self._source = builder.as_data_source(
                split=split,
                decoders=dict.fromkeys(pictures, skip),
            )
        except NotImplementedError as error:
            raise DataError(
                f"{self._where} is not stored as ArrayRecord; build it again with "
                "--file_format=array_record."
            ) from error
        self._split = split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map`` and ``name``.

        Raises:
          DataError: a picture is damaged, the sizes differ, or a raw value has no
            class.
        """
        record = self._source[index]
        where = f"{index} of split {self._split!r} of {self._where}"
        image = images.image_from_bytes(record[self._keys[0]], where, self._options)
        label_map = self._labels.from_bytes(record[self._keys[1]], where)
        if image.shape[:2] != label_map.shape:
            raise DataError(
                f"Mask {where} is {label_map.shape[1]}x{label_map.shape[0]} pixels but "
                f"its image is {image.shape[1]}x{image.shape[0]}; build the data set "
                "again.",
                kind="size",
            )
        name = f"{self._split}_{index:08d}"
        return {"image": image, "label_map": label_map, "name": name}


def _find(name: str, path: pathlib.Path, where: str) -> tfds.core.DatasetBuilder:
    try:
        if (path / "dataset_info.json").is_file():
            return tfds.builder_from_directory(path)
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=path)
    except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"There is no {where}; build it there with `tfds build {name} "
            f"--data_dir={path} --file_format=array_record`, or correct data.path."
        ) from error
