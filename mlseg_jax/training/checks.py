"""What a configuration and its data must agree on before training starts."""

import logging

import ml_collections

from input_pipeline.findings import differing_classes
from mlseg_jax.errors import UserError
from mlseg_jax.tasks.engines import check_given, evaluation_policy

logger = logging.getLogger(__name__)


STILL = " The backbone, which warms up after that, does not move at all."


def warmup_note(config: ml_collections.ConfigDict) -> str:
    """What is odd about a warm-up that training does not get past; "" where it does."""
    optimizer, steps = config.optimizer, config.train.steps
    if not _warms_up(config):
        return ""
    if optimizer.warmup_steps < steps:
        return _backbone_note(config)
    reached = optimizer.learning_rate * max(steps - 1, 0) / optimizer.warmup_steps
    return (
        f"optimizer.warmup_steps is {optimizer.warmup_steps}, but training has "
        f"{steps} steps: the learning rate gets to {reached:.2g} of "
        f"{optimizer.learning_rate:.2g}; lower it, or raise train.steps."
        f"{STILL if optimizer.backbone_warmup_steps else ''}"
    )


def _backbone_note(config: ml_collections.ConfigDict) -> str:
    """The backbone's warm-up begins where the one of the others ends."""
    optimizer, steps = config.optimizer, config.train.steps
    still, warm = optimizer.warmup_steps, optimizer.backbone_warmup_steps
    if still + warm < steps or not warm:
        return ""
    reached = optimizer.learning_rate * max(steps - 1 - still, 0) / warm
    return (
        f"optimizer.backbone_warmup_steps is {warm}, after {still} steps in which the "
        f"backbone stands still, but training has {steps} steps: the backbone's "
        f"learning rate gets to {reached:.2g} of {optimizer.learning_rate:.2g}; lower "
        f"both warm-ups, or raise train.steps."
    )


def _warms_up(config: ml_collections.ConfigDict) -> bool:
    optimizer = config.optimizer
    return optimizer.warmup_steps > 0 and optimizer.schedule != "one_cycle"


def check_labels(config, train_info, eval_info) -> None:
    """Raises `UserError` for what training would only come to, or never say, and warns
    of what is odd.
    """
    train = config.train
    if config.eval.checkpoint == "best" and train.eval_every and not train.keep_best:
        raise UserError(
            "eval.checkpoint=best wants the checkpoint that scored best, but "
            "train.keep_best is 0, so that it is deleted; set train.keep_best to 1, or "
            "eval.checkpoint to latest."
        )
    if train_info.class_names != eval_info.class_names:
        raise UserError(
            differing_classes(
                (config.data.train_split, config.data.eval_split), train_info, eval_info
            )
        )
    if any("backbone" in x for x in config.optimizer.frozen) and not config.init:
        logger.warning(
            "optimizer.frozen keeps random weights of the backbone: name weights for "
            "it in config.init (docs/weights.md), or train it too."
        )
    if note := warmup_note(config):
        logger.warning(note)
    if _warms_up(config):
        logger.info(
            "the warm-up begins at a learning rate of 0: step 1 changes nothing"
        )
    selection = config.selection
    if config.task == "multilabel":
        return
    if selection.name == "given":
        check_given(config)
    if selection.name == "top_k" and config.model.multilabel_head.name == "none":
        raise UserError(
            "The selection 'top_k' needs label scores, but model.multilabel_head.name "
            "is 'none'; set it to transformer_encoder, or selection.name to complete."
        )
    evaluation_policy(config, eval_info.num_classes)
    for key in ("k", "eval_k"):
        if selection[key] > train_info.num_classes:
            logger.warning(
                "selection.%s is %d, but there are %d classes: all are selected.",
                key,
                selection[key],
                train_info.num_classes,
            )
