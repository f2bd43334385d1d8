"""Semantic segmentation of videos: classes of pixels, and whether they stand still."""

import numpy as np

from mlseg_jax.inference.clip_engine import SegmentedClip
from mlseg_jax.inference.pixel_counts import count_pixels
from mlseg_jax.metrics.class_groups import mean_iou_by_group
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.metrics.video_consistency import ConsistencyOfVideo, VideoConsistency
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.selection_evaluation import LABEL_STATES, labels_of
from mlseg_jax.tasks.video_evaluation import VIDEO_COUNTS, AbstractVideoEvaluation
from mlseg_jax.typing import Int


class VideoSemanticEvaluation(AbstractVideoEvaluation):
    """Mean IoU over all frames, and VSPW's video consistency."""

    states = ("mean_iou", "oracle_mean_iou", "consistency", *LABEL_STATES)
    counts = VIDEO_COUNTS

    def __init__(self, config, info, **more):
        super().__init__(config, info, **more)
        self.mean_iou = MeanIoU.empty(info.num_classes)
        self.oracle_mean_iou = MeanIoU.empty(info.num_classes)
        self.consistency = VideoConsistency.empty()

    def begin(self, example: dict) -> None:
        self._name = example["name"]
        self._video = ConsistencyOfVideo()

    def count(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        chosen, shown = self.strip(places), []
        names = truth.get("frame_names", [f"{place:08d}" for place in places])
        for row, (name, frame, label_map) in enumerate(
            zip(names, clip.frames, truth["label_map"], strict=True)
        ):
            self.mean_iou = self.mean_iou.merge(count_pixels(frame, label_map[None]))
            (prediction,) = frame.label_maps()
            if row in chosen:
                shown.append(prediction)
            windows = self._video.add(prediction, label_map)
            self.consistency = self.consistency.merge(windows)
            if self.on_segments is not None:
                self.on_segments({"name": self._name, "frame_name": name}, prediction)
        if chosen:
            (labels,) = labels_of(clip.frames[0])
            self.keep_strip(labels, truth, chosen, np.stack(shown))

    def count_oracle(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        for frame, label_map in zip(clip.frames, truth["label_map"], strict=True):
            counts = count_pixels(frame, label_map[None])
            self.oracle_mean_iou = self.oracle_mean_iou.merge(counts)

    def end(self, example: dict) -> None:
        del self._video

    def take_back(self, example: dict) -> None:
        if self.on_segments is not None:
            self.on_segments(example, None)

    def truth_of(self, truth: dict) -> Int[np.ndarray, "T H W"]:
        return truth["label_map"]

    def compute(self) -> dict[str, float]:
        metrics = self.mean_iou.compute() | self.consistency.compute()
        if self.class_examples is not None:
            iou = self.mean_iou.per_class_iou()
            metrics |= mean_iou_by_group(iou, self.class_examples)
        if self.oracle_policy:
            metrics["oracle_mIoU"] = self.oracle_mean_iou.compute()["mIoU"]
        return metrics | self.video_metrics()

    def details(self, model: MLSeg) -> dict:
        counts = self.mean_iou.to_host()
        return self.details_of_labels(
            model,
            iou=self.mean_iou.per_class_iou(),
            pixel_share=self.true_pixels / max(self.true_pixels.sum(), 1),
            intersection=counts.intersection,
            predicted=counts.predicted,
            labelled=counts.labelled,
        )
