"""What evaluations during training look at, and which weights a run ends with."""

import logging

import ml_collections

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.tasks.given_selection import add_given_labels
from mlseg_jax.training.state import abstract_state

logger = logging.getLogger(__name__)


def validation_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration whose evaluation split is ``data.validation_split``."""
    config = config.copy_and_resolve_references()
    config.data.update(eval_split=config.data.validation_split, eval_examples=0)
    return config


def open_validation(config: ml_collections.ConfigDict, eval_source, workdir: str):
    """The examples for evaluations during training: part of the training pictures where
    ``data.validation_split`` says so, else those of the evaluation at the end.
    """
    if not config.data.validation_split:
        if config.eval.checkpoint == "best" and config.train.eval_every:
            logger.warning(
                "eval.checkpoint=best without data.validation_split: the evaluation "
                "split %r chooses the checkpoint, so its scores at the end are too "
                "good; give a part of the training pictures, such as "
                "--config.data.train_split=train[:90%%] "
                "--config.data.validation_split=train[90%%:].",
                config.data.eval_split,
            )
        return eval_source
    config = validation_config(config)
    source = open_dataset(config.data, train=False)
    return add_given_labels(config, workdir, source, part="validation")


def scores_last_step(config: ml_collections.ConfigDict) -> bool:
    """Whether the last step is scored before a checkpoint is chosen, as others are."""
    keeps_best = config.eval.checkpoint == "best" and config.train.eval_every > 0
    return bool(config.data.validation_split) or keeps_best


def kept_state(
    config: ml_collections.ConfigDict,
    num_classes: int,
    mesh,
    checkpoints: Checkpoints,
    state,
):
    """The state of the last step, or with ``eval.checkpoint=best`` of the checkpoint
    that scored best during training.
    """
    if config.eval.checkpoint != "best" or not checkpoints.steps():
        return state
    step = checkpoints.find("best")
    if step == int(state["step"]):
        return state
    logger.info("the best checkpoint is kept: of step %d", step)
    return checkpoints.restore(step, abstract_state(config, num_classes, mesh))
