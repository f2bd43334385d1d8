"""Which query of a prediction shall find which segment (masks.md 2.4 and 3.3)."""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.losses import mask, points
from mlseg_jax.losses.matching import match
from mlseg_jax.losses.targets import nearest_pixels
from mlseg_jax.typing import IGNORE


def match_regions(settings, class_logits, embeddings, features, targets, image, draw):
    """The query of each target ``[B P M]``, and whether costs were no numbers ``[B]``.

    All predictions are matched in one call: the solver then waits only once for the
    hardest.
    """
    batch, count, num_queries, _ = class_logits.shape
    cost = functools.partial(_costs, settings, draw)
    costs = jax.lax.map(
        lambda own: cost(*own), (class_logits, embeddings, features, targets, image)
    )
    valid = targets.valid[:, None]
    bad_costs = jnp.any(~jnp.isfinite(costs) & valid[:, :, None], axis=(1, 2, 3))
    num_targets = valid.shape[2]
    queries = match(
        costs.reshape(batch * count, num_queries, num_targets),
        jnp.broadcast_to(valid, (batch, count, num_targets)).reshape(-1, num_targets),
    )
    return queries.reshape(batch, count, num_targets), bad_costs


def of_prediction(features):
    """The features ``[h w D]`` of a prediction by its number: the same for all, or one
    of several.
    """
    if not isinstance(features, tuple):
        return lambda prediction: features
    stacked = jnp.stack(features)
    return lambda prediction: stacked[prediction]


def _costs(settings, draw, class_logits, embeddings, features, targets, image):
    """Matching costs of one image ``[P N M]``, one prediction after the other."""
    num_targets = targets.ranks.shape[0]
    features = jax.tree.map(lambda x: x.astype(jnp.float32), features)
    if settings.masks == "dense":
        grid = jax.tree.leaves(features)[0].shape[:2]
        pixels = (targets.masks, targets.size, grid, num_targets)
        dense_labels = nearest_pixels(*pixels).reshape(num_targets, -1)
        void = targets.void
        if void is not None:
            void = nearest_pixels(jnp.where(void, 0, IGNORE), targets.size, grid, 1)
            void = 1.0 - void.reshape(-1)
    features_of = of_prediction(features)

    def cost(own):
        class_logits, embeddings, prediction = own
        features = features_of(prediction)
        if settings.masks == "dense":
            cells = features.reshape(-1, features.shape[-1])
            sampled, labels, weights = cells, dense_labels, void
            pairwise = mask.pairwise_focal
        else:
            where = draw(prediction, image, jnp.int32(0), settings.num_points)
            sampled = points.sample_features(features, where)
            labels = points.sample_all_segments(
                targets.masks, targets.size, num_targets, where
            )
            weights = points.weights_at(targets.void, where)
            pairwise = mask.pairwise_cross_entropy
        logits = embeddings.astype(jnp.float32) @ sampled.T
        return (
            settings.class_weight * mask.class_cost(class_logits, targets.ranks)
            + settings.mask_weight * pairwise(logits, labels, weights)
            + settings.dice_weight * mask.pairwise_dice(logits, labels, weights)
        )

    order = jnp.arange(len(class_logits), dtype=jnp.int32)
    return jax.lax.map(cost, (class_logits, embeddings, order))
