"""What evaluations during training look at, and which weights a run ends with."""

import logging

import ml_collections

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.training.state import abstract_state

logger = logging.getLogger(__name__)


def open_validation(config: ml_collections.ConfigDict, eval_source):
    """The examples for evaluations during training: part of the training pictures where
    ``data.validation_split`` says so, else those of the evaluation at the end.
    """
    if not config.data.validation_split:
        return eval_source
    data = config.data.copy_and_resolve_references()
    data.update(eval_split=data.validation_split, eval_examples=0)
    return open_dataset(data, train=False)


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
