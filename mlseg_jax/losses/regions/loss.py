"""The loss of a set of regions: every supervised prediction is matched and compared.

A prediction's queries are matched with the segments of the crop; a matched query shall
find its segment's class and mask, the others no-object. Every prediction is matched by
itself and looks at points of its own (masks.md 2.3, 2.4, 3.3).

How it stays small: Mask2Former's costs come from features sampled at points
(`costs`), losses from the maps of a few matched queries (`matched_masks`). So
masks of all queries never exist in training, nor those of two predictions at a time.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlseg_jax.distributed.sharding import on_each_device
from mlseg_jax.losses.reduce import Mean, total_loss
from mlseg_jax.losses.regions import mask
from mlseg_jax.losses.regions.costs import match_regions
from mlseg_jax.losses.regions.mask import RegionLoss
from mlseg_jax.losses.regions.matched_masks import mask_losses
from mlseg_jax.losses.regions.points import uniform_points
from mlseg_jax.losses.regions.targets import Targets
from mlseg_jax.typing import Array, Bool, Float, Int, PRNGKeyArray

PARTS = ("class", "mask", "dice")

Draw = Callable[..., Float[Array, "count 2"]]
"""``(prediction, image, stream, count)`` to points: `random_points`, or a test's own.
Stream 0 is for the costs, 1 + m for target m, of clips 1 + m T + t in frame t."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionLosses:
    """Losses of each example, before anything is divided by their number.

    Attributes:
      classes: cross-entropy of each query, not weighted.
      class_weights: its weight, less for no-object.
      masks: weighted mask and dice losses, summed over predictions and targets. The
        gradient of the masks comes through here alone.
      mask_parts: sums over targets of mask loss and dice, to be logged.
      num_targets: valid targets, matched or not.
      queries: the query of each target, ``IGNORE`` without one.
      bad_costs: whether some matching cost was not a finite number.
    """

    __no_type_check__ = True

    classes: Float[Array, "B P N"]
    class_weights: Float[Array, "B P N"]
    masks: Float[Array, "B"]
    mask_parts: Float[Array, "B P 2"]
    num_targets: Int[Array, "B"]
    queries: Int[Array, "B P M"]
    bad_costs: Bool[Array, "B"]


def random_points(key: PRNGKeyArray) -> Draw:
    """How a training step draws its points."""
    return jax.tree_util.Partial(uniform_points, key)


def region_losses(
    settings: RegionLoss,
    class_logits: Float[Array, "B P N K1"],
    mask_embeddings: Float[Array, "B P N D"],
    features: Float[Array, "B *T h w D"] | tuple[Float[Array, "B *T h w D"], ...],
    targets: Targets,
    draw: Draw,
) -> RegionLosses:
    """Losses of all P predictions; mask logits are embeddings times ``features``, of
    which there may be P, too.

    Of clips, a target is one segment in all frames, matched once. It has a mask loss in
    each frame, also where it is absent; sums are divided by the number of targets.

    Runs on each device without a collective: the points depend on ``draw``, prediction
    and position in the batch alone.
    """
    batch, _, num_queries, num_columns = class_logits.shape
    image = jnp.arange(batch, dtype=jnp.int32)
    own = class_logits, mask_embeddings, features, targets, image
    own = jax.lax.stop_gradient(own)
    queries, bad_costs = on_each_device(functools.partial(match_regions, settings))(
        *own, shared=(draw,)
    )
    classes = mask.query_classes(queries, targets.ranks, num_queries, num_columns - 1)
    masks, mask_parts = on_each_device(functools.partial(mask_losses, settings))(
        mask_embeddings, features, queries, targets, image, shared=(draw,)
    )
    return RegionLosses(
        classes=mask.class_cross_entropy(class_logits, classes),
        class_weights=jnp.where(
            classes == num_columns - 1, settings.no_object_weight, 1.0
        ),
        masks=masks,
        mask_parts=mask_parts,
        num_targets=jnp.sum(targets.valid, axis=1, dtype=jnp.int32),
        queries=queries,
        bad_costs=bad_costs,
    )


def region_means(settings: RegionLoss, losses: RegionLosses) -> dict[str, Mean]:
    """The losses of a batch or of a part of one, and those of the final prediction.

    All means are over the whole batch, on however many devices and in however many
    parts it lies:

    * classes: Σ w·nll / Σ w over all B·N queries of a prediction. The release takes
      this quotient on each worker and averages; that is the same only where every
      worker has as many matched queries, and differs from one mesh to another.
    * masks: Σ / max(number of targets, 1), matched or not. The release's Σ / max(mean
      number per worker, 1) with averaged gradients is the same.

    What they divide by follows from the numbers of targets alone, so that it can be
    known of a whole batch before any of it is matched.
    """
    batch, _, num_queries = losses.classes.shape
    matched = jnp.sum(jnp.minimum(losses.num_targets, num_queries)).astype(jnp.float32)
    weight = matched + settings.no_object_weight * (batch * num_queries - matched)
    count = jnp.sum(losses.num_targets).astype(jnp.float32)
    classes = jnp.sum(losses.classes * losses.class_weights, axis=(0, 2))
    parts = jnp.sum(losses.mask_parts[:, -1], axis=0)
    return {
        "loss/class": Mean(jnp.sum(classes), weight, settings.class_weight, 1e-6),
        "loss/masks": Mean(jnp.sum(losses.masks), count, weight=1.0),
        "train/final_class": Mean(classes[-1], weight, least=1e-6),
        "train/final_mask": Mean(parts[0], count),
        "train/final_dice": Mean(parts[1], count),
    }


def reduce_region_losses(
    settings: RegionLoss, losses: RegionLosses
) -> tuple[Float[Array, ""], dict[str, Float[Array, "P"]]]:
    """The loss of a batch (`region_means`), and its parts for each prediction."""
    total, _ = total_loss(region_means(settings, losses))
    weight = jnp.sum(losses.class_weights, axis=(0, 2))
    classes = jnp.sum(losses.classes * losses.class_weights, axis=(0, 2)) / weight
    count = jnp.maximum(jnp.sum(losses.num_targets), 1)
    parts = jnp.sum(losses.mask_parts, axis=0) / count
    return total, {"class": classes, "mask": parts[:, 0], "dice": parts[:, 1]}
