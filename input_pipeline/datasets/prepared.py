"""Data sets that are prepared once: the base of their builders, and their reader.

A builder knows one raw layout. It lists `RawExample`s; everything else is here: images
keep their original bytes, labels become 16-bit PNG of class ids (65535 is IGNORE), and
both go, in the order of the list, into ArrayRecord files that TFDS describes. Beside
them stand

* ``classes.json``: name, class names, which of them are things;
* ``class_statistics.json``: by split ``num_examples``, ``num_pixels``,
  ``ignored_pixels``, ``class_pixels`` [C], ``class_examples`` [C] (in how many examples
  a class is), ``classes_per_example`` (histogram: entry n counts examples with n
  classes) and ``skipped`` (sentences about examples left out);
* ``presence-<split>.npz``: which classes each example holds, see `Presence`.

Nothing here needs TensorFlow; `prepare` is the parallel, resumable way to run a builder.
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

from input_pipeline import images
from input_pipeline.datasets.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE

CLASSES_FILE = "classes.json"
STATISTICS_FILE = "class_statistics.json"
IGNORE_16 = images.IGNORE_RAW[16]
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One example of a raw data set, before anything of it is read.

    Attributes:
      key: unique within the split; becomes the ``name`` of the example.
      image: image file.
      make_label: returns int32 [H W] of class ids and IGNORE, or a dict with that as
        ``label_map`` and a value for each of the builder's `extra_features`. It goes to
        other processes: a module's function, or a `functools.partial` of one.
    """

    key: str
    image: str | os.PathLike
    make_label: Callable[[], np.ndarray | dict[str, Any]]


class Presence:
    """Which classes the examples of a split hold, and on how many pixels.

    Attributes:
      offsets: int64 [N + 1]; example i owns entries ``offsets[i]:offsets[i + 1]``.
      class_ids: uint16 [E], ascending within an example.
      pixels: uint32 [E], number of pixels, at least 1.
    """

    def __init__(self, offsets: np.ndarray, class_ids: np.ndarray, pixels: np.ndarray):
        self.offsets, self.class_ids, self.pixels = offsets, class_ids, pixels

    @classmethod
    def collect(cls, counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> "Presence":
        """From (class ids, pixels) of each example."""
        lengths = [len(ids) for ids, _ in counts]
        none = [np.zeros(0, np.int64)]
        return cls(
            np.cumsum([0, *lengths], dtype=np.int64),
            np.concatenate([ids for ids, _ in counts] + none).astype(np.uint16),
            np.concatenate([pixels for _, pixels in counts] + none).astype(np.uint32),
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Presence":
        with np.load(path) as file:
            return cls(file["offsets"], file["class_ids"], file["pixels"])

    def save(self, path: str | os.PathLike) -> None:
        np.savez_compressed(
            path, offsets=self.offsets, class_ids=self.class_ids, pixels=self.pixels
        )

    def statistics(self, num_classes: int) -> dict[str, Any]:
        """The part of ``class_statistics.json`` that follows from the presence."""
        ids = self.class_ids.astype(np.int64)
        pixels = np.zeros(num_classes, np.int64)
        np.add.at(pixels, ids, self.pixels.astype(np.int64))
        return {
            "num_examples": len(self.offsets) - 1,
            "class_pixels": pixels.tolist(),
            "class_examples": np.bincount(ids, minlength=num_classes).tolist(),
            "classes_per_example": np.bincount(np.diff(self.offsets)).tolist(),
        }


@dataclasses.dataclass
class SplitRecord:
    """What is counted while a split, or a part of it, is written."""

    counts: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=list
    )
    num_pixels: int = 0
    ignored_pixels: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)

    def add(self, label_map: np.ndarray) -> None:
        ids, pixels = np.unique(label_map, return_counts=True)
        known = ids != IGNORE
        self.counts.append((ids[known], pixels[known]))
        self.num_pixels += label_map.size
        self.ignored_pixels += int(pixels[~known].sum())

    def extend(self, other: "SplitRecord") -> None:
        self.counts += other.counts
        self.num_pixels += other.num_pixels
        self.ignored_pixels += other.ignored_pixels
        self.skipped += other.skipped


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of a segmentation data set over raw files in ``manual_dir``.

    A final class gives `class_info` and `raw_splits`; variants of a data set are its
    ``BUILDER_CONFIGS``, the first of which is the default.
    """

    VERSION = tfds.core.Version("1.0.0")
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
        """TFDS features beside id, image and label; arrays of Image features are PNG."""
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

    # The rest is what `tfds build` runs, one process or Beam; see also `prepare`.

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        splits = self.raw_splits(pathlib.Path(dl_manager.manual_dir))
        self._records = {split: SplitRecord() for split in splits}
        return {s: self._generate_examples(raws, s) for s, raws in splits.items()}

    def _generate_examples(self, raws: Sequence[RawExample], split: str):
        for index, raw in enumerate(raws):
            yield index, self.encode(raw, self._records[split])

    def _download_and_prepare(self, *args, **kwargs) -> None:
        super()._download_and_prepare(*args, **kwargs)
        write_side_files(self.data_path, self.class_info(), self._records)


def write_side_files(
    directory: str | os.PathLike, info: DatasetInfo, records: Mapping[str, SplitRecord]
) -> None:
    """Writes classes, statistics and presence beside the data."""
    root = pathlib.Path(directory)
    classes = {
        "name": info.name,
        "class_names": info.class_names,
        "is_thing": info.is_thing,
    }
    statistics = {}
    for split, record in records.items():
        presence = Presence.collect(record.counts)
        presence.save(root / f"presence-{split}.npz")
        statistics[split] = presence.statistics(info.num_classes) | {
            "num_pixels": record.num_pixels,
            "ignored_pixels": record.ignored_pixels,
            "skipped": record.skipped,
        }
    write_json(root / CLASSES_FILE, classes)
    write_json(root / STATISTICS_FILE, statistics)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file that is either whole or absent, also after a kill."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


class RawLabels:
    """A table raw value -> class id; picklable, so that it may stand in a partial.

    Args:
      class_of: class id or IGNORE by raw value, 0..65535.
    """

    def __init__(self, class_of: Mapping[int, int]):
        self._class_of = dict(class_of)

    def __call__(self, raw: np.ndarray, path: str | os.PathLike) -> np.ndarray:
        """Maps integers [H W] to int32 [H W].

        Raises:
          DataError: a raw value has no class.
        """
        no_class = IGNORE - 1
        table = np.full(max(self._class_of) + 2, no_class, np.int32)
        table[list(self._class_of)] = list(self._class_of.values())
        # Whatever lies outside the table meets its last entry, which has no class.
        inside = (raw >= 0) & (raw < len(table))
        label_map = table[np.where(inside, raw, len(table) - 1)]
        if label_map.min() == no_class:
            unknown = raw[label_map == no_class]
            raise DataError(
                f"Mask {path} holds the value {unknown[0]} ({unknown.size} pixels have "
                "no class), which this data set does not have; get the file again or "
                "check that it is of the right version."
            )
        return label_map


def read_label(path: str | os.PathLike, labels: RawLabels) -> np.ndarray:
    """Reads a grey or palette PNG of raw values as int32 [H W] of class ids."""
    return labels(images.read_mask(path), path)


def encode_png(array: np.ndarray) -> bytes:
    """Grey PNG of [H W], 8 bits if the array is uint8 and else 16 bits."""
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 65535:
            raise ValueError("A PNG holds 0 to 65535.")
        array = array.astype(np.uint16)
    return cv2.imencode(".png", array)[1].tobytes()


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales [H W] to ``size`` as cv2 and with it the published scripts do."""
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_NEAREST)


def read_image_file(
    path: str | os.PathLike, label_size: tuple[int, int], max_short_side: int | None
) -> tuple[bytes, tuple[int, int]]:
    """Reads an image whole and returns bytes that `decode_image` turns into it.

    These are the original ones unless the image has to be scaled down (JPEG), is in a
    format that cv2 would show differently (PNG), or is turned by its EXIF although its
    label is not (PNG).

    Returns:
      Bytes of a JPEG or PNG file, and its (H, W).

    Raises:
      DataError: it cannot be read, or differs in size from its label.
    """
    image = images.read_image(path)
    data = pathlib.Path(path).read_bytes()
    if image.shape[:2] != label_size:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        unturned = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if unturned is None or unturned.shape[:2] != label_size:
            raise DataError(
                f"Image {path} is {image.shape[1]}x{image.shape[0]} pixels but its "
                f"label is {label_size[1]}x{label_size[0]}; get both files again."
            )
        image = unturned
    short = min(label_size)
    if max_short_side and short > max_short_side:
        height, width = (round(side / short * max_short_side) for side in label_size)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        return cv2.imencode(".jpg", bgr, quality)[1].tobytes(), (height, width)
    if not _decodes_to(data, image):
        data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data, label_size


def _decodes_to(data: bytes, image: np.ndarray) -> bool:
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        return False
    return np.array_equal(decode_image(data), image)


def decode_image(data: bytes) -> np.ndarray | None:
    """Bytes of a picture as uint8 [H W 3], RGB; None if they are damaged."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


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
        features = builder.info.features
        self._pictures = [
            name
            for name, feature in features.items()
            if isinstance(feature, tfds.features.Image) and name != "image"
        ]
        skip = tfds.decode.SkipDecoding()
        self._source = builder.as_data_source(
            split=split, decoders=dict.fromkeys(["image", *self._pictures], skip)
        )

    def __reduce__(self):
        return Prepared, (self._path, self._split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map``, ``name`` and the extra features."""
        record = dict(self._source[index])
        example = {"name": record.pop("id").decode()}
        example["image"] = decode_image(record.pop("image"))
        for name in self._pictures:
            data = np.frombuffer(record.pop(name), np.uint8)
            record[name] = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if example["image"] is None or any(record[n] is None for n in self._pictures):
            raise DataError(
                f"Example {index} ({example['name']}) of split {self._split!r} in "
                f"{self._path} is damaged; prepare the data set again."
            )
        raw = record.pop("label").astype(np.int32)
        example["label_map"] = np.where(raw == IGNORE_16, IGNORE, raw)
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
