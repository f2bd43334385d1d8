"""Data sets that are prepared once: the base of their builders, and their reader.

A builder knows one raw layout. It lists `RawExample`s; everything else is here:
pictures and labels (see `stored`) go, in the order of the list, into ArrayRecord files
that TFDS describes, and their classes are counted (see `class_statistics`).

Nothing here needs TensorFlow. `prepare` is the parallel, resumable way to run a
builder; ``tfds build`` is another, with ``--beam_pipeline_options`` on a cluster.
"""

import abc
import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation.class_statistics import (
    CLASSES_FILE,
    STATISTICS_FILE,
    Presence,
    SplitRecord,
    write_side_files,
)
from input_pipeline.preparation.stored import (
    IGNORE_16,
    decode_image,
    decode_label,
    encode_png,
    read_image_file,
    resize_nearest,
    with_ignore,
)
from mlseg_jax.typing import IGNORE


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One example of a raw data set, before anything of it is read.

    Attributes:
      key: unique within the split; becomes the ``name`` of the example.
      image: image file.
      make_label: returns int32 [H W] of class ids and IGNORE, or a dict with that as
        ``label_map`` and a value for each of the builder's `extra_features`. It goes to
        other processes: a module's function, or a `functools.partial` of one.
      elsewhere: where the image may be if it is not there, for sources that look.
      remarks: returns what is odd about the label though it can be read, likewise.
      image_id: what the data set's own file calls it, if there is one.
    """

    key: str
    image: str | os.PathLike
    make_label: Callable[[], np.ndarray | dict[str, Any]]
    elsewhere: tuple[str | os.PathLike, ...] = ()
    remarks: Callable[[], list[DataError]] | None = None
    image_id: int | str | None = None


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of a segmentation data set over raw files in ``manual_dir``.

    A final class gives `class_info` and `raw_splits`; variants of a data set are its
    ``BUILDER_CONFIGS``, the first of which is the default.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "See docs/datasets.md for the layout."
    # Nothing is downloaded. (To look for check sums, TFDS needs one more package.)
    url_infos: dict = {}
    # Images whose short side is longer are scaled down to it, with their labels.
    MAX_SHORT_SIDE: int | None = None

    @abc.abstractmethod
    def class_info(self) -> DatasetInfo:
        """Name and classes of the (configured variant of the) data set."""

    @abc.abstractmethod
    def raw_splits(self, manual_dir: pathlib.Path) -> dict[str, Sequence[RawExample]]:
        """Lists the examples of each split in a fixed order, reading no pixels.

        Raises:
          DataError: files are missing or contradict each other.
        """

    def expected_examples(self) -> dict[str, int]:
        """Number of examples by split of a complete copy, where it is known."""
        return {}

    def extra_features(self) -> dict[str, Any]:
        """TFDS features beside id, image and label; pictures among them are PNG."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.Image(
                    shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
                ),
                **self.extra_features(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def encode(self, raw: RawExample, record: SplitRecord) -> dict[str, Any]:
        """Reads an example, checks it and counts its classes.

        Returns:
          The value of each feature, pictures as the bytes of a file.

        Raises:
          DataError: a file cannot be read, image and label differ in size, or an id of
            the label is no class.
        """
        made = raw.make_label()
        extras = dict(made) if isinstance(made, Mapping) else {"label_map": made}
        label_map = extras.pop("label_map")
        num_classes = self.class_info().num_classes
        if label_map.ndim != 2 or not label_map.size:
            raise DataError(
                f"The label of {raw.image} has the shape {label_map.shape}, but needs "
                "[H W] with pixels; correct it."
            )
        if label_map.min() < IGNORE or label_map.max() >= num_classes:
            raise DataError(
                f"The label of {raw.image} holds ids from {label_map.min()} to "
                f"{label_map.max()}, but there are {num_classes} classes; correct it."
            )
        image, size = read_image_file(raw.image, label_map.shape, self.MAX_SHORT_SIDE)
        if size != label_map.shape:
            label_map = resize_nearest(label_map, size)
        features = {
            "id": raw.key,
            "image": image,
            "label": encode_png(np.where(label_map < 0, IGNORE_16, label_map)),
        }
        for name, feature in self.extra_features().items():
            value = extras.pop(name)
            if isinstance(feature, tfds.features.Image):
                if value.shape[:2] != size:
                    value = resize_nearest(value, size)
                value = encode_png(value)
            features[name] = value
        if extras:
            raise ValueError(f"{sorted(extras)} are no features of {self.name}.")
        record.add(label_map)
        return features

    # The rest is what `tfds build` runs, in one process or with Beam.

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        splits = self.raw_splits(pathlib.Path(dl_manager.manual_dir))
        check_keys(splits, self.name)
        self._records = {split: SplitRecord() for split in splits}
        return {s: self._generate_examples(raws, s) for s, raws in splits.items()}

    def _generate_examples(self, raws: Sequence[RawExample], split: str):
        if self._use_beam:
            beam = tfds.core.lazy_imports.apache_beam
            return beam.Create(list(enumerate(raws))) | beam.MapTuple(
                self._encode_alone
            )
        record = self._records[split]
        return ((index, self.encode(raw, record)) for index, raw in enumerate(raws))

    def _encode_alone(self, index: int, raw: RawExample) -> tuple[int, dict[str, Any]]:
        return index, self.encode(raw, SplitRecord())

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        options = download_config or tfds.download.DownloadConfig()
        self._use_beam = bool(options.beam_runner or options.beam_options)
        super()._download_and_prepare(dl_manager, download_config)
        if self._use_beam:  # The counts stayed with the workers.
            self.info.write_to_directory(self.data_path)
            self._records = {s: _count_again(self, s) for s in self._records}
        write_side_files(self.data_path, self.class_info(), self._records)


def _count_again(builder: SegmentationBuilder, split: str) -> SplitRecord:
    record = SplitRecord()
    for example in _open_undecoded(builder, split):
        record.add(decode_label(example["label"]))
    return record


def _pictures(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Names of the features that are stored as files of pictures."""
    return [
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    ]


def _open_undecoded(builder: tfds.core.DatasetBuilder, split: str):
    skip = tfds.decode.SkipDecoding()
    decoders = dict.fromkeys(_pictures(builder), skip)
    return builder.as_data_source(split=split, decoders=decoders)


def stored_features(path: str | os.PathLike) -> tuple[str, ...]:
    """Names of the TFDS features of the data set in a directory of one version."""
    return tuple(tfds.builder_from_directory(path).info.features)


class Prepared:
    """A split of a prepared data set, by random access from several threads.

    Args:
      path: the directory of one version, such as ``data/ade20k/1.0.0``.
      split: such as "train".

    Raises:
      DataError: nothing was prepared there, or it has no such split.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self._path, self._split = pathlib.Path(path), split
        if not (self._path / CLASSES_FILE).is_file():
            raise DataError(
                f"There is no prepared data set in {self._path}; run the command "
                "prepare, or correct the path."
            )
        classes = json.loads((self._path / CLASSES_FILE).read_text(encoding="utf-8"))
        self.info = DatasetInfo(
            name=classes["name"],
            class_names=tuple(classes["class_names"]),
            is_thing=tuple(classes["is_thing"]),
        )
        builder = tfds.builder_from_directory(self._path)
        if split not in builder.info.splits:
            raise DataError(
                f"Data set {self._path} has no split {split!r}, only "
                f"{', '.join(builder.info.splits)}; choose one of these."
            )
        self._masks = [name for name in _pictures(builder) if name != "image"]
        self._source = _open_undecoded(builder, split)

    def __reduce__(self):
        return Prepared, (self._path, self._split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map``, ``name`` and the extra features.

        Raises:
          DataError: the stored example is damaged.
          IndexError: ``index`` is outside 0..len-1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)}.")
        record = dict(self._source[index])
        example = {"name": record.pop("id").decode()}
        example["image"] = decode_image(record.pop("image"))
        for name in self._masks:
            data = np.frombuffer(record.pop(name), np.uint8)
            record[name] = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if example["image"] is None or any(record[n] is None for n in self._masks):
            raise DataError(
                f"Example {index} ({example['name']}) of split {self._split!r} in "
                f"{self._path} is damaged; prepare the data set again."
            )
        example["label_map"] = with_ignore(record.pop("label"))
        return example | record

    @property
    def statistics(self) -> dict[str, Any]:
        """The statistics of this split; see the module docstring."""
        text = (self._path / STATISTICS_FILE).read_text(encoding="utf-8")
        return json.loads(text)[self._split]

    @property
    def presence(self) -> Presence:
        """Which classes each example holds, without reading pictures."""
        return Presence.load(self._path / f"presence-{self._split}.npz")


def check_keys(splits: Mapping[str, Sequence[RawExample]], name: str) -> None:
    """Raises DataError if a split is empty or a key stands twice in it."""
    for split, raws in splits.items():
        if not raws:
            raise DataError(
                f"Split {split!r} of {name} has no examples; check --manual_dir."
            )
        key, times = collections.Counter(raw.key for raw in raws).most_common(1)[0]
        if times > 1:
            raise DataError(
                f"Split {split!r} of {name} has {times} examples named {key!r}; "
                "remove the copies."
            )
