"""What evaluations of segmentation share: selections, label scores and recall."""

import abc
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.clips import Clips
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.label_selection import Selection, select_oracle, sort_by_score
from mlseg_jax.metrics.average_precision import LabelScores
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.engines import evaluation_policy, oracle_policy
from mlseg_jax.tasks.evaluation import (
    AbstractEvaluation,
    groups_by_clip,
    groups_by_shape,
    label_details,
)
from mlseg_jax.typing import Bool, Int

NUM_REPORT_EXAMPLES = 8
"""Pictures that are kept whole for the report."""

LABEL_STATES = ("label_scores", "recall")
LABEL_COUNTS = ("examples_per_class", "num_examples", "num_selected")


class AbstractSegmentationEvaluation(AbstractEvaluation):
    """Segments pictures, with the oracle's labels too where asked for, and counts what
    of the labels was found.

    Subclasses count what was found of pixels or segments.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        info: DatasetInfo,
        *,
        with_oracle: bool = False,
        class_examples: Int[np.ndarray, "C"] | None = None,
    ):
        """``class_examples``: training images of each class, where known."""
        num_classes = info.num_classes
        self.config = config
        self.info = info
        self.policy = evaluation_policy(config, num_classes)
        scope = config.eval.selection_scope
        self.per_clip = scope == "per_clip" and self.policy.name == "top_k"
        self.oracle_policy = oracle_policy(config) if with_oracle else None
        self.label_scores = LabelScores.empty(num_classes)
        self.recall = LabelRecall.empty(self.policy.k)
        self.class_examples = class_examples
        self.examples_per_class = np.zeros(num_classes, np.int64)
        self.num_examples = self.num_selected = 0

    @abc.abstractmethod
    def histogram(self, examples: list[dict]) -> Int[np.ndarray, "N C"]:
        """Pixels of each class that is to be found in each picture."""

    @abc.abstractmethod
    def seen_labels(self, examples: list[dict]) -> Int[np.ndarray, "N views C"]:
        """The same in each view of the pictures: what the oracle selects there."""

    @abc.abstractmethod
    def count(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        """Counts what was found in some pictures of one size."""

    @abc.abstractmethod
    def count_oracle(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        """The same where the true labels were selected."""

    def groups(self, engine: Engine, examples: Iterator[dict]) -> Iterator[list[dict]]:
        if self.per_clip:
            return groups_by_clip(examples, self.config.eval.clip_length)
        return groups_by_shape(examples, engine.batch_sizes[0])

    def add(self, engine: Engine, examples: list[dict]) -> None:
        """Segments and scores examples whose pictures have one size."""
        histogram = self.histogram(examples)
        oracle = given = None
        if self.oracle_policy or self.policy.name == "oracle":
            seen = self.seen_labels(examples)
            oracle = self._oracle(seen.reshape(-1, self.info.num_classes))
        policies = [(self.policy, None)]
        if self.policy.name == "oracle":
            policies = [(oracle_policy(self.config), oracle)]
            given = self._oracle(seen.max(axis=1))
        elif self.policy.name == "given":
            class_ids = np.stack([example["given"] for example in examples])
            given = Selection(class_ids, None, self.info.num_classes)
            policies = [(self.policy, given)]
        if self.oracle_policy:
            policies.append((self.oracle_policy, oracle))
        images = [example["image"] for example in examples]
        scope = Clips(self.policy.k, self.config.eval) if self.per_clip else None
        results = engine.segment(images, policies, scope=scope)
        for chosen, segmented in _with_rows(results[0]):
            self.count(segmented, examples[chosen])
            own = given and jax.tree.map(lambda x, rows=chosen: x[rows], given)
            self._add_labels(segmented, histogram[chosen], own)
        if self.oracle_policy:
            for chosen, segmented in _with_rows(results[1]):
                self.count_oracle(segmented, examples[chosen])
        self.num_examples += len(examples)

    def _oracle(self, histogram: np.ndarray) -> Selection:
        padded = np.resize(
            histogram,
            (max(self.config.eval.batch_size, len(histogram)),) + histogram.shape[1:],
        )
        k = min(self.config.eval.oracle_k, self.info.num_classes)
        selection = jax.device_get(_select_oracle(padded, k))
        return jax.tree.map(lambda x: x[: len(histogram)], selection)

    def _add_labels(
        self,
        segmented: Segmented | SegmentedRegions,
        histogram: np.ndarray,
        given: Selection | None,
    ) -> None:
        count = segmented.count
        mask = np.ones(count, bool)
        presence = histogram > 0
        self.examples_per_class += presence.sum(axis=0)
        self.label_scores = self.label_scores.merge(
            LabelScores.from_batch(segmented.scores, presence, mask)
        )
        if given is None:
            class_ids, valid = self.ranked(segmented)
        else:
            class_ids, valid = given.class_ids, given.valid
        self.num_selected += class_ids.size if valid is None else int(valid.sum())
        self.recall = self.recall.merge(
            LabelRecall.from_batch(class_ids, valid, histogram, mask)
        )

    def ranked(
        self, segmented: Segmented | SegmentedRegions
    ) -> tuple[Int[np.ndarray, "N K"], Bool[np.ndarray, "N K"] | None]:
        """The labels that count as selected for the whole picture, best first, and
        which of them are valid.
        """
        if self.policy.name == "complete":
            all_classes = np.arange(self.info.num_classes, dtype=np.int32)
            return np.tile(all_classes, (segmented.count, 1)), None
        scores = jnp.asarray(segmented.scores)
        if self.per_clip:  # those of the clip, in the order of the frame's own scores
            chosen = jax.tree.map(
                lambda x: jnp.asarray(x)[: segmented.count], segmented.selection
            )
            selection = sort_by_score(chosen, scores)
        else:
            selection = self.policy.select()(scores)
        return jax.device_get((selection.class_ids, selection.valid))

    def label_metrics(self) -> dict[str, float]:
        """What was found of the labels, and the size of it all."""
        metrics = {**self.recall.compute()}
        if self.config.model.multilabel_head.name != "none":
            metrics.update(self.label_scores.compute())
        metrics["examples"] = self.num_examples
        metrics["num_classes"] = self.info.num_classes
        metrics["k"] = self.policy.k
        metrics["labels_selected"] = self.num_selected / self.num_examples
        return metrics

    def details_of_labels(self, model: MLSeg, **columns) -> dict:
        """``evaluation.json``: ``columns`` by class, and the recall by rank."""
        inverse_temperature = model.rank_norm.inverse_temperature(self.policy.k)
        precision = np.full(self.info.num_classes, np.nan)
        if self.config.model.multilabel_head.name != "none":
            precision = self.label_scores.per_class_average_precision()
        details = label_details(
            self.info,
            self.policy.k,
            self.recall,
            average_precision=precision,
            examples=self.examples_per_class,
            **columns,
        )
        if inverse_temperature is not None:
            details["inverse_temperature"] = np.asarray(inverse_temperature).tolist()
        details["inverse_temperature_label"] = "scale of the rank norm (1 / tau)"
        return details

    def label_arrays(self, number: int, example: dict, scores: np.ndarray) -> dict:
        """What the report shows of a picture beside its prediction."""
        order = np.argsort(-scores, kind="stable")[: 2 * self.policy.k]
        return {
            f"image_{number}": example["image"],
            f"truth_{number}": example["label_map"],
            f"label_ids_{number}": order,
            f"label_scores_{number}": 1.0 / (1.0 + np.exp(-scores[order])),
            f"label_selected_{number}": np.arange(len(order)) < self.policy.k,
        }


def _with_rows(results: list) -> Iterator[tuple[slice, Segmented | SegmentedRegions]]:
    """Each result with the examples that it is of."""
    start = 0
    for segmented in results:
        yield slice(start, start + segmented.count), segmented
        start += segmented.count


_select_oracle = jax.jit(select_oracle, static_argnames="k")
