"""What a configuration and its data must agree on before training starts."""

import logging

from input_pipeline.findings import differing_classes
from mlseg_jax.errors import UserError
from mlseg_jax.tasks.semantic_evaluation import check_given, evaluation_policy

logger = logging.getLogger(__name__)


def check_labels(config, train_info, eval_info) -> None:
    if train_info.class_names != eval_info.class_names:
        raise UserError(
            differing_classes(
                (config.data.train_split, config.data.eval_split), train_info, eval_info
            )
        )
    if len(config.data.crop_size) != 2:
        raise UserError(
            f"data.crop_size is {config.data.crop_size}; give height and width, as in "
            f"--config.data.crop_size=(512,512)."
        )
    if any("backbone" in x for x in config.optimizer.frozen) and not config.init:
        logger.warning(
            "optimizer.frozen keeps random weights of the backbone: name weights for "
            "it in config.init (docs/weights.md), or train it too."
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
