"""Losses of clips, against loops over frames and points in NumPy and SciPy's matching.

method.md 11.1, masks.md 2.3, 2.4 and 6.1: costs at points that all frames share and
over all frames together; losses of each frame's mask at points of its own, divided by
the number of targets.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mlseg_jax.losses.regions.loss import (
    random_points,
    reduce_region_losses,
    region_losses,
)
from mlseg_jax.losses.regions.mask import MASK2FORMER
from mlseg_jax.losses.regions.points import uniform_points
from mlseg_jax.losses.regions.targets import Targets, segment_areas
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")

BATCH, FRAMES, QUERIES, SEGMENTS, RANKS, WIDTH = 2, 3, 4, 3, 3, 4
GRID, SIZE = (4, 5), (13, 18)
SETTINGS = dataclasses.replace(MASK2FORMER, num_points=8)


def make_clips():
    rng = np.random.default_rng(0)
    masks = rng.integers(-1, SEGMENTS, (BATCH, FRAMES, *SIZE)).astype(np.int32)
    masks[0, 1][masks[0, 1] == 0] = IGNORE  # It is absent from a frame.
    ranks = rng.integers(0, RANKS, (BATCH, SEGMENTS)).astype(np.int32)
    valid = np.asarray([[True, True, True], [True, False, True]])
    leaves = tuple(
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (BATCH, 1, QUERIES, RANKS + 1),
            (BATCH, 1, QUERIES, WIDTH),
            (BATCH, FRAMES, *GRID, WIDTH),
        )
    )
    ranks = np.where(valid, ranks, IGNORE)
    return leaves, Targets(ranks, valid, masks, None, SIZE)


def sample(values, x: float, y: float) -> float:
    """Bilinear, zeros outside, at (x, y) in [0, 1] of a map [h w]."""
    height, width = values.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * values[i, j]
    return total


def at(values, points) -> np.ndarray:
    return np.asarray([sample(values, *point) for point in np.asarray(points, float)])


def cross_entropy(x, t):
    return np.logaddexp(0, x) - x * t


def dice(x, t):
    s = 1 / (1 + np.exp(-x))
    return 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)


def slow_example(key, image, logits, embeddings, features, ranks, valid, masks):
    """Query of each target, and mask loss and dice summed over targets and frames."""

    def draw(stream: int, count: int):
        return uniform_points(key, *map(jnp.int32, (0, image, stream)), count)

    maps = np.einsum("nd,thwd->nthw", embeddings, features).astype(float)
    shared = draw(0, SETTINGS.num_points)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = np.flatnonzero(valid)
    costs = np.zeros((QUERIES, len(chosen)))
    for column, target in enumerate(chosen):
        labels = np.concatenate([at(frame == target, shared) for frame in masks])
        for query in range(QUERIES):
            points = np.concatenate([at(frame, shared) for frame in maps[query]])
            costs[query, column] = (
                -2 * probabilities[query, ranks[target]]
                + 5 * cross_entropy(points, labels).mean()
                + 5 * dice(points, labels)
            )
    rows, columns = linear_sum_assignment(costs)
    queries = np.full(SEGMENTS, IGNORE)
    queries[chosen[columns]] = rows
    sums = np.zeros(2)
    count = SETTINGS.num_candidates + SETTINGS.num_points - SETTINGS.num_uncertain
    for target in chosen:
        for frame in range(FRAMES):
            drawn = draw(1 + target * FRAMES + frame, count)
            own = maps[queries[target], frame]
            certainty = np.abs(at(own, drawn[: SETTINGS.num_candidates]))
            keep = np.argsort(certainty, kind="stable")[: SETTINGS.num_uncertain]
            where = np.concatenate([drawn[keep], drawn[SETTINGS.num_candidates :]])
            points, labels = at(own, where), at(masks[frame] == target, where)
            sums += cross_entropy(points, labels).mean(), dice(points, labels)
    return queries, sums


def test_clips_against_loops():
    (logits, embeddings, features), targets = make_clips()
    key = jax.random.key(3)
    losses = jax.jit(
        lambda leaves, targets: region_losses(
            SETTINGS, *leaves, targets, random_points(key)
        )
    )((logits, embeddings, features), targets)
    sums = np.zeros(2)
    for i in range(BATCH):
        queries, own = slow_example(
            key,
            i,
            logits[i, 0].astype(float),
            embeddings[i, 0],
            features[i],
            targets.ranks[i],
            targets.valid[i],
            targets.masks[i],
        )
        np.testing.assert_array_equal(losses.queries[i, 0], queries)
        np.testing.assert_allclose(losses.mask_parts[i, 0], own, rtol=1e-4)
        sums += own
    np.testing.assert_array_equal(losses.num_targets, [3, 2])
    _, parts = reduce_region_losses(SETTINGS, losses)
    # By the targets, and not by the masks of their frames.
    np.testing.assert_allclose(parts["mask"], sums[0] / 5, rtol=1e-4)
    np.testing.assert_allclose(parts["dice"], sums[1] / 5, rtol=1e-4)


def test_gradients_of_clips():
    """Along a direction, where examples count differently, against differences.

    No point is chosen by its logit, which would be a step.
    """
    settings = dataclasses.replace(SETTINGS, importance=0.0)
    (logits, embeddings, features), targets = make_clips()
    rng = np.random.default_rng(1)
    steps = [
        rng.normal(size=x.shape).astype(np.float32) for x in (embeddings, features)
    ]

    @jax.jit
    def weighted(leaves):
        losses = region_losses(
            settings, logits, *leaves, targets, random_points(jax.random.key(3))
        )
        return jnp.sum(losses.masks * jnp.asarray([1.0, 3.0]))

    logits = jnp.asarray(logits)
    targets = jax.tree.map(jnp.asarray, targets)
    leaves = [jnp.asarray(embeddings), jnp.asarray(features)]
    grads = jax.jit(jax.grad(weighted))(leaves)
    slope = sum(float(jnp.vdot(g, s)) for g, s in zip(grads, steps, strict=True))
    far = [
        float(
            weighted([x + sign * 2e-3 * s for x, s in zip(leaves, steps, strict=True)])
        )
        for sign in (1, -1)
    ]
    assert slope == pytest.approx((far[0] - far[1]) / 4e-3, rel=2e-2)


def test_areas_are_of_all_frames():
    _, targets = make_clips()
    found = segment_areas(jnp.asarray(targets.masks), SEGMENTS)
    expected = [
        [(masks == segment).sum() for segment in range(SEGMENTS)]
        for masks in targets.masks
    ]
    np.testing.assert_array_equal(found, expected)
