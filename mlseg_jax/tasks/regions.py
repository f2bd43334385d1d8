"""Training of regions: a batch of segments to a loss (masks.md 2.3, method.md 11.2).

Semantic, panoptic and instance segmentation differ in what their segments are, which
the data says (``data.segments``), and in what is made of the regions afterwards; their
loss is this one.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.inference.clip_engine import PER_CLIP
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.losses.reduce import (
    Mean,
    mean_over_examples,
    mean_over_labels,
    total_loss,
)
from mlseg_jax.losses.regions.loss import random_points, region_losses, region_means
from mlseg_jax.losses.regions.mask import RegionLoss
from mlseg_jax.losses.regions.targets import class_areas, make_targets, segment_areas
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.semantic import (
    multilabel_losses,
    training_recall,
    training_select,
)
from mlseg_jax.typing import Array, Float, PRNGKeyArray

SEGMENTS = {
    "semantic": "classes",
    "panoptic": "panoptic",
    "instance": "instances",
    "video_semantic": "classes",
    "video_instance": "instances",
}
"""What the segments of each task are: its ``data.segments``."""

READ = {
    "panoptic": ("object_threshold", "overlap_threshold", "inside_mask"),
    "instance": ("max_instances",),
    "video_instance": ("max_instances",),
}
"""What of ``eval`` only some tasks read, so that recipes of others have it not."""

VIDEO_DECODERS = ("mask2former",)
"""Decoders whose queries look at all frames of a clip."""

BAD_COSTS, BAD_PLACES = "train/bad_costs", "train/bad_places"
"""Share of the pictures some of whose matching costs were not a finite number, and the
mean of their places in the batch, others counting as 0."""


def region_settings(config: ml_collections.ConfigDict) -> RegionLoss:
    """The ``loss.regions`` part of a configuration."""
    settings, fields = config.loss.regions, dataclasses.fields(RegionLoss)
    return RegionLoss(**{field.name: settings[field.name] for field in fields})


def check_config(config: ml_collections.ConfigDict) -> None:
    """Whether the keys of a task of regions go together.

    Raises:
      UserError: they do not; a sentence that names them.
    """
    wanted = SEGMENTS[config.task]
    if config.data.segments != wanted:
        raise UserError(
            f"The task {config.task!r} is trained on data.segments={wanted}, not "
            f"{config.data.segments}; start from a recipe with task={config.task}."
        )
    missing = [key for key in READ.get(config.task, ()) if key not in config.eval]
    if missing:
        raise UserError(
            f"The task {config.task!r} reads eval.{missing[0]}, which this recipe has "
            f"not; start from a recipe with task={config.task}."
        )
    if wanted == "instances" and config.loss.regions.ignore_void:
        raise UserError(
            "loss.regions.ignore_void leaves pixels of no segment out, which among "
            f"instances are all of stuff and background; the task {config.task!r} "
            "would never learn where they end. Set it to False."
        )
    is_video = config.task.startswith("video_")
    if is_video != bool(config.data.get("num_frames", 0)):
        what = "clips" if is_video else "pictures, without data.num_frames"
        raise UserError(
            f"The task {config.task!r} is trained on {what}; start from a recipe with "
            f"task={config.task}."
        )
    if is_video and (
        config.data.repeat_factor
        or config.data.rare_crop_rate
        or "given" in (config.selection.name, config.selection.eval_name)
    ):
        raise UserError(
            "data.repeat_factor, data.rare_crop_rate and selection.name or eval_name="
            "given are of pictures, and clips have frames drawn at random; set the "
            "first two to 0, and the selection to top_k, complete or oracle."
        )
    if is_video and config.model.decoder.name not in VIDEO_DECODERS:
        raise UserError(
            f"The task {config.task!r} needs a decoder that looks at clips, one of "
            f"{', '.join(VIDEO_DECODERS)}; model.decoder.name is "
            f"{config.model.decoder.name!r}."
        )
    if is_video and config.eval.selection_scope == "per_clip":
        raise UserError(PER_CLIP)
    loss = config.loss
    if loss.class_weighting != "none" or loss.logit_adjustment:
        raise UserError(
            "loss.class_weighting and loss.logit_adjustment are of pixels, and this "
            "model classifies regions; set them to none and 0 (data.repeat_factor and "
            "data.rare_crop_rate help rare classes of regions, too)."
        )
    if loss.missed_weight or config.model.auxiliary_head.name != "none":
        raise UserError(
            "loss.missed_weight and model.auxiliary_head are of pixels, and this model "
            "classifies regions; set them to 0 and none (selection.with_present keeps "
            "labels that are there)."
        )
    if loss.pixel != "cross_entropy":
        raise UserError(
            f"loss.pixel={loss.pixel} is of pixels, and this model classifies regions; "
            "set it to cross_entropy."
        )
    one_view = len(config.eval.scales) == 1 and not config.eval.flip
    if config.task != "semantic" and not (config.eval.mode == "whole" and one_view):
        raise UserError(
            f"The task {config.task!r} looks at a picture once, for queries of two "
            "windows are not the same objects; set eval.mode to whole, eval.scales to "
            "one number and eval.flip to False."
        )


def loss(
    model: MLSeg,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray,
    priors: ClassPriors = NO_PRIORS,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Losses of regions + weighted multi-label loss, and what to log (`means`)."""
    return total_loss(means(model, batch, config, rng, priors))


def means(
    model: MLSeg,
    batch: dict[str, Array],
    config: ml_collections.ConfigDict,
    rng: PRNGKeyArray,
    priors: ClassPriors = NO_PRIORS,
) -> dict[str, Mean]:
    """All losses of a batch and what else to log of it, as sums and counts.

    ``batch``: ``image`` uint8 [B *T H W 3], ``masks`` (`targets.BatchMasks`) and
    ``segment_classes`` int32 [B M], ``IGNORE`` where there is no segment. A label is
    present if it is that of a segment in the crop. ``rng`` draws the points at which
    masks are compared, too. ``priors`` are of pixels, which `check_config` says.
    """
    del priors
    class_ids, masks = batch["segment_classes"], batch["masks"]
    size, num_classes = batch["image"].shape[-3:-1], model.class_embeddings.shape[0]
    areas = segment_areas(masks, class_ids.shape[1])
    histogram = class_areas(class_ids, areas, num_classes)
    model_rng, points_rng = jax.random.split(rng)
    # The padding of a canvas is part of the picture, as released.
    select = training_select(config, batch, histogram, model_rng)
    # Of each example alike.
    progress = batch["progress"][0] if "progress" in batch else None
    output = model(batch["image"], select, rng=model_rng, progress=progress)
    targets = make_targets(
        class_ids,
        areas,
        masks,
        size,
        output.selection,
        ignore_void=config.loss.regions.ignore_void,
    )
    settings = region_settings(config)
    losses = region_losses(
        settings,
        output.class_logits,
        output.regions.mask_embeddings,
        output.regions.grids,
        targets,
        random_points(points_rng),
    )
    label_loss = mean_over_labels(
        multilabel_losses(config, output.label_scores, histogram > 0)
    )
    num_segments = jnp.sum(areas > 0, axis=1)
    return region_means(settings, losses) | {
        "loss/multilabel": label_loss.weighted(config.loss.multilabel_weight),
        **training_recall(config, histogram, output),
        "train/segments": mean_over_examples(num_segments.astype(jnp.float32)),
        # Those whose class was not selected are not trained on.
        "train/segments_left_out": mean_over_examples(
            (num_segments - losses.num_targets).astype(jnp.float32)
        ),
        BAD_COSTS: mean_over_examples(losses.bad_costs.astype(jnp.float32)),
        BAD_PLACES: mean_over_examples(
            losses.bad_costs * jnp.arange(len(areas), dtype=jnp.float32)
        ),
    }


def bad_rows(metrics: Mapping, batch_size: int, num_parts: int) -> list[int]:
    """Rows of a batch that may have had costs that are no numbers; often just one.

    ``num_parts``: of an accumulation, whose parts take turns at the rows.
    """
    count = round(batch_size * float(metrics.get(BAD_COSTS, 0.0)))
    if count != 1:
        return list(range(batch_size)) if count else []
    place = round(batch_size * float(metrics[BAD_PLACES]))
    return [place * num_parts + part for part in range(num_parts)]
