"""Instance segmentation: things, each with its mask and score (masks.md 5.4)."""

import ml_collections
import numpy as np
from etils import epath
from pycocotools import mask as coco_mask

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.instances import instance_segments
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.segments import Segment
from mlseg_jax.metrics.instance_precision import (
    FoundInstance,
    InstancePrecision,
    TrueInstance,
)
from mlseg_jax.metrics.missed_segments import missed_instances, no_counts, shares
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.segment_pictures import SegmentPictures
from mlseg_jax.tasks.segmentation_evaluation import AbstractSegmentationEvaluation
from mlseg_jax.tasks.selection_evaluation import (
    LABEL_COUNTS,
    LABEL_STATES,
    labels_of,
    labels_there,
)
from mlseg_jax.typing import Int


def find_segments(
    picture: SegmentedRegions, settings: ml_collections.ConfigDict, info: DatasetInfo
) -> tuple[Segment, ...]:
    """The instances of a picture; ``settings``: the ``eval`` part."""
    return instance_segments(
        picture,
        info.class_names,
        np.asarray(info.is_thing, bool),
        max_instances=settings.max_instances,
        # Of frames, tracks have a least score instead.
        score_threshold=settings.get("object_threshold", 0.0),
    )


class InstanceEvaluation(AbstractSegmentationEvaluation):
    """COCO's average precision, with the oracle's where asked for, and why instances
    were missed.
    """

    states = ("precision", "oracle_precision", *LABEL_STATES)
    counts = ("missed", "true_pixels", *LABEL_COUNTS)

    def __init__(self, config, info, **more):
        super().__init__(config, info, **more)
        self.precision = InstancePrecision.empty(info.num_classes)
        self.oracle_precision = InstancePrecision.empty(info.num_classes)
        self.missed = no_counts()
        self.true_pixels = np.zeros(info.num_classes, np.int64)
        self.pictures = SegmentPictures(info)
        self.on_segments = None

    def histogram(self, examples: list[dict]) -> Int[np.ndarray, "N C"]:
        """Of things alone; crowds count, too."""
        pixels = np.zeros((len(examples), self.info.num_classes), np.int32)
        for row, example in zip(pixels, examples, strict=True):
            for instance in example["instances"]:
                row[instance.class_id] += coco_mask.area(instance.run_lengths)
        return pixels

    def seen_labels(self, examples: list[dict]) -> Int[np.ndarray, "N views C"]:
        return self.histogram(examples)[:, None]  # There is one view.

    def count(self, segmented: SegmentedRegions, examples: list[dict]) -> None:
        (example,) = examples
        segments = find_segments(segmented, self.config.eval, self.info)
        true, found = _true(example), _found(segments)
        self.precision = self.precision.update(
            example["name"], segmented.size, true, found
        )
        selected = segmented.selected_class_ids
        self.missed += missed_instances(true, found, selected)
        pixels = self.histogram(examples)[0]
        self.true_pixels += pixels
        shown = example | {"label_map": labels_there(pixels)}
        (labels,) = labels_of(segmented)
        self.pictures.add_instances(shown, true, segments, labels)
        if self.on_segments is not None:
            self.on_segments(example, segments)

    def count_oracle(self, segmented: SegmentedRegions, examples: list[dict]) -> None:
        (example,) = examples
        segments = find_segments(segmented, self.config.eval, self.info)
        self.oracle_precision = self.oracle_precision.update(
            example["name"], segmented.size, _true(example), _found(segments)
        )

    def compute(self) -> dict[str, float]:
        metrics = self.precision.compute() | shares(self.missed)
        if self.oracle_policy:
            metrics["oracle_AP"] = self.oracle_precision.compute()["AP"]
        return metrics | self.label_metrics()

    def details(self, model: MLSeg) -> dict:
        precision = self.precision.per_class()
        return self.details_of_labels(
            model,
            **{name: precision[name] for name in ("AP", "AP50", "AP75", "AR100")},
            pixel_share=self.true_pixels / max(self.true_pixels.sum(), 1),
        )

    def save_pictures(self, path: epath.Path) -> None:
        self.pictures.save(path, self.label_arrays)


def _true(example: dict) -> tuple[TrueInstance, ...]:
    return tuple(TrueInstance(*instance) for instance in example["instances"])


def _found(segments: tuple[Segment, ...]) -> tuple[FoundInstance, ...]:
    return tuple(FoundInstance(s.class_id, s.run_lengths, s.score) for s in segments)
