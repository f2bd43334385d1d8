"""What can be trained, by name: the functions that the one training loop calls."""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.tasks import multilabel, semantic
from mlseg_jax.tasks.evaluation import AbstractEvaluation
from mlseg_jax.tasks.multilabel_evaluation import LabelEvaluation
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation, make_engine


class Task(NamedTuple):
    """How a batch becomes a loss, and a split an evaluation.

    Attributes:
      means: ``(model, batch, config, rng, priors)`` to losses and what else to log, as
        sums and counts (`losses.reduce.Mean`).
      make_engine: ``(config, model, parameters, mesh)`` to what predicts for pictures.
      make_evaluation: ``(config, info, with_oracle=, class_examples=)`` to what
        `evaluation.evaluate` fills.
      best_metric: the metric by which checkpoints are compared.
    """

    means: Callable
    make_engine: Callable
    make_evaluation: Callable[..., AbstractEvaluation]
    best_metric: str


TASKS = {
    "semantic": Task(semantic.means, make_engine, SemanticEvaluation, "mIoU"),
    "multilabel": Task(multilabel.means, LabelScorer, LabelEvaluation, "mAP"),
}


def find_task(config: ml_collections.ConfigDict) -> Task:
    """The task of a configuration."""
    return TASKS[config.task]
