"""Which classes the examples of a split hold: counted once, when it is prepared.

Two files stand beside the data:

* ``class_statistics.json``: by split ``num_examples``, ``num_pixels``,
  ``ignored_pixels``, ``class_pixels`` [C], ``class_examples`` [C] (in how many examples
  a class is), ``classes_per_example`` (histogram: entry n counts examples with n
  classes) and ``skipped`` (sentences about examples left out);
* ``presence-<split>.npz``: the classes of each example, see `Presence`.

``classes.json`` has the name, the class names and which of them are things.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.info import DatasetInfo
from mlseg_jax.typing import IGNORE

CLASSES_FILE = "classes.json"
STATISTICS_FILE = "class_statistics.json"


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

    def part(self, chosen: range) -> "Presence":
        """Of some neighbouring examples only."""
        offsets = self.offsets[chosen.start : chosen.stop + 1]
        entries = slice(offsets[0], offsets[-1])
        return Presence(
            offsets - offsets[0], self.class_ids[entries], self.pixels[entries]
        )

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
        # Shifted, so that IGNORE is counted first.
        pixels = np.bincount(label_map.ravel() - IGNORE)
        ids = np.flatnonzero(pixels[1:])
        self.counts.append((ids, pixels[1:][ids]))
        self.num_pixels += label_map.size
        self.ignored_pixels += int(pixels[0])

    def extend(self, other: "SplitRecord") -> None:
        self.counts += other.counts
        self.num_pixels += other.num_pixels
        self.ignored_pixels += other.ignored_pixels
        self.skipped += other.skipped


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
