"""The loss of a set of regions: every mesh, plain autodiff, empty and bad pictures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mlseg_jax.distributed.sharding import AXES, within
from mlseg_jax.losses.reduce import counts_of
from mlseg_jax.losses.reduce import total_loss as weighted_sum
from mlseg_jax.losses.regions import mask, matched_masks, points
from mlseg_jax.losses.regions.loss import (
    random_points,
    reduce_region_losses,
    region_losses,
    region_means,
)
from mlseg_jax.losses.regions.mask import MASK2FORMER, MASKFORMER
from mlseg_jax.losses.regions.targets import Targets
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")

PREDICTIONS, QUERIES, SEGMENTS, RANKS, WIDTH = 2, 6, 5, 3, 4
GRID, SIZE = (4, 5), (13, 18)
POINTS = dataclasses.replace(MASK2FORMER, num_points=16)


def make_batch(batch=8, seed=0):
    """Leaves and targets; the second image has no target, others some padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, SEGMENTS, (batch, *SIZE)).astype(np.int32)
    ranks = rng.integers(0, RANKS, (batch, SEGMENTS)).astype(np.int32)
    valid = rng.random((batch, SEGMENTS)) < 0.4
    valid[0, 0] = True
    valid[1:2] = False
    leaves = tuple(
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (batch, PREDICTIONS, QUERIES, RANKS + 1),
            (batch, PREDICTIONS, QUERIES, WIDTH),
            (batch, *GRID, WIDTH),
        )
    )
    ranks = np.where(valid, ranks, IGNORE)
    return leaves, Targets(ranks, valid, ids, None, SIZE)


def total_loss(settings, leaves, targets, key):
    losses = region_losses(settings, *leaves, targets, random_points(key))
    total, parts = reduce_region_losses(settings, losses)
    return total, (parts, losses)


@functools.partial(jax.jit, static_argnums=0)
def run(settings, leaves, targets, key):
    loss = functools.partial(total_loss, settings)
    return jax.value_and_grad(loss, has_aux=True)(leaves, targets, key)


def plain_loss(settings, leaves, targets, queries, key):
    """The definition, from whole masks of all pairs, for plain autodiff."""
    class_logits, embeddings, features = leaves
    b, p, m = np.nonzero(queries != IGNORE)
    n = queries[b, p, m]
    maps = jnp.einsum("bpnd,bhwd->bpnhw", embeddings, features)[b, p, n]
    numbers = jnp.asarray(np.stack([p, b, m], axis=1), jnp.int32)
    pair = functools.partial(plain_pair, settings, key)
    pairs = jax.vmap(pair)(maps, jnp.asarray(targets.masks)[b], numbers)
    classes = np.full(queries.shape[:2] + (QUERIES,), RANKS)
    classes[b, p, n] = targets.ranks[b, m]
    weights = np.where(classes == RANKS, 0.1, 1.0)
    logits = jax.nn.log_softmax(class_logits)
    picked = jnp.take_along_axis(logits, jnp.asarray(classes)[..., None], axis=-1)
    means = jnp.sum(picked[..., 0] * weights, axis=(0, 2)) / weights.sum(axis=(0, 2))
    count = max(int(np.sum(targets.valid)), 1)
    return jnp.sum(pairs) / count - settings.class_weight * jnp.sum(means)


def plain_pair(settings, key, one, ids, numbers):
    p, b, m = numbers
    if settings.mask == "focal":
        logits = jax.image.resize(one, SIZE, "linear", antialias=False).reshape(1, -1)
        labels = (ids == m).astype(jnp.float32).reshape(1, -1)
        first = jnp.mean(mask.focal_at(logits, labels))
    else:
        count = settings.num_candidates + settings.num_points - settings.num_uncertain
        drawn = points.uniform_points(key, p, b, m + 1, count)[None]
        where = points.select_points(
            one[None], drawn, settings.num_points, settings.num_uncertain
        )
        logits = points.sample_maps(one[None], where)
        labels = points.sample_segments(ids, SIZE, m[None], where)
        first = jnp.mean(mask.binary_cross_entropy_at(logits, labels))
    second = mask.dice(logits, labels)[0]
    return settings.mask_weight * first + settings.dice_weight * second


@pytest.mark.parametrize("settings", [POINTS, MASKFORMER], ids=["points", "focal"])
def test_against_plain_autodiff(settings):
    leaves, targets = make_batch()
    key = jax.random.key(7)
    (total, (_, losses)), grads = run(settings, leaves, targets, key)
    queries = np.asarray(losses.queries)
    found = (queries != IGNORE).sum(axis=2)
    np.testing.assert_array_equal(found.T, [targets.valid.sum(axis=1)] * PREDICTIONS)

    def loss(leaves):
        return plain_loss(settings, leaves, targets, queries, key)

    expected, expected_grads = jax.jit(jax.value_and_grad(loss))(leaves)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("data, fsdp, chunk", [(8, 1, 3), (2, 4, 4)])
def test_every_mesh_gives_the_same(monkeypatch, data, fsdp, chunk):
    """And every size of chunks; gradients on one of them."""
    monkeypatch.setattr(matched_masks, "CHUNK", chunk)
    leaves, targets = make_batch()
    mesh = jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, P(AXES))
    placed = jax.device_put((leaves, targets), sharding)
    loss = functools.partial(total_loss, POINTS)
    if data == 2:
        loss = jax.value_and_grad(loss, has_aux=True)
    with within(mesh):
        program = jax.jit(loss).lower(*placed, jax.random.key(3)).compile()
    result = program(*placed, jax.random.key(3))
    (total_1, (parts_1, losses_1)), grads_1 = run(
        POINTS, leaves, targets, jax.random.key(3)
    )
    if data == 2:
        result, grads = result
        for grad, expected in zip(grads, grads_1, strict=True):
            np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-7)
            assert grad.sharding.shard_shape(grad.shape)[0] == 1
    total, (parts, losses) = result
    np.testing.assert_array_equal(losses.queries, losses_1.queries)
    np.testing.assert_allclose(total, total_1, rtol=1e-6)
    for name, part in parts.items():
        np.testing.assert_allclose(part, parts_1[name], rtol=1e-5)
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program.as_text()


@pytest.mark.parametrize("settings", [POINTS, MASKFORMER], ids=["points", "focal"])
def test_bad_costs_name_their_image(settings):
    leaves, targets = make_batch()
    assert not targets.valid[1].any() and targets.valid[0].any()
    embeddings = leaves[1].copy()
    embeddings[:2, 1, 4] = np.nan  # the second image has nothing to match
    (_, (_, losses)), _ = run(
        settings, (leaves[0], embeddings, leaves[2]), targets, jax.random.key(0)
    )
    np.testing.assert_array_equal(losses.bad_costs, np.arange(8) == 0)
    # A query that is no number is not matched as long as others are free.
    assert not np.any(np.asarray(losses.queries)[0, 1] == 4)


@pytest.mark.parametrize("settings", [POINTS, MASKFORMER], ids=["points", "focal"])
def test_nothing_was_selected(settings):
    leaves, targets = make_batch()
    nothing = np.zeros_like(targets.valid)
    targets = dataclasses.replace(
        targets, ranks=np.full_like(targets.ranks, IGNORE), valid=nothing
    )
    (total, (parts, losses)), grads = run(settings, leaves, targets, jax.random.key(0))
    logits = jax.nn.log_softmax(leaves[0])[..., RANKS]
    expected = -settings.class_weight * PREDICTIONS * jnp.mean(logits)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_array_equal(parts["mask"], 0.0)
    np.testing.assert_array_equal(losses.queries, IGNORE)
    assert np.all(np.isfinite(grads[0]))
    for grad in grads[1:]:
        np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("settings", [POINTS, MASKFORMER], ids=["points", "focal"])
def test_void_counts_nowhere(settings):
    """What the features are like in the void changes nothing."""
    leaves, targets = make_batch()
    # The left half is void, up to a column of cells from what is left.
    ids = np.where(np.arange(SIZE[1]) < 9, IGNORE, targets.masks)
    changed = leaves[2].copy()
    changed[:, :, :1] += 3.0
    targets = dataclasses.replace(targets, masks=ids)
    key = jax.random.key(1)
    (_, (parts, losses)), _ = run(settings, leaves, targets, key)
    (_, (changed_parts, _)), _ = run(settings, (*leaves[:2], changed), targets, key)
    assert abs(parts["mask"] - changed_parts["mask"]).max() > 1e-3
    leaves, changed = jax.tree.map(jnp.asarray, (leaves, changed))
    targets = dataclasses.replace(targets, void=ids == IGNORE)
    targets = jax.tree.map(jnp.asarray, targets)

    @jax.jit
    def mask_parts(features):
        if settings is MASKFORMER:
            return total_loss(settings, (*leaves[:2], features), targets, key)[1][0]
        # The same points all over, or others would be chosen.
        own = dataclasses.replace(settings, oversample=1.0, importance=0.0)
        draw, image = random_points(key), jnp.arange(8)
        return matched_masks.mask_losses(
            own, leaves[1], features, losses.queries, targets, image, draw
        )

    for found, other in zip(
        jax.tree.leaves(mask_parts(leaves[2])),
        jax.tree.leaves(mask_parts(changed)),
        strict=True,
    ):
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(found, other, rtol=1e-5)


def test_bfloat16_leaves_get_gradients_of_their_type():
    leaves, targets = make_batch()
    leaves = tuple(jnp.asarray(leaf, jnp.bfloat16) for leaf in leaves)
    loss = functools.partial(run, POINTS)
    (total, _), grads = jax.eval_shape(loss, leaves, targets, jax.random.key(0))
    assert total.dtype == jnp.float32
    assert all(grad.dtype == jnp.bfloat16 for grad in grads)


def test_parts_of_a_batch_add_up():
    """Pictures with unlike numbers of targets, one of them with none."""
    leaves, targets = make_batch()
    (whole, (parts, losses)), _ = run(POINTS, leaves, targets, jax.random.key(0))
    split = jax.tree.map(lambda x: x[:, None], losses)
    pictures = [
        region_means(POINTS, jax.tree.map(lambda x, i=i: x[i], split)) for i in range(8)
    ]
    assert len({float(means["loss/masks"].count) for means in pictures}) > 1
    counts = jax.tree.map(lambda *x: sum(x), *map(counts_of, pictures))
    totals, logs = zip(*(weighted_sum(m, counts) for m in pictures), strict=True)
    np.testing.assert_allclose(sum(totals), whole, rtol=1e-6)
    for name, each in parts.items():
        logged = sum(log[f"train/final_{name}"] for log in logs)
        np.testing.assert_allclose(logged, each[-1], rtol=1e-6)
