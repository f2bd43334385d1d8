"""Multi-label classification: Query2Label of the independent scheme (method.md 8.2)."""

import jax.numpy as jnp
import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import select_top_k
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.losses.reduce import (
    Mean,
    mean_over_examples,
    mean_over_labels,
    total_loss,
)
from mlseg_jax.models.query2label import Query2Label
from mlseg_jax.tasks.semantic import multilabel_losses, selection_recall
from mlseg_jax.typing import Array, Float, PRNGKeyArray

UNUSED = {
    "data.segments": "none",
    "loss.class_weighting": "none",
    "loss.logit_adjustment": 0.0,
    "loss.missed_weight": 0.0,
    "selection.name": "top_k",
    "selection.with_present": False,
    "selection.scatter_present": False,
    "selection.noise": 0.0,
}
"""What only models that segment make use of, and its values without them."""


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a setting that a classifier of labels would ignore."""
    for key, unused in UNUSED.items():
        part, _, name = key.partition(".")
        if config[part].get(name, unused) != unused:
            raise UserError(
                f"{key} is of models that segment, and this one finds the labels of "
                f"whole pictures; set it to {unused}."
            )


def loss(
    model: Query2Label,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray | None,
    priors: ClassPriors = NO_PRIORS,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted multi-label loss of a batch, and what to log of it (`means`)."""
    return total_loss(means(model, batch, config, rng, priors))


def means(
    model: Query2Label,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray | None,
    priors: ClassPriors = NO_PRIORS,
) -> dict[str, Mean]:
    """The multi-label loss and what else to log, as sums and counts.

    ``batch``: ``image`` uint8 [B H W 3], ``presence`` bool [B C], the classes of the
    whole picture. ``priors`` are of pixels, so they count for nothing here.
    """
    del priors
    presence = batch["presence"]
    scores = model(batch["image"], rng=rng)
    label_loss = mean_over_labels(multilabel_losses(config, scores, presence))
    selection = select_top_k(scores, config.selection.k)
    _, recall = selection_recall(presence.astype(jnp.int32), selection)
    return {
        "loss/multilabel": label_loss.weighted(config.loss.multilabel_weight),
        "train/image_recall_at_k": mean_over_examples(recall),
    }
