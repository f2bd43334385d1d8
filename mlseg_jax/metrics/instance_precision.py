"""Average precision of instances and tracks, by pycocotools, without files of results.

Of a picture only the run lengths of its masks are kept, a few hundred bytes each, as
precision ranks the instances of all pictures against each other.
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping

import flax
import numpy as np
from clu import metrics
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mlseg_jax.metrics.mean_iou import mean_where
from mlseg_jax.metrics.panoptic_quality import TrueSegments
from mlseg_jax.typing import Bool, Float

MAX_DETECTIONS = (1, 10, 100)
"""Instances of a class and picture that count, at most: COCO's three numbers."""

AREAS = ("", "_small", "_medium", "_large")
"""All instances; those under 32 x 32 pixels, up to 96 x 96, and larger."""

SIDES = {False: (32, 96), True: (128, 256)}
"""The sides of these squares; and those of YouTubeVIS, by whether it is of videos."""


@dataclasses.dataclass(frozen=True)
class TrueInstance:
    """An instance that is to be found.

    Attributes:
      class_id: its class.
      run_lengths: COCO's ``{"size": [H, W], "counts": bytes or str}``.
      is_crowd: whether it is several that nobody told apart.
      area: pixels, where a file says so; those of the run lengths by default.
    """

    class_id: int
    run_lengths: Mapping
    is_crowd: bool = False
    area: float | None = None


@dataclasses.dataclass(frozen=True)
class FoundInstance:
    """A predicted instance; see `TrueInstance`."""

    class_id: int
    run_lengths: Mapping
    score: float
    area: float | None = None


def true_instances(
    truth: TrueSegments, is_thing: Bool[np.ndarray, "C"]
) -> tuple[TrueInstance, ...]:
    """The things among the segments of a picture."""
    return tuple(
        TrueInstance(
            class_id,
            coco_mask.encode(np.asfortranarray(truth.segment_map == number, np.uint8)),
            number in truth.crowds,
            None if truth.areas is None else float(truth.areas[number]),
        )
        for number, class_id in truth.classes.items()
        if is_thing[class_id]
    )


@dataclasses.dataclass(frozen=True)
class _Picture:
    """What is kept of a picture."""

    size: tuple[int, int]
    true: tuple[TrueInstance, ...]
    found: tuple[FoundInstance, ...]


@flax.struct.dataclass
class InstancePrecision(metrics.Metric):
    """True and found instances of all pictures, as run lengths on the host.

    Attributes:
      pictures: by name of the picture; pictures without any instance are left out.
      num_classes: C.
      is_video: whether pictures are videos (`metrics.tracks`) and the rules those of
        YouTubeVIS: larger areas, and crowds have the IoU of any other.

    Source: ``reference/masks.md`` sections 5.4 and 6.4, ``reference/method.md`` section
    13.5.
    """

    # As for MeanIoU: leaves may be anything while JAX transforms the state.
    __no_type_check__ = True

    pictures: dict[str, _Picture] = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)
    is_video: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def empty(cls, num_classes: int, *, is_video: bool = False) -> "InstancePrecision":
        """No pictures yet."""
        return cls({}, num_classes, is_video)

    def update(
        self,
        name: str,
        size: tuple[int, int],
        true: tuple[TrueInstance, ...],
        found: tuple[FoundInstance, ...],
    ) -> "InstancePrecision":
        """The state with one more picture.

        Args:
          name: unique among the pictures; their order by name breaks ties of scores.
          size: height and width.
          true, found: instances in the picture.

        Raises:
          ValueError: there is a picture of this name.
        """
        picture = {name: _Picture(size, true, found)} if true or found else {}
        return self.merge(self.replace(pictures=picture))

    def to_host(self) -> "InstancePrecision":
        """Itself: run lengths are on the host already."""
        return self

    def merge(self, other: "InstancePrecision") -> "InstancePrecision":
        """The pictures of both; copies no run lengths.

        Raises:
          ValueError: they have different numbers of classes, or a picture of one name.
        """
        if self.num_classes != other.num_classes:
            raise ValueError(
                f"Cannot merge instances of {self.num_classes} and "
                f"{other.num_classes} classes: use the same data set for both."
            )
        if twice := self.pictures.keys() & other.pictures.keys():
            raise ValueError(
                f"The picture {min(twice)!r} was evaluated twice; give each its own "
                "name, and each process its own pictures."
            )
        return self.replace(pictures=self.pictures | other.pictures)

    def per_class(self) -> dict[str, Float[np.ndarray, "C"]]:
        """COCO's numbers of each class; NaN where it has no true instance.

        ``AP`` (mean over IoU thresholds 0.5, 0.55, ..., 0.95), ``AP50``, ``AP75``,
        ``AP_small``, ``AP_medium``, ``AP_large``, and average recall ``AR1``, ``AR10``,
        ``AR100``, ``AR_small``, ``AR_medium``, ``AR_large``.
        """
        table: dict[str, np.ndarray] = {}
        for class_id, names in enumerate(self._pictures_by_class()):
            # A class's numbers are those of the pictures that it occurs in.
            for key, value in self._evaluate(class_id, names).items() if names else ():
                row = table.setdefault(key, np.full(self.num_classes, np.nan))
                row[class_id] = value
        if not table:
            table = {key: np.full(self.num_classes, np.nan) for key in _summary(None)}
        return table

    def compute(self) -> dict[str, float]:
        """The means of `per_class` over classes, NaN without a true instance."""
        return {
            key: mean_where(values, ~np.isnan(values))
            for key, values in self.per_class().items()
        }

    def _pictures_by_class(self) -> list[list[str]]:
        names = [[] for _ in range(self.num_classes)]
        for name in sorted(self.pictures):
            picture = self.pictures[name]
            for class_id in {i.class_id for i in picture.true + picture.found}:
                names[class_id].append(name)
        return names

    def _evaluate(self, class_id: int, names: list[str]) -> dict[str, float]:
        """COCO's evaluation of one class on some pictures."""
        images, true, found = [], [], []
        for number, name in enumerate(names, start=1):
            picture = self.pictures[name]
            height, width = picture.size
            images.append({"id": number, "height": height, "width": width})
            for kind, instances in ((true, picture.true), (found, picture.found)):
                kind += [
                    _annotation(instance, number, len(kind) + i)
                    for i, instance in enumerate(
                        (x for x in instances if x.class_id == class_id), start=1
                    )
                ]
        with contextlib.redirect_stdout(io.StringIO()):
            make = _TrackEvaluator if self.is_video else COCOeval
            evaluator = make(_coco(images, true), _coco(images, found), "segm")
            evaluator.params.maxDets = list(MAX_DETECTIONS)
            low, high = (side**2 for side in SIDES[self.is_video])
            evaluator.params.areaRng = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
            evaluator.evaluate()
            evaluator.accumulate()
        return _summary(evaluator)


class _TrackEvaluator(COCOeval):
    """As of YouTubeVIS, whose IoU knows no crowds."""

    def computeIoU(self, image, category):  # noqa: N802 (the library's name)
        true, found = self._gts[image, category], self._dts[image, category]
        if not true or not found:
            return []
        order = np.argsort([-each["score"] for each in found], kind="mergesort")
        found = [found[i] for i in order][: self.params.maxDets[-1]]
        runs = [[each["segmentation"] for each in some] for some in (found, true)]
        if not isinstance(runs[0][0]["counts"], tuple):
            return coco_mask.iou(*runs, [0] * len(true))
        return _iou_of_parts(*([each["counts"] for each in some] for some in runs))


def _iou_of_parts(found: list[tuple], true: list[tuple]) -> Float[np.ndarray, "n m"]:
    """IoU of masks in parts, each with the same ones (`metrics.tracks.in_parts`)."""
    common, total = 0.0, 0.0
    for part in range(len(found[0])):
        masks = [[each[part] for each in some] for some in (found, true)]
        areas = [coco_mask.area(each).astype(np.float64) for each in masks]
        both = areas[0][:, None] + areas[1]
        iou = coco_mask.iou(*masks, [0] * len(true))
        common = common + np.rint(iou * both / (1.0 + iou))  # exact: whole pixels
        total = total + both
    return common / np.maximum(total - common, 1.0)


def _annotation(instance, picture: int, number: int) -> dict:
    """An entry as in COCO's JSON; ids start at 1, as 0 means "no match" in COCOeval."""
    found = isinstance(instance, FoundInstance)
    area = instance.area
    return {
        "id": number,
        "image_id": picture,
        "category_id": 1,
        "segmentation": dict(instance.run_lengths),
        "area": float(coco_mask.area(_as_bytes(instance.run_lengths)))
        if area is None
        else area,
        "iscrowd": 0 if found else int(instance.is_crowd),
    } | ({"score": instance.score} if found else {})


def _as_bytes(run_lengths: Mapping) -> dict:
    counts = run_lengths["counts"]
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return {"size": list(run_lengths["size"]), "counts": counts}


def _coco(images: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    return coco


def _summary(evaluator: COCOeval | None) -> dict[str, float]:
    """COCO's numbers of one class; all NaN without an evaluator."""
    shape = (10, 101, 1, len(AREAS), len(MAX_DETECTIONS))
    precision, recall = np.full(shape, -1.0), np.full((10, *shape[2:]), -1.0)
    if evaluator is not None:
        precision, recall = (evaluator.eval[key] for key in ("precision", "recall"))

    def mean(values: np.ndarray) -> float:
        values = values.ravel()
        return mean_where(values, values > -1)

    result = {
        "AP": mean(precision[:, :, 0, 0, -1]),
        "AP50": mean(precision[0, :, 0, 0, -1]),
        "AP75": mean(precision[5, :, 0, 0, -1]),
    }
    for i, area in enumerate(AREAS[1:], start=1):
        result[f"AP{area}"] = mean(precision[:, :, 0, i, -1])
    for i, count in enumerate(MAX_DETECTIONS):
        result[f"AR{count}"] = mean(recall[:, 0, 0, i])
    for i, area in enumerate(AREAS[1:], start=1):
        result[f"AR{area}"] = mean(recall[:, 0, i, -1])
    return result
