"""What a configuration says of predictions: the selection of labels, and the engine."""

import ml_collections
from jax.sharding import Mesh

from mlseg_jax.errors import UserError
from mlseg_jax.inference.engine import Engine
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.models.build import FunctionalModel, Parameters


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
    if name == "complete" and selection.name == "top_k":
        # All of them, in the order that the scales of ranks were trained in.
        return SelectionPolicy("top_k", num_classes)
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
