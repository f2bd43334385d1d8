"""Segments of a picture: what regions are trained to find, and what they are judged by.

Which parts of a picture are segments is ``data.segments``:

* ``classes``: all pixels of a class are one (semantic segmentation by regions);
* ``panoptic``: those of a class of stuff, and each instance of a thing;
* ``instances``: instances of things alone; they may overlap where annotations do.

Pixels of a thing that no instance claims are void, as is everything without a class. A
crowd is a segment that nobody can find: it is not trained on, and what lies on it is
not held against a prediction.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE, VOID, Bool, Int

KINDS = ("none", "classes", "panoptic", "instances")


class SegmentEntry(NamedTuple):
    """A row of the table beside a ``segment_map``.

    Attributes:
      segment_id: from 1; its value in the map.
      class_id: its class.
      is_crowd: whether it is several that nobody told apart.
      area: pixels, as the file says where there is one.
    """

    segment_id: int
    class_id: int
    is_crowd: bool
    area: int


class Instance(NamedTuple):
    """An annotated instance, whatever lies over it.

    Attributes:
      class_id: its class.
      run_lengths: COCO's ``{"size": [H, W], "counts": bytes}``, compressed.
      is_crowd: whether it is several that nobody told apart.
      area: pixels, as the file says where it does; None: count them.
    """

    class_id: int
    run_lengths: dict
    is_crowd: bool = False
    area: float | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """A picture in pieces that do not overlap, by class and then by instance.

    A piece has a code; `make_map` turns codes into numbers of any kind at once.

    Attributes:
      codes: of every pixel; 0 is void.
      num_codes: how many codes there could be.
      values: the codes of the pieces that are there, rising.
      class_ids, is_crowd, areas: of these.
      num_unclaimed: pixels of things that are void because they have no instance.
    """

    codes: Int[np.ndarray, "H W"]
    num_codes: int
    values: Int[np.ndarray, "n"]
    class_ids: Int[np.ndarray, "n"]
    is_crowd: Bool[np.ndarray, "n"]
    areas: Int[np.ndarray, "n"]
    num_unclaimed: int

    def make_map(
        self, numbers: Int[np.ndarray, "n"], empty: int
    ) -> Int[np.ndarray, "H W"]:
        """int32: the number of each pixel's piece, ``empty`` where it is void."""
        table = np.full(self.num_codes, empty, np.int32)
        table[self.values] = numbers
        return table.take(self.codes)


def find_parts(
    kind: str,
    label_map: Int[np.ndarray, "H W"],
    instance_map: Int[np.ndarray, "H W"] | None,
    is_thing: Bool[np.ndarray, "C"],
) -> Parts:
    """The segments of two maps (`datasets.instances`), by tables and not by sorting.

    Args:
      kind: of `KINDS`, but not ``none``.
      label_map: class ids and IGNORE.
      instance_map: not needed for ``classes``.
      is_thing: of each class.
    """
    span = 1 if kind == "classes" else int(instance_map.max(initial=0)) + 2
    places = label_map - IGNORE
    num_places = max(len(is_thing), int(label_map.max(initial=0)) + 1) + 1
    present = np.flatnonzero(_count(places, num_places)[1:])
    thing = np.zeros(len(present), bool) if kind == "classes" else is_thing[present]
    if kind == "instances":
        present, thing = present[thing], thing[thing]
    # Codes from 1; a thing has one for its crowd, one for no instance, and its own.
    widths = np.where(thing, span, 1)
    offsets = np.cumsum(widths) - widths + 1
    # Those of things stand negative in the table: they go on by instance.
    table = np.zeros(num_places, np.int32)
    table[present - IGNORE] = np.where(thing, -offsets, offsets)
    codes = table.take(places)
    if thing.any():
        codes = np.where(codes < 0, instance_map - IGNORE - codes, codes)
    num_codes = int(widths.sum()) + 1
    areas = _count(codes, num_codes)
    nobody = offsets[thing] + 1  # A thing's pixels without an instance.
    num_unclaimed = int(areas[nobody].sum())
    areas[0] = areas[nobody] = 0
    values = np.flatnonzero(areas)
    place = np.searchsorted(offsets, values, side="right") - 1
    is_crowd = thing[place] & (values == offsets[place])
    return Parts(
        codes,
        num_codes,
        values,
        present[place],
        is_crowd,
        areas[values],
        num_unclaimed,
    )


def _count(values: Int[np.ndarray, "H W"], size: int) -> Int[np.ndarray, "size"]:
    """How often each of 0..size-1 is there."""
    if not 0 < values.size < 2**24 or size > 2**16:
        return np.bincount(values.ravel(), minlength=size)
    # cv2 counts three times as fast, in float32: exactly up to 2**24.
    values = np.ascontiguousarray(values, np.uint16)
    counts = cv2.calcHist([values], [0], None, [size], [0, size])
    return counts.ravel().astype(np.int64)


def parts_of(kind: str, example: dict, info: DatasetInfo) -> Parts:
    """The segments of an example, or of a crop of one.

    Raises:
      DataError: it has no instances, but they are wanted.
    """
    is_thing = np.asarray(info.is_thing, bool)
    instance_map = None
    if kind != "classes":
        if "instance_map" in example:
            instance_map = example["instance_map"]
        elif is_thing.any():
            raise DataError(
                f"Data set {info.name!r} has no instances ({example['name']} has "
                f"none), but data.segments is {kind!r}; take a data set that tells "
                "them apart, or data.segments=classes.",
                kind="no_instances",
            )
        else:
            instance_map = np.zeros(example["label_map"].shape, np.int32)
    return find_parts(kind, example["label_map"], instance_map, is_thing)


def segment_table(parts: Parts) -> tuple[np.ndarray, tuple[SegmentEntry, ...]]:
    """``segment_map`` int32 [H W], ids from 1 and `VOID`, and its table."""
    ids = np.arange(1, len(parts.values) + 1)
    columns = (ids, parts.class_ids, parts.is_crowd, parts.areas)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return parts.make_map(ids, VOID), tuple(SegmentEntry(*row) for row in rows)


def instances_of(parts: Parts) -> tuple[Instance, ...]:
    """The pieces as instances; crowds too."""
    numbers = parts.make_map(np.arange(len(parts.values)), IGNORE)
    by_columns = np.asfortranarray(numbers)
    return tuple(
        Instance(
            int(parts.class_ids[i]),
            coco_mask.encode((by_columns == i).view(np.uint8)),
            bool(parts.is_crowd[i]),
        )
        for i in range(len(parts.values))
    )


def with_truth(kind: str, example: dict, info: DatasetInfo) -> dict:
    """The example with what an evaluation compares with.

    For ``panoptic`` that is ``segment_map`` and ``segments``, a tuple of
    `SegmentEntry`: the file's own where the source reads one. For ``instances`` it is
    ``instances``, a tuple of `Instance`, things alone.
    """
    if kind == "panoptic" and "segments" not in example:
        parts = parts_of(kind, example, info)
        segment_map, table = segment_table(parts)
        return example | {"segment_map": segment_map, "segments": table}
    if kind == "instances":
        return example | {"instances": true_instances(example, info)}
    return example


class Counts(NamedTuple):
    """What `count` finds in a whole picture.

    Attributes:
      num_segments: to be found, crowds aside.
      num_unclaimed: pixels of things without an instance.
    """

    num_segments: int
    num_unclaimed: int


def count(kind: str, example: dict, info: DatasetInfo) -> Counts:
    """How many segments an example has; raises DataError as `parts_of`."""
    if kind == "instances" and "instances" in example:
        found = true_instances(example, info)
        return Counts(sum(not instance.is_crowd for instance in found), 0)
    parts = parts_of(kind, example, info)
    return Counts(int(np.count_nonzero(~parts.is_crowd)), parts.num_unclaimed)


def true_instances(example: dict, info: DatasetInfo) -> tuple[Instance, ...]:
    """Instances of things in an example, overlapping where its source says so."""
    if "instances" not in example:
        return instances_of(parts_of("instances", example, info))
    return tuple(i for i in example["instances"] if info.is_thing[i.class_id])
