"""What evaluations share in which labels are selected: scores of labels, and recall."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.label_selection import Selection, select_oracle
from mlseg_jax.metrics.average_precision import LabelScores
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.engines import evaluation_policy, oracle_policy
from mlseg_jax.tasks.evaluation import AbstractEvaluation, label_details
from mlseg_jax.typing import Bool, Float, Int

LABEL_STATES = ("label_scores", "recall")
LABEL_COUNTS = (
    "examples_per_class",
    "num_examples",
    "num_selections",
    "num_selected",
)


class PictureLabels(NamedTuple):
    """What the report shows of a picture's labels.

    Attributes:
      scores: of each class.
      selected: classes that its pixels or segments were told apart among, whatever
        selected them; with several windows, the union of theirs.
    """

    scores: Float[np.ndarray, "C"]
    selected: Int[np.ndarray, "n"]


def labels_of(segmented: Segmented | SegmentedRegions) -> list[PictureLabels]:
    """Those of each picture of a batch."""
    selection = jax.device_get(segmented.selection)
    valid = selection.valid
    if valid is None:
        valid = np.ones(selection.class_ids.shape, bool)
    rows = zip(selection.class_ids, valid, strict=True)
    return [
        PictureLabels(scores, class_ids[is_label])
        for scores, (class_ids, is_label) in zip(segmented.scores, rows, strict=False)
    ]


class AbstractSelectionEvaluation(AbstractEvaluation):
    """Counts what of the labels was found, whatever they were selected for: pictures,
    or chunks of videos.
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
        self.oracle_policy = oracle_policy(config) if with_oracle else None
        self.label_scores = LabelScores.empty(num_classes)
        self.recall = LabelRecall.empty(self.policy.k)
        self.class_examples = class_examples
        self.examples_per_class = np.zeros(num_classes, np.int64)
        self.num_examples = self.num_selections = self.num_selected = 0

    def oracle_selection(self, histogram: np.ndarray) -> Selection:
        """The labels that are there, by rows ``[N C]`` of pixels."""
        padded = np.resize(
            histogram,
            (max(self.config.eval.batch_size, len(histogram)),) + histogram.shape[1:],
        )
        k = min(self.config.eval.oracle_k, self.info.num_classes)
        selection = jax.device_get(_select_oracle(padded, k))
        return jax.tree.map(lambda x: x[: len(histogram)], selection)

    def add_labels(
        self,
        scores: Float[np.ndarray, "N C"],
        histogram: Int[np.ndarray, "N C"],
        given: Selection | None,
    ) -> None:
        """Label scores of some pictures or chunks, and what is there in truth.

        ``given``: the selection where it did not follow from the scores.
        """
        count = len(histogram)
        mask = np.ones(count, bool)
        presence = histogram > 0
        self.examples_per_class += presence.sum(axis=0)
        self.label_scores = self.label_scores.merge(
            LabelScores.from_batch(scores, presence, mask)
        )
        if given is None:
            class_ids, valid = self._ranked(scores)
        else:
            class_ids, valid = given.class_ids, given.valid
        self.num_selections += count
        self.num_selected += class_ids.size if valid is None else int(valid.sum())
        self.recall = self.recall.merge(
            LabelRecall.from_batch(class_ids, valid, histogram, mask)
        )

    def _ranked(
        self, scores: Float[np.ndarray, "N C"]
    ) -> tuple[Int[np.ndarray, "N K"], Bool[np.ndarray, "N K"] | None]:
        """The labels that count as selected for the whole picture, best first, and
        which of them are valid.
        """
        if self.policy.name == "complete":
            all_classes = np.arange(self.info.num_classes, dtype=np.int32)
            return np.tile(all_classes, (len(scores), 1)), None
        selection = self.policy.select()(jnp.asarray(scores))
        return jax.device_get((selection.class_ids, selection.valid))

    def label_metrics(self) -> dict[str, float]:
        """What was found of the labels, and the size of it all.

        ``labels_selected`` belongs to the recall: as many as count as selected for the
        whole picture. Windows that select for themselves have more together
        (`PictureLabels`).
        """
        metrics = {**self.recall.compute()}
        if self.config.model.multilabel_head.name != "none":
            metrics.update(self.label_scores.compute())
        metrics["examples"] = self.num_examples
        metrics["num_classes"] = self.info.num_classes
        metrics["k"] = self.policy.k
        metrics["labels_selected"] = self.num_selected / self.num_selections
        return metrics

    def details_of_labels(self, model: MLSeg, **columns) -> dict:
        """``evaluation.json``: ``columns`` by class, and the recall by rank."""
        inverse_temperature = model.rank_norm.inverse_temperature(self.policy.k)
        precision = np.full(self.info.num_classes, np.nan)
        has_scores = self.config.model.multilabel_head.name != "none"
        if has_scores:
            precision = self.label_scores.per_class_average_precision()
        details = label_details(
            self.info,
            self.policy.k,
            self.recall,
            average_precision=precision,
            examples=self.examples_per_class,
            **columns,
        )
        details["ranked"] = has_scores and self.policy.name != "complete"
        if inverse_temperature is not None:
            details["inverse_temperature"] = np.asarray(inverse_temperature).tolist()
        details["inverse_temperature_label"] = "scale of the rank norm (1 / tau)"
        return details

    def label_arrays(self, number: int, example: dict, labels: PictureLabels) -> dict:
        """What the report shows of a picture beside its prediction: the best labels,
        twice K or down to the last one that was selected.
        """
        scores = labels.scores
        order = np.argsort(-scores, kind="stable")
        selected = np.isin(order, labels.selected)
        last = np.flatnonzero(selected).max(initial=0)
        order = order[: max(2 * self.policy.k, last + 1)]
        return {
            f"image_{number}": example["image"],
            f"truth_{number}": example["label_map"],
            f"label_ids_{number}": order,
            f"label_scores_{number}": 1.0 / (1.0 + np.exp(-scores[order])),
            f"label_selected_{number}": selected[: len(order)],
        }


def labels_there(histogram: Int[np.ndarray, "C"]) -> Int[np.ndarray, "1 n"]:
    """Classes that have a pixel, as a label map of one row: what the report compares
    label scores with where they are not of a picture's label map.
    """
    return np.flatnonzero(histogram)[None].astype(np.int32)


_select_oracle = jax.jit(select_oracle, static_argnames="k")
