"""Evaluation of a classifier: how well the labels of whole pictures are ranked."""

from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.pixel_counts import pixel_histogram
from mlseg_jax.label_selection import select_top_k
from mlseg_jax.metrics.average_precision import LabelScores
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.tasks.evaluation import AbstractEvaluation, groups_of, label_details


class LabelEvaluation(AbstractEvaluation):
    """Average precision of label scores, and how many labels are among the K best."""

    states = ("label_scores", "recall")
    counts = ("class_pixels", "examples_per_class", "num_examples")

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        info: DatasetInfo,
        *,
        with_oracle: bool = False,
        class_examples=None,
    ):
        """The oracle and the classes' frequencies are of pixels: of no use here."""
        del with_oracle, class_examples
        num_classes = info.num_classes
        self.info = info
        self.k = min(config.selection.eval_k or config.selection.k, num_classes)
        self.label_scores = LabelScores.empty(num_classes)
        self.recall = LabelRecall.empty(self.k)
        self.class_pixels = np.zeros(num_classes, np.int64)
        self.examples_per_class = np.zeros(num_classes, np.int64)
        self.num_examples = 0

    def groups(
        self, engine: LabelScorer, examples: Iterator[dict]
    ) -> Iterator[list[dict]]:
        return groups_of(examples, engine.batch_size)

    def add(self, engine: LabelScorer, examples: list[dict]) -> None:
        # One by one, for their sizes differ.
        histogram = np.concatenate(
            [
                pixel_histogram(example["label_map"][None], self.info.num_classes)
                for example in examples
            ]
        )
        scores = engine([example["image"] for example in examples])
        mask, presence = np.ones(len(scores), bool), histogram > 0
        self.label_scores = self.label_scores.merge(
            LabelScores.from_batch(scores, presence, mask)
        )
        selection = jax.device_get(select_top_k(jax.numpy.asarray(scores), self.k))
        self.recall = self.recall.merge(
            LabelRecall.from_batch(selection.class_ids, None, histogram, mask)
        )
        self.class_pixels += histogram.sum(axis=0)
        self.examples_per_class += presence.sum(axis=0)
        self.num_examples += len(scores)

    def compute(self) -> dict[str, int | float]:
        return {
            **self.label_scores.compute(),
            **self.recall.compute(),
            "examples": self.num_examples,
            "num_classes": self.info.num_classes,
            "k": self.k,
        }

    def details(self, model: nnx.Module) -> dict:
        del model
        return label_details(
            self.info,
            self.k,
            self.recall,
            iou=[None] * self.info.num_classes,
            average_precision=self.label_scores.per_class_average_precision(),
            pixel_share=self.class_pixels / max(self.class_pixels.sum(), 1),
            examples=self.examples_per_class,
        )

    def save_pictures(self, path: epath.Path) -> None:
        """Nothing: no pixel was classified."""
