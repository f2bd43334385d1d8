"""Which query of a prediction shall find which segment (masks.md 2.4 and 3.3)."""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.losses.regions import mask, points
from mlseg_jax.losses.regions.matching import match
from mlseg_jax.losses.regions.targets import nearest_pixels
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
    """The features ``[*T h w D]`` of a prediction by its number: the same for all, or
    one of several.
    """
    if not isinstance(features, tuple):
        return lambda prediction: features
    stacked = jnp.stack(features)
    return lambda prediction: stacked[prediction]


def _costs(settings, draw, class_logits, embeddings, features, targets, image):
    """Matching costs of one image or clip ``[P N M]``, one prediction after the
    other.
    """
    features = jax.tree.map(
        lambda x: x.astype(jnp.float32).reshape(-1, *x.shape[-3:]), features
    )
    features_of = of_prediction(features)
    at_cells = settings.mask == "focal"
    if at_cells:
        grid = jax.tree.leaves(features)[0].shape[1:3]
        cell_labels, cell_weights = _labels_at_cells(grid, targets)

    def cost(own):
        class_logits, embeddings, prediction = own
        features = features_of(prediction)
        embeddings = embeddings.astype(jnp.float32)
        if at_cells:
            logits = embeddings @ features.reshape(-1, features.shape[-1]).T
            labels, weights = cell_labels, cell_weights
            pairwise = mask.pairwise_focal
        else:
            where = draw(prediction, image, jnp.int32(0), settings.num_points)
            logits = _logits_at(embeddings, features, where)
            labels, weights = _labels_at(targets, where)
            pairwise = mask.pairwise_cross_entropy
        return (
            settings.class_weight * mask.class_cost(class_logits, targets.ranks)
            + settings.mask_weight * pairwise(logits, labels, weights)
            + settings.dice_weight * mask.pairwise_dice(logits, labels, weights)
        )

    order = jnp.arange(len(class_logits), dtype=jnp.int32)
    return jax.lax.map(cost, (class_logits, embeddings, order))


def _logits_at(embeddings, features, where):
    """Logits ``[N T*P]`` of all queries at the points ``where [P 2]`` of each frame.

    The points of a clip are the same in all of its frames, and masks are compared over
    all of them together (masks.md 6.1). Sampling is linear: whole masks are made first
    where they have fewer cells than the points have corners.
    """
    _, height, width, _ = features.shape
    masks_first = height * width <= 4 * len(where)
    if masks_first:
        features = features @ embeddings.T
    sampled = jax.vmap(lambda own: points.sample_features(own, where))(features)
    sampled = sampled.reshape(-1, features.shape[-1])
    return sampled.T if masks_first else embeddings @ sampled.T


def _labels_at(targets, where):
    """Labels ``[M T*P]`` and weights ``[T*P]`` at points of each frame."""
    num_targets = targets.ranks.shape[0]
    masks, void = targets.frames()
    labels = jax.vmap(
        lambda own: points.sample_all_segments(own, targets.size, num_targets, where),
        out_axes=1,
    )(masks)
    weights = None
    if void is not None:
        weights = jax.vmap(lambda own: points.weights_at(own, where))(void).ravel()
    return labels.reshape(num_targets, -1), weights


def _labels_at_cells(grid, targets):
    """Labels and weights of all cells of the grid, as MaskFormer matches."""
    num_targets = targets.ranks.shape[0]

    def nearest(masks, count: int):
        return jax.vmap(
            lambda own: nearest_pixels(own, targets.size, grid, count), out_axes=1
        )(masks).reshape(count, -1)

    masks, void = targets.frames()
    weights = None
    if void is not None:
        weights = 1.0 - nearest(jnp.where(void, 0, IGNORE), 1).ravel()
    return nearest(masks, num_targets), weights
