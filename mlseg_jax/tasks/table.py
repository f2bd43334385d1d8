"""What can be trained, by name: the functions that the one training loop calls."""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.models.parts import REGION_DECODERS
from mlseg_jax.tasks import (
    instance,
    multilabel,
    panoptic,
    regions,
    semantic,
    video_instance,
    video_semantic,
)
from mlseg_jax.tasks.engines import make_engine
from mlseg_jax.tasks.evaluation import AbstractEvaluation
from mlseg_jax.tasks.multilabel_evaluation import LabelEvaluation
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation
from mlseg_jax.tasks.video_evaluation import make_clip_engine


class Task(NamedTuple):
    """How a batch becomes a loss, a split an evaluation, and a picture a result.

    Attributes:
      means: ``(model, batch, config, rng, priors)`` to losses and what else to log, as
        sums and counts (`losses.reduce.Mean`).
      make_engine: ``(config, model, parameters, mesh)`` to what predicts for pictures.
      make_evaluation: ``(config, info, with_oracle=, class_examples=)`` to what
        `evaluation.evaluate` fills.
      best_metric: the metric by which checkpoints are compared.
      find_segments: ``(picture, eval settings, info)`` to segments, where a picture has
        these beside its label map.
    """

    means: Callable
    make_engine: Callable
    make_evaluation: Callable[..., AbstractEvaluation]
    best_metric: str
    find_segments: Callable | None = None


TASKS = {
    "semantic": Task(semantic.means, make_engine, SemanticEvaluation, "mIoU"),
    "multilabel": Task(multilabel.means, LabelScorer, LabelEvaluation, "mAP"),
}

REGION_TASKS = {
    "semantic": Task(regions.means, make_engine, SemanticEvaluation, "mIoU"),
    "panoptic": Task(
        regions.means,
        make_engine,
        panoptic.PanopticEvaluation,
        "PQ",
        panoptic.find_segments,
    ),
    "instance": Task(
        regions.means,
        make_engine,
        instance.InstanceEvaluation,
        "AP",
        instance.find_segments,
    ),
    "video_semantic": Task(
        regions.means,
        make_clip_engine,
        video_semantic.VideoSemanticEvaluation,
        "mIoU",
    ),
    "video_instance": Task(
        regions.means,
        make_clip_engine,
        video_instance.VideoInstanceEvaluation,
        "AP",
        instance.find_segments,
    ),
}
"""Of models that classify regions."""


def find_task(config: ml_collections.ConfigDict) -> Task:
    """The task of a configuration.

    Raises:
      UserError: it needs regions and the decoder classifies pixels, or other keys do
        not go with it.
    """
    is_whole = config.data.augmentation == "whole"
    if is_whole != (config.task == "multilabel"):
        raise UserError(
            f"data.augmentation={config.data.augmentation} does not go with the task "
            f"{config.task!r}: classifiers of labels look at whole pictures (whole), "
            "and no others do."
        )
    if config.task == "multilabel":
        multilabel.check_config(config)
        return TASKS[config.task]
    decoder = config.model.decoder.name
    if decoder in REGION_DECODERS:
        regions.check_config(config)
        return REGION_TASKS[config.task]
    if config.task not in TASKS:
        raise UserError(
            f"The task {config.task!r} needs regions, and model.decoder.name={decoder} "
            f"classifies pixels; choose one of {', '.join(REGION_DECODERS)}, as "
            "configs/mask2former.py does."
        )
    if config.data.segments != "none":
        raise UserError(
            f"data.segments={config.data.segments} is what regions are trained to "
            f"find, and model.decoder.name={decoder} classifies pixels; set "
            "data.segments to none."
        )
    if config.selection.last_prediction_only:
        raise UserError(
            "selection.last_prediction_only is of models that predict after every "
            f"layer, and model.decoder.name={decoder} does once; set it to False."
        )
    return TASKS[config.task]
