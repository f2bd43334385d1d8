"""Evaluation of semantic segmentation: all metrics, and what the report shows."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.pixel_counts import count_pixels, pixel_histogram
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.views import label_maps_of_views
from mlseg_jax.label_selection import (
    Selection,
    SelectionPolicy,
    select_oracle,
)
from mlseg_jax.metrics.average_precision import LabelScores
from mlseg_jax.metrics.class_groups import mean_iou_by_group
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.evaluation import (
    AbstractEvaluation,
    groups_by_shape,
    label_details,
)
from mlseg_jax.typing import Bool, Int

NUM_REPORT_EXAMPLES = 8
"""Pictures that are kept whole for the report."""


def evaluation_policy(
    config: ml_collections.ConfigDict, num_classes: int
) -> SelectionPolicy:
    """The selection in evaluation: ``eval_name`` and ``eval_k``, else the training's.

    Raises:
      UserError: there is no such selection, or nothing to select by.
    """
    selection = config.selection
    name = selection.eval_name or selection.name
    if name == "given":
        check_given(config)
    if name == "top_k" and config.model.multilabel_head.name == "none":
        raise UserError(
            "The selection 'top_k' needs label scores, but model.multilabel_head.name "
            "is 'none'; set selection.eval_name to complete or oracle."
        )
    k = {"complete": num_classes, "oracle": config.eval.oracle_k}.get(
        name, selection.eval_k or selection.k
    )
    k = min(k, num_classes)
    return SelectionPolicy(name, k, selection.minimum_score, selection.cumulative)


def oracle_policy(config: ml_collections.ConfigDict) -> SelectionPolicy:
    """The labels that are present: by falling score where the model has learned its
    ranks in this order, else in class order.
    """
    by_score = config.selection.name == "top_k"
    return SelectionPolicy("given", config.eval.oracle_k, by_score=by_score)


def check_given(config: ml_collections.ConfigDict) -> None:
    """Whether it is said where given labels come from."""
    if not config.selection.classifier and not config.selection.scores:
        raise UserError(
            "The selection 'given' needs labels; set selection.classifier to the work "
            "directory of a trained classifier, or selection.scores to a folder that "
            "`predict --scores` wrote."
        )


def evaluation_settings(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The ``eval`` part with the size that pictures are resized to."""
    settings = ml_collections.ConfigDict(config.eval.to_dict())
    settings.base_size = config.data.base_size
    return settings


def make_engine(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    parameters: Parameters,
    mesh: Mesh | None = None,
) -> Engine:
    """The inference engine with a configuration's ``eval`` settings."""
    return Engine(model, parameters, evaluation_settings(config), mesh=mesh)


ORACLE_LABELS = ("resized", "original")


class SemanticEvaluation(AbstractEvaluation):
    """Mean IoU, with the oracle's where asked for, and what of the labels was found."""

    states = ("mean_iou", "oracle_mean_iou", "label_scores", "recall")
    counts = ("examples_per_class", "num_examples", "num_selected")

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
        self.oracle_policy = None
        if with_oracle:
            self.oracle_policy = oracle_policy(config)
        self.mean_iou = MeanIoU.empty(num_classes)
        self.oracle_mean_iou = MeanIoU.empty(num_classes)
        self.label_scores = LabelScores.empty(num_classes)
        self.recall = LabelRecall.empty(self.policy.k)
        self.class_examples = class_examples
        self.examples_per_class = np.zeros(num_classes, np.int64)
        self.num_examples = self.num_selected = 0
        self.pictures = []

    def groups(self, engine: Engine, examples: Iterator[dict]) -> Iterator[list[dict]]:
        return groups_by_shape(examples, engine.batch_sizes[0])

    def add(self, engine: Engine, examples: list[dict]) -> None:
        """Segments and scores examples whose pictures have one size."""
        label_maps = np.stack([example["label_map"] for example in examples])
        histogram = pixel_histogram(label_maps, self.info.num_classes)
        oracle = given = None
        if self.oracle_policy or self.policy.name == "oracle":
            seen = self._seen_labels(label_maps)
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
        results = engine.segment(images, policies)
        start = 0
        for segmented in results[0]:
            chosen = slice(start, start + segmented.count)
            start = chosen.stop
            counts = count_pixels(segmented, label_maps[chosen])
            self.mean_iou = self.mean_iou.merge(counts)
            own = given and jax.tree.map(lambda x, rows=chosen: x[rows], given)
            self._add_labels(segmented, histogram[chosen], own)
            self._keep_pictures(segmented, examples[chosen])
        if self.oracle_policy:
            start = 0
            for segmented in results[1]:
                chosen = slice(start, start + segmented.count)
                start = chosen.stop
                counts = count_pixels(segmented, label_maps[chosen])
                self.oracle_mean_iou = self.oracle_mean_iou.merge(counts)
        self.num_examples += len(examples)

    def _seen_labels(self, label_maps: np.ndarray) -> np.ndarray:
        """Pixels of each class in each view of pictures ``[B views C]``.

        Of one view, the whole picture at its own size, where so configured.
        """
        which = self.config.eval.get("oracle_labels", "original")
        if which not in ORACLE_LABELS:
            raise UserError(
                f"Unknown eval.oracle_labels {which!r}; choose one of "
                f"{', '.join(ORACLE_LABELS)}."
            )
        if which == "original":
            return pixel_histogram(label_maps, self.info.num_classes)[:, None]
        settings = evaluation_settings(self.config)
        return np.stack(
            [
                [
                    pixel_histogram(seen[None], self.info.num_classes)[0]
                    for seen in label_maps_of_views(label_map, settings)
                ]
                for label_map in label_maps
            ]
        )

    def _oracle(self, histogram: np.ndarray) -> Selection:
        padded = np.resize(
            histogram,
            (max(self.config.eval.batch_size, len(histogram)),) + histogram.shape[1:],
        )
        k = min(self.config.eval.oracle_k, self.info.num_classes)
        selection = jax.device_get(_select_oracle(padded, k))
        return jax.tree.map(lambda x: x[: len(histogram)], selection)

    def _add_labels(
        self, segmented: Segmented, histogram: np.ndarray, given: Selection | None
    ) -> None:
        count = segmented.count
        mask = np.ones(count, bool)
        presence = histogram > 0
        self.examples_per_class += presence.sum(axis=0)
        self.label_scores = self.label_scores.merge(
            LabelScores.from_batch(segmented.scores, presence, mask)
        )
        if given is None:
            class_ids, valid = self._ranked(segmented)
        else:
            class_ids, valid = given.class_ids, given.valid
        self.num_selected += class_ids.size if valid is None else int(valid.sum())
        self.recall = self.recall.merge(
            LabelRecall.from_batch(class_ids, valid, histogram, mask)
        )

    def _ranked(
        self, segmented: Segmented
    ) -> tuple[Int[np.ndarray, "N K"], Bool[np.ndarray, "N K"] | None]:
        """The labels that count as selected for the whole picture, best first, and
        which of them are valid.
        """
        if self.policy.name == "complete":
            all_classes = np.arange(self.info.num_classes, dtype=np.int32)
            return np.tile(all_classes, (segmented.count, 1)), None
        selection = self.policy.select()(jnp.asarray(segmented.scores))
        return jax.device_get((selection.class_ids, selection.valid))

    def _keep_pictures(self, segmented: Segmented, examples: list[dict]) -> None:
        missing = NUM_REPORT_EXAMPLES - len(self.pictures)
        if missing <= 0:
            return
        predictions = segmented.label_maps()
        for example, prediction, scores in zip(
            examples[:missing], predictions, segmented.scores, strict=False
        ):
            self.pictures.append((example, prediction.astype(np.int32), scores))

    def compute(self) -> dict[str, int | float]:
        metrics = {**self.mean_iou.compute(), **self.recall.compute()}
        if self.class_examples is not None:
            iou = self.mean_iou.per_class_iou()
            metrics.update(mean_iou_by_group(iou, self.class_examples))
        if self.config.model.multilabel_head.name != "none":
            metrics.update(self.label_scores.compute())
        if self.oracle_policy:
            metrics["oracle_mIoU"] = self.oracle_mean_iou.compute()["mIoU"]
        metrics["examples"] = self.num_examples
        metrics["num_classes"] = self.info.num_classes
        metrics["k"] = self.policy.k
        metrics["labels_selected"] = self.num_selected / self.num_examples
        return metrics

    def details(self, model: MLSeg) -> dict:
        inverse_temperature = model.rank_norm.inverse_temperature(self.policy.k)
        precision = np.full(self.info.num_classes, np.nan)
        if self.config.model.multilabel_head.name != "none":
            precision = self.label_scores.per_class_average_precision()
        counts = self.mean_iou.to_host()
        pixels = counts.labelled.astype(np.float64)
        details = label_details(
            self.info,
            self.policy.k,
            self.recall,
            iou=self.mean_iou.per_class_iou(),
            average_precision=precision,
            pixel_share=pixels / max(pixels.sum(), 1.0),
            intersection=counts.intersection,
            predicted=counts.predicted,
            labelled=counts.labelled,
            examples=self.examples_per_class,
        )
        if inverse_temperature is not None:
            details["inverse_temperature"] = np.asarray(inverse_temperature).tolist()
        details["inverse_temperature_label"] = "scale of the rank norm (1 / tau)"
        return details

    def save_pictures(self, path: epath.Path) -> None:
        arrays = {"names": np.asarray(self.info.class_names)}
        for i, (example, prediction, scores) in enumerate(self.pictures):
            order = np.argsort(-scores, kind="stable")[: 2 * self.policy.k]
            arrays |= {
                f"image_{i}": example["image"],
                f"truth_{i}": example["label_map"],
                f"prediction_{i}": prediction,
                f"label_ids_{i}": order,
                f"label_scores_{i}": 1.0 / (1.0 + np.exp(-scores[order])),
                f"label_selected_{i}": np.arange(len(order)) < self.policy.k,
            }
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)


_select_oracle = jax.jit(select_oracle, static_argnames="k")
