"""Panoptic quality: which segments were found, and how well they fit.

Rules and names are panopticapi's (``reference/masks.md`` section 5.2). A state is four
vectors over classes; nothing of a picture is kept.
"""

import dataclasses
from collections.abc import Collection, Mapping

import flax
import numpy as np
from clu import metrics

from mlseg_jax.metrics.mean_iou import mean_where
from mlseg_jax.typing import IGNORE, VOID, Bool, Float, Int

PIXELS_AT_A_TIME = 2**21


@dataclasses.dataclass(frozen=True)
class TrueSegments:
    """What is to be found in a picture.

    Attributes:
      segment_map: segment of every pixel; `VOID` where nothing is known.
      classes: class id by segment id.
      crowds: ids of segments whose members nobody told apart.
      areas: pixels by segment id where a file says so, as panopticapi reads them;
        where they are fewer than in the map, or without, those are counted.
    """

    segment_map: Int[np.ndarray, "H W"]
    classes: Mapping[int, int]
    crowds: Collection[int] = ()
    areas: Mapping[int, int] | None = None

    @classmethod
    def from_maps(
        cls,
        label_map: Int[np.ndarray, "H W"],
        instance_map: Int[np.ndarray, "H W"],
        is_thing: Bool[np.ndarray, "C"],
    ) -> "TrueSegments":
        """Segments of maps as data sets give them (``input_pipeline``'s instances).

        A class of stuff is one segment. Pixels of a thing without an instance are void,
        those of a crowd (instance `IGNORE`) one segment of the class.
        """
        thing = is_thing[np.maximum(label_map, 0)]
        void = (label_map == IGNORE) | (thing & (instance_map == 0))
        number = np.where(thing, instance_map, 0).astype(np.int64)
        span = int(instance_map.max(initial=0)) + 2  # with IGNORE and 0
        code = np.where(void, -1, label_map.astype(np.int64) * span + number + 1)
        codes, index = np.unique(code, return_inverse=True)
        first = int(bool(len(codes)) and codes[0] == -1)
        segment_map = (index.reshape(label_map.shape) + 1 - first).astype(np.int32)
        found = dict(enumerate(codes[first:].tolist(), start=1))
        return cls(
            segment_map,
            {segment: code // span for segment, code in found.items()},
            {s for s, code in found.items() if code % span == IGNORE + 1},
        )


@dataclasses.dataclass(frozen=True)
class SegmentMatches:
    """Which segments of one picture were found.

    Attributes:
      matched: true segment, predicted segment and their IoU, above 0.5.
      missed: true segments without a match, crowds aside.
      confused: those of them that a segment of another class overlaps by an IoU above
        0.5.
      false: predicted segments without a match.
      ignored: predicted segments that lie on void or on a crowd of their class; they
        count nowhere.
    """

    matched: tuple[tuple[int, int, float], ...]
    missed: tuple[int, ...]
    confused: tuple[int, ...]
    false: tuple[int, ...]
    ignored: tuple[int, ...]


def match_segments(
    truth: TrueSegments,
    segment_map: Int[np.ndarray, "H W"],
    classes: Mapping[int, int],
) -> SegmentMatches:
    """Pairs true and predicted segments of one class whose IoU is above 0.5.

    No two pairs can share a segment then, whatever their classes, so there is nothing
    to assign. Void pixels count in no union.

    Args:
      truth: what is to be found.
      segment_map: predicted segment of every pixel, `VOID` for none.
      classes: class id by predicted segment id.

    Raises:
      ValueError: the maps have different sizes or hold a segment without a class, or a
        predicted segment has no pixel.
    """
    true_ids, ids = [VOID, *truth.classes], [VOID, *classes]
    overlap = _overlaps(truth.segment_map, true_ids, segment_map, ids)
    areas, counted = overlap.sum(axis=0), overlap.sum(axis=1)
    if (areas[1:] == 0).any():
        empty = ids[1 + int(np.argmin(areas[1:]))]
        raise ValueError(
            f"The predicted segment {empty} has a class but no pixel; leave it out."
        )
    true_areas = counted
    if truth.areas is not None:
        # A segment has the pixels that are seen of it: by a smaller area, as of a file
        # that says 0, panopticapi's IoU is above 1 or infinite, and two predictions can
        # match one segment. A larger area counts as it does there.
        said = [0, *(truth.areas[i] for i in truth.classes)]
        true_areas = np.maximum(counted, said)
    crowd = np.isin(true_ids, list(truth.crowds))
    true_class = np.asarray([-1, *truth.classes.values()])
    own_class = np.asarray([-2, *classes.values()])
    pairs = _pairs(overlap, crowd, true_areas, areas)
    same = true_class[pairs[0]] == own_class[pairs[1]]
    rows, columns, iou = (x[same] for x in pairs)
    # Of several crowds of a class the last one counts, as in panopticapi.
    crowd_of = {true_class[i]: i for i in np.flatnonzero(crowd)}
    unmatched = np.setdiff1d(np.arange(1, len(ids)), columns)
    crowd_rows = [crowd_of.get(c) for c in own_class[unmatched]]
    lost = overlap[0, unmatched] + [
        0 if i is None else overlap[i, j]
        for i, j in zip(crowd_rows, unmatched, strict=True)
    ]
    ignored = lost / areas[unmatched] > 0.5
    missed = np.setdiff1d(np.flatnonzero(~crowd)[1:], rows)

    def take(numbers: list[int], index: np.ndarray) -> tuple[int, ...]:
        return tuple(int(numbers[i]) for i in index)

    return SegmentMatches(
        tuple(
            (int(true_ids[i]), int(ids[j]), float(x))
            for i, j, x in zip(rows, columns, iou, strict=True)
        ),
        take(true_ids, missed),
        take(true_ids, pairs[0][~same]),
        take(ids, unmatched[~ignored]),
        take(ids, unmatched[ignored]),
    )


def _pairs(overlap, crowd, true_areas, areas) -> tuple[np.ndarray, ...]:
    """Rows and columns of the pairs that overlap by an IoU above 0.5, and that IoU."""
    common = (overlap > 0) & ~crowd[:, None]
    common[0] = common[:, 0] = False  # void
    rows, columns = np.nonzero(common)
    inter = overlap[rows, columns]
    union = areas[columns] + true_areas[rows] - inter - overlap[0, columns]
    iou = inter / union
    good = iou > 0.5
    return rows[good], columns[good], iou[good]


def _overlaps(true_map, true_ids, segment_map, ids) -> np.ndarray:
    """Common pixels of all pairs of segments, int64, in the order of the ids."""
    if true_map.shape != segment_map.shape:
        raise ValueError(
            f"The true segments have {true_map.shape} pixels but the predicted ones "
            f"{segment_map.shape}; bring both to one size."
        )
    counts = np.zeros(len(true_ids) * len(ids), np.int64)
    rows = max(1, PIXELS_AT_A_TIME // max(true_map.shape[1], 1))
    for start in range(0, len(true_map), rows):
        part = slice(start, start + rows)
        pair = _positions(true_map[part], true_ids, "true") * len(ids)
        pair += _positions(segment_map[part], ids, "predicted")
        counts += np.bincount(pair.ravel(), minlength=counts.size)
    return counts.reshape(len(true_ids), len(ids))


def _positions(segment_map, ids, whose: str) -> np.ndarray:
    """Where each pixel's segment stands among ``ids``, which begin with `VOID`."""
    order = np.argsort(ids, kind="stable")
    ordered = np.asarray(ids, np.int64)[order]
    place = np.searchsorted(ordered, segment_map).clip(max=len(ids) - 1)
    if (unknown := ordered[place] != segment_map).any():
        raise ValueError(
            f"The {whose} segment {segment_map[unknown][0]} has pixels but no class; "
            "list it, or make its pixels void (0)."
        )
    return order[place]


@flax.struct.dataclass
class PanopticQuality(metrics.Metric):
    """Segments found, missed and made up, per class, on the host.

    Attributes:
      iou_sum: sum of the IoU of matched segments.
      true_positives, false_positives, false_negatives: numbers of segments.
      is_thing: which classes are things.

    Source: ``reference/masks.md`` section 5.2 (panopticapi ``evaluation.py``).
    """

    # As for MeanIoU: leaves may be anything while JAX transforms the state.
    __no_type_check__ = True

    iou_sum: Float[np.ndarray, "C"]
    true_positives: Int[np.ndarray, "C"]
    false_positives: Int[np.ndarray, "C"]
    false_negatives: Int[np.ndarray, "C"]
    is_thing: Bool[np.ndarray, "C"]

    @classmethod
    def empty(cls, is_thing: Bool[np.ndarray, "C"]) -> "PanopticQuality":
        """No segments yet."""
        num_classes = len(is_thing)
        counts = [np.zeros(num_classes, np.int64) for _ in range(3)]
        return cls(np.zeros(num_classes), *counts, np.asarray(is_thing, bool))

    def update(
        self,
        truth: TrueSegments,
        segment_map: Int[np.ndarray, "H W"],
        classes: Mapping[int, int],
    ) -> tuple["PanopticQuality", SegmentMatches]:
        """The state with one more picture, and what was found in it.

        Arguments and errors are those of `match_segments`.
        """
        matches = match_segments(truth, segment_map, classes)
        size = len(self.is_thing)
        hits = [truth.classes[i] for i, _, _ in matches.matched]

        def count(class_ids) -> np.ndarray:
            return np.bincount(np.asarray(class_ids, np.int64), minlength=size)

        state = PanopticQuality(
            np.bincount(
                np.asarray(hits, np.int64),
                weights=[iou for *_, iou in matches.matched],
                minlength=size,
            ),
            count(hits),
            count([classes[i] for i in matches.false]),
            count([truth.classes[i] for i in matches.missed]),
            self.is_thing,
        )
        return self.merge(state), matches

    def to_host(self) -> "PanopticQuality":
        """Itself: the state is on the host already."""
        return self

    def merge(self, other: "PanopticQuality") -> "PanopticQuality":
        """Adds the counts.

        Raises:
          ValueError: the two are of different classes.
        """
        if not np.array_equal(self.is_thing, other.is_thing):
            raise ValueError(
                "Cannot merge panoptic qualities of different classes: use the same "
                "data set for both."
            )
        return PanopticQuality(
            self.iou_sum + other.iou_sum,
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.is_thing,
        )

    def per_class(self) -> dict[str, Float[np.ndarray, "C"]]:
        """``PQ``, ``SQ``, ``RQ`` of each class; NaN where it has no segment at all."""
        wrong = self.false_positives + self.false_negatives
        weight = self.true_positives + 0.5 * wrong
        nan = np.full(len(self.is_thing), np.nan)
        known = weight > 0

        def over(numerator, denominator):
            return np.divide(numerator, denominator, out=nan.copy(), where=known)

        return {
            "PQ": over(self.iou_sum, weight),
            "SQ": over(self.iou_sum, np.maximum(self.true_positives, 1)),
            "RQ": over(self.true_positives, weight),
        }

    def compute(self) -> dict[str, float]:
        """``PQ``, ``SQ``, ``RQ`` as fractions of one, and the same of things and stuff.

        Means over the classes that have a true or a predicted segment, crowds and
        ignored segments aside; NaN where there is none.
        """
        result = {}
        groups = {"": True, "_things": self.is_thing, "_stuff": ~self.is_thing}
        for group, members in groups.items():
            for name, values in self.per_class().items():
                result[name + group] = mean_where(values, ~np.isnan(values) & members)
        return result
