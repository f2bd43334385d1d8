"""Evaluation of semantic segmentation: all metrics, and what the report shows."""

import numpy as np
from etils import epath

from mlseg_jax.inference.pixel_counts import count_pixels, pixel_histogram
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.views import label_maps_of_views
from mlseg_jax.metrics.class_groups import mean_iou_by_group
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.engines import evaluation_settings
from mlseg_jax.tasks.segmentation_evaluation import (
    NUM_REPORT_EXAMPLES,
    AbstractSegmentationEvaluation,
)
from mlseg_jax.tasks.selection_evaluation import (
    LABEL_COUNTS,
    LABEL_STATES,
    labels_of,
)
from mlseg_jax.typing import Int

MAX_SHOWN_SIDE = 2048
"""Of pictures that are kept for the report, in pixels: whole, eight of 24 megapixels
with their labels would be two gigabytes.
"""


class SemanticEvaluation(AbstractSegmentationEvaluation):
    """Mean IoU, with the oracle's where asked for, and what of the labels was found."""

    states = ("mean_iou", "oracle_mean_iou", *LABEL_STATES)
    counts = LABEL_COUNTS

    def __init__(self, config, info, **more):
        super().__init__(config, info, **more)
        self.mean_iou = MeanIoU.empty(info.num_classes)
        self.oracle_mean_iou = MeanIoU.empty(info.num_classes)
        self.pictures = []

    def histogram(self, examples: list[dict]) -> Int[np.ndarray, "N C"]:
        return pixel_histogram(_label_maps(examples), self.info.num_classes)

    def seen_labels(self, examples: list[dict]) -> Int[np.ndarray, "N views C"]:
        """Of one view, the whole picture at its own size, where so configured."""
        label_maps, num_classes = _label_maps(examples), self.info.num_classes
        if self.config.eval.oracle_labels == "original":
            return pixel_histogram(label_maps, num_classes)[:, None]
        settings = evaluation_settings(self.config)
        return np.stack(
            [
                [
                    pixel_histogram(seen[None], num_classes)[0]
                    for seen in label_maps_of_views(label_map, settings)
                ]
                for label_map in label_maps
            ]
        )

    def count(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        counts = count_pixels(segmented, _label_maps(examples))
        self.mean_iou = self.mean_iou.merge(counts)
        missing = NUM_REPORT_EXAMPLES - len(self.pictures)
        if missing <= 0:
            return
        predictions = segmented.label_maps()
        for example, prediction, labels in zip(
            examples[:missing], predictions, labels_of(segmented), strict=False
        ):
            shown = _shown(example, prediction, self.info.num_classes)
            self.pictures.append((*shown, labels))

    def count_oracle(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        counts = count_pixels(segmented, _label_maps(examples))
        self.oracle_mean_iou = self.oracle_mean_iou.merge(counts)

    def compute(self) -> dict[str, int | float]:
        metrics = self.mean_iou.compute()
        if self.class_examples is not None:
            iou = self.mean_iou.per_class_iou()
            metrics.update(mean_iou_by_group(iou, self.class_examples))
        if self.oracle_policy:
            metrics["oracle_mIoU"] = self.oracle_mean_iou.compute()["mIoU"]
        return metrics | self.label_metrics()

    def details(self, model: MLSeg) -> dict:
        counts = self.mean_iou.to_host()
        pixels = counts.labelled.astype(np.float64)
        return self.details_of_labels(
            model,
            iou=self.mean_iou.per_class_iou(),
            pixel_share=pixels / max(pixels.sum(), 1.0),
            intersection=counts.intersection,
            predicted=counts.predicted,
            labelled=counts.labelled,
        )

    def save_pictures(self, path: epath.Path) -> None:
        arrays = {"names": np.asarray(self.info.class_names)}
        for i, (example, prediction, labels) in enumerate(self.pictures):
            arrays |= self.label_arrays(i, example, labels)
            arrays[f"prediction_{i}"] = prediction
            arrays[f"present_{i}"] = example["present"]
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)


def _shown(
    example: dict, prediction: np.ndarray, num_classes: int
) -> tuple[dict, np.ndarray]:
    """An example and what was predicted, every so many-th pixel of them where they are
    larger than any page shows; ``present`` are the labels of all pixels.
    """
    every = -(-max(prediction.shape) // MAX_SHOWN_SIDE)
    keys = ("image", "label_map")
    small = {key: example[key][::every, ::every].copy() for key in keys}
    pixels = pixel_histogram(_label_maps([example]), num_classes)[0]
    small["present"] = np.flatnonzero(pixels)
    return example | small, prediction[::every, ::every].astype(np.int32)


def _label_maps(examples: list[dict]) -> Int[np.ndarray, "N H W"]:
    return np.stack([example["label_map"] for example in examples])
