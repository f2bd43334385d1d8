"""Evaluation of a classifier: how well the labels of whole pictures are ranked."""

import itertools
import time

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from input_pipeline.datasets.bad_examples import Skips, drop_bad
from input_pipeline.info import DatasetInfo
from input_pipeline.pipeline import evaluation_examples
from mlseg_jax.distributed.processes import gather
from mlseg_jax.errors import UserError
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.pixel_counts import pixel_histogram
from mlseg_jax.label_selection import select_top_k
from mlseg_jax.metrics.average_precision import LabelScores
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.typing import Float, Int


class LabelEvaluation:
    """Everything one evaluation accumulates; made anew for each."""

    def __init__(self, config: ml_collections.ConfigDict, info: DatasetInfo):
        num_classes = info.num_classes
        self.info = info
        self.k = min(config.selection.eval_k or config.selection.k, num_classes)
        self.label_scores = LabelScores.empty(num_classes)
        self.recall = LabelRecall.empty(self.k)
        self.class_pixels = np.zeros(num_classes, np.int64)
        self.examples_per_class = np.zeros(num_classes, np.int64)
        self.num_examples = 0

    def add(
        self, scores: Float[np.ndarray, "N C"], histogram: Int[np.ndarray, "N C"]
    ) -> None:
        """``histogram``: the pixels of each class, on the whole label map."""
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

    def add_other_processes(self) -> None:
        """Adds up what all processes have counted."""
        states = ("label_scores", "recall")
        counts = ("class_pixels", "examples_per_class", "num_examples")
        own = {name: getattr(self, name).to_host() for name in states}
        own |= {name: getattr(self, name) for name in counts}
        first, *others = gather(own)
        for other in others:
            first |= {name: first[name].merge(other[name]) for name in states}
            first |= {name: first[name] + other[name] for name in counts}
        for name, value in first.items():
            setattr(self, name, value)

    def compute(self) -> dict[str, float]:
        """The flat metrics of ``metrics.json``."""
        return {
            **self.label_scores.compute(),
            **self.recall.compute(),
            "examples": self.num_examples,
            "num_classes": self.info.num_classes,
            "k": self.k,
        }

    def details(self, model: nnx.Module) -> dict:
        """What ``evaluation.json`` holds: values by class and by rank."""
        del model
        precision = self.label_scores.per_class_average_precision()
        shares = self.class_pixels / max(self.class_pixels.sum(), 1)
        curve = self.recall.curve()
        return {
            "num_classes": self.info.num_classes,
            "k": self.k,
            "classes": [
                {
                    "name": name,
                    "iou": None,
                    "average_precision": float(precision[i]),
                    "pixel_share": float(shares[i]),
                    "examples": int(self.examples_per_class[i]),
                }
                for i, name in enumerate(self.info.class_names)
            ],
            "recall_at_k": {
                "k": np.asarray(curve["k"]).tolist(),
                "pixel": np.asarray(curve["pixel_recall"]).tolist(),
                "image": np.asarray(curve["image_recall"]).tolist(),
            },
            "classes_per_image": np.asarray(self.recall.classes_per_image).tolist(),
            "inverse_temperature": None,
            "inverse_temperature_label": "",
        }

    def save_pictures(self, path: epath.Path) -> None:
        """Nothing: no pixel was classified."""


def evaluate(
    engine: LabelScorer,
    source,
    config: ml_collections.ConfigDict,
    *,
    with_oracle: bool,
    class_examples: Int[np.ndarray, "C"] | None = None,
    on_progress=lambda done, total: None,
) -> tuple[LabelEvaluation, dict[str, float]]:
    """One pass over ``source``; as `semantic_evaluation.evaluate`, which
    reads what this cannot use: the oracle and the classes' frequencies.
    """
    del with_oracle, class_examples
    evaluation = LabelEvaluation(config, source.info)
    skips = Skips()
    examples = evaluation_examples(
        drop_bad(source, config.data.on_bad_example, skips),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
    )
    begin = time.perf_counter()
    while group := list(itertools.islice(examples, engine.batch_size)):
        histogram = np.concatenate(
            [
                pixel_histogram(example["label_map"][None], source.info.num_classes)
                for example in group
            ]
        )
        evaluation.add(engine([example["image"] for example in group]), histogram)
        done = evaluation.num_examples * jax.process_count()
        on_progress(min(done, len(source)), len(source))
    evaluation.add_other_processes()
    seconds = time.perf_counter() - begin
    skips.log("evaluation")
    if not evaluation.num_examples:
        raise UserError("No example of the evaluation split can be read; run doctor.")
    metrics = evaluation.compute()
    metrics["seconds"] = seconds
    metrics["images_per_second"] = evaluation.num_examples / seconds
    return evaluation, metrics
