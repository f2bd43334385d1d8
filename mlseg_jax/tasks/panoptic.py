"""Panoptic segmentation: every pixel of one segment, things apart (masks.md 5)."""

import ml_collections
import numpy as np
from etils import epath

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.panoptic import panoptic_segments
from mlseg_jax.inference.pixel_counts import pixel_histogram
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.segments import Panoptic
from mlseg_jax.metrics.missed_segments import missed_segments, no_counts, shares
from mlseg_jax.metrics.panoptic_quality import PanopticQuality, TrueSegments
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.segment_pictures import SegmentPictures
from mlseg_jax.tasks.segmentation_evaluation import AbstractSegmentationEvaluation
from mlseg_jax.tasks.selection_evaluation import (
    LABEL_COUNTS,
    LABEL_STATES,
    labels_of,
)
from mlseg_jax.typing import Int


def find_segments(
    picture: SegmentedRegions, settings: ml_collections.ConfigDict, info: DatasetInfo
) -> Panoptic:
    """The segments of a picture; ``settings``: the ``eval`` part."""
    return panoptic_segments(
        picture,
        info.class_names,
        np.asarray(info.is_thing, bool),
        object_threshold=settings.object_threshold,
        overlap_threshold=settings.overlap_threshold,
        inside_mask=settings.inside_mask,
    )


class PanopticEvaluation(AbstractSegmentationEvaluation):
    """Panoptic quality, with the oracle's where asked for, and why segments were
    missed.
    """

    states = ("quality", "oracle_quality", *LABEL_STATES)
    counts = ("missed", "true_pixels", *LABEL_COUNTS)

    def __init__(self, config, info, **more):
        super().__init__(config, info, **more)
        is_thing = np.asarray(info.is_thing, bool)
        self.quality = PanopticQuality.empty(is_thing)
        self.oracle_quality = PanopticQuality.empty(is_thing)
        self.missed = no_counts()
        self.true_pixels = np.zeros(info.num_classes, np.int64)
        self.pictures = SegmentPictures(info)
        self.on_segments = None

    def histogram(self, examples: list[dict]) -> Int[np.ndarray, "N C"]:
        label_maps = np.stack([example["label_map"] for example in examples])
        return pixel_histogram(label_maps, self.info.num_classes)

    def seen_labels(self, examples: list[dict]) -> Int[np.ndarray, "N views C"]:
        return self.histogram(examples)[:, None]  # There is one view.

    def count(self, segmented: SegmentedRegions, examples: list[dict]) -> None:
        (example,) = examples
        found = find_segments(segmented, self.config.eval, self.info)
        truth = _truth(example)
        prediction = found.segment_map, found.classes
        self.quality, matches = self.quality.update(truth, *prediction)
        selected = segmented.selected_class_ids
        self.missed += missed_segments(truth, matches, selected)
        self.true_pixels += self.histogram(examples)[0]
        (labels,) = labels_of(segmented)
        self.pictures.add_panoptic(example, truth, found, matches, labels)
        if self.on_segments is not None:
            self.on_segments(example, found)

    def count_oracle(self, segmented: SegmentedRegions, examples: list[dict]) -> None:
        (example,) = examples
        found = find_segments(segmented, self.config.eval, self.info)
        self.oracle_quality, _ = self.oracle_quality.update(
            _truth(example), found.segment_map, found.classes
        )

    def compute(self) -> dict[str, float]:
        metrics = self.quality.compute() | shares(self.missed)
        if self.oracle_policy:
            metrics["oracle_PQ"] = self.oracle_quality.compute()["PQ"]
        return metrics | self.label_metrics()

    def details(self, model: MLSeg) -> dict:
        quality = self.quality.per_class()
        return self.details_of_labels(
            model,
            **quality,
            is_thing=self.quality.is_thing,
            true_positives=self.quality.true_positives,
            false_positives=self.quality.false_positives,
            false_negatives=self.quality.false_negatives,
            pixel_share=self.true_pixels / max(self.true_pixels.sum(), 1),
        )

    def save_pictures(self, path: epath.Path) -> None:
        self.pictures.save(path, self.label_arrays)


def _truth(example: dict) -> TrueSegments:
    segments = example["segments"]
    return TrueSegments(
        example["segment_map"],
        {s.segment_id: s.class_id for s in segments},
        {s.segment_id for s in segments if s.is_crowd},
        {s.segment_id: s.area for s in segments},
    )
