"""Semantic segmentation: a batch to a loss (paper section 3.3, method.md 4.3)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from mlseg_jax.distributed.sharding import on_each_device
from mlseg_jax.label_selection import (
    Select,
    Selection,
    SelectionPolicy,
    labels_to_ranks,
    rank_of_class,
    select_top_k,
)
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.losses.multilabel import (
    asymmetric_loss,
    binary_cross_entropy,
    missed_label_loss,
)
from mlseg_jax.losses.pixel import (
    classified_cross_entropy,
    nearest_class_cross_entropy,
    upsampled_cross_entropy,
)
from mlseg_jax.losses.reduce import (
    Mean,
    mean_over_examples,
    mean_over_labels,
    mean_over_pixels,
    total_loss,
)
from mlseg_jax.metrics.label_recall import label_histogram
from mlseg_jax.models.decoders.auxiliary import FCNHead
from mlseg_jax.models.interfaces import FeatureMap, Output, RegionOutput
from mlseg_jax.models.mlseg import MLSeg, clear_padding
from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int, PRNGKeyArray

SELECTION_KEY = 0x5E1EC7
"""Folded into a step's key for what is random in the selection."""


def loss(
    model: MLSeg,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray | None,
    priors: ClassPriors = NO_PRIORS,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Pixel loss over ranks + weighted multi-label loss, and what to log (`means`)."""
    return total_loss(means(model, batch, config, rng, priors))


def means(
    model: MLSeg,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray | None,
    priors: ClassPriors = NO_PRIORS,
) -> dict[str, Mean]:
    """All losses of a batch and what else to log of it, as sums and counts.

    ``batch``: ``image`` uint8 [B H W 3], ``label_map`` int32 [B H W], perhaps
    ``image_size`` int32 [B 2], what of the crops is no padding; or in place of images
    ``features`` [B h w D] of a frozen backbone (`frozen_features`). A label counts as
    present if any pixel of the (augmented) crop has it. ``priors``: see `class_priors`.
    """
    label_map = batch["label_map"]
    num_classes = model.class_embeddings.shape[0]
    histogram = label_histogram(label_map, num_classes)
    images = batch.get("image")
    if images is not None and "image_size" in batch:
        images = clear_padding(images, batch["image_size"], model.pixel_mean)
    select = training_select(config, batch, histogram, rng)
    output = model(images, select, rng=rng, features=batch.get("features"))

    ranks = labels_to_ranks(label_map, output.selection)
    logits, weights = output.logits, None
    if priors.offsets is not None:
        offsets = jnp.asarray(priors.offsets)[output.selection.class_ids]
        logits = logits + offsets[:, None, None, :].astype(logits.dtype)
    if priors.weights is not None:
        weights = jnp.asarray(priors.weights)[jnp.maximum(label_map, 0)]
    pixel_loss = mean_over_pixels(
        on_each_device(_pixel_losses(config))(logits, ranks),
        ranks != IGNORE,
        over=config.loss.pixel_mean,
        weights=weights,
    )
    label_loss = mean_over_labels(
        multilabel_losses(config, output.label_scores, histogram > 0)
    )
    losses = {
        "loss/pixel": pixel_loss.weighted(1.0),
        "loss/multilabel": label_loss.weighted(config.loss.multilabel_weight),
    }
    if config.loss.missed_weight:
        selected = rank_of_class(output.selection) != IGNORE
        missed = missed_label_loss(output.label_scores, selected, histogram)
        missed = mean_over_examples(missed)
        losses["loss/missed"] = missed.weighted(config.loss.missed_weight)
    if output.auxiliary is not None:
        auxiliary = auxiliary_loss(
            model.auxiliary_head, output.auxiliary, label_map, config
        )
        weight = config.model.auxiliary_head.weight
        losses["loss/auxiliary"] = auxiliary.weighted(weight)
    return losses | training_recall(config, histogram, output)


def training_select(
    config: ml_collections.ConfigDict,
    batch: dict[str, Array],
    histogram: Int[Array, "B C"],
    rng: PRNGKeyArray | None = None,
) -> Select:
    """How labels are selected for a batch; ``histogram``: its pixels of each class.

    ``rng``: the step's, for noise on the scores and random ranks.
    """
    selection = config.selection
    policy = SelectionPolicy(
        selection.name,
        selection.k,
        selection.minimum_score,
        selection.cumulative,
        with_present=selection.with_present,
        scatter_present=selection.scatter_present,
        noise=selection.noise,
    )
    given = None
    if "given" in batch:
        given = policy.given_by(batch["given"])
    # Beside the keys that dropout splits off: noise leaves those as they are.
    rng = None if rng is None else jax.random.fold_in(rng, SELECTION_KEY)
    return policy.select(histogram=histogram, given=given, rng=rng)


def _pixel_losses(
    config: ml_collections.ConfigDict,
) -> Callable[[Array, Array], Float[Array, "B H W"]]:
    """The configured loss of logits over ranks and ranks of pixels, unreduced."""
    if config.loss.pixel == "cross_entropy":
        return upsampled_cross_entropy
    return functools.partial(
        nearest_class_cross_entropy, num_nearest=config.loss.num_nearest
    )


def auxiliary_loss(
    head: FCNHead,
    pixels: FeatureMap,
    label_map: Int[Array, "B H W"],
    config: ml_collections.ConfigDict,
) -> Mean:
    """Pixel loss of the auxiliary head, among all C classes whatever is selected."""
    losses = on_each_device(classified_cross_entropy)(
        pixels.grid,
        label_map,
        shared=(head.class_weights[...], head.class_biases[...]),
    )
    return mean_over_pixels(losses, label_map != IGNORE, over=config.loss.pixel_mean)


def multilabel_losses(
    config: ml_collections.ConfigDict,
    scores: Float[Array, "B C"],
    presence: Bool[Array, "B C"],
) -> Float[Array, "B C"]:
    """The configured multi-label loss, unreduced."""
    if config.loss.multilabel == "binary_cross_entropy":
        return binary_cross_entropy(scores, presence)
    return asymmetric_loss(
        scores,
        presence,
        gamma_negative=config.loss.gamma_negative,
        gamma_positive=config.loss.gamma_positive,
        clip=config.loss.clip,
        detach_focus=config.loss.detach_focus,
    )


def selection_recall(
    histogram: Int[Array, "B C"], selection: Selection
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Shares of each image's labelled pixels and present labels that were selected.

    Images without any label count as 1 (method.md 13.4).
    """
    selected = rank_of_class(selection) != IGNORE
    present = histogram > 0

    def share(part: Array, whole: Array) -> Array:
        part, whole = jnp.sum(part, axis=1), jnp.sum(whole, axis=1)
        return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 1.0)

    return (
        share(jnp.where(selected, histogram, 0), histogram),
        share(present & selected, present),
    )


def training_recall(
    config: ml_collections.ConfigDict,
    histogram: Int[Array, "B C"],
    output: Output | RegionOutput,
) -> dict[str, Mean]:
    """What to log of a batch's selection (`selection_recall`).

    Where training joins present labels to it, or adds noise, that of the K best by the
    scores alone, as an evaluation selects: what was joined would always be found.
    """
    selection, settings = output.selection, config.selection
    if settings.name == "top_k" and (settings.with_present or settings.noise):
        selection = select_top_k(
            output.label_scores,
            settings.k,
            minimum_score=settings.minimum_score,
            cumulative=settings.cumulative,
        )
    pixel_recall, image_recall = selection_recall(histogram, selection)
    return {
        "train/pixel_recall_at_k": mean_over_examples(pixel_recall),
        "train/image_recall_at_k": mean_over_examples(image_recall),
    }
