"""The assignment solver against SciPy and optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from scipy.optimize import linear_sum_assignment

from mlseg_jax.distributed.sharding import AXES, on_each_device, within
from mlseg_jax.losses.regions.matching import LARGEST_COST, match
from mlseg_jax.typing import IGNORE

compiled = jax.jit(match)
pytestmark = pytest.mark.usefixtures("quick_compiles")


def sane(costs):
    costs = np.where(np.isnan(costs), LARGEST_COST, costs)
    return np.clip(costs, -LARGEST_COST, LARGEST_COST).astype(np.float64)


def slow_match(costs, valid):
    """SciPy's pairs of one example, as the query of each target."""
    own = np.flatnonzero(valid)
    queries = np.full(len(valid), IGNORE)
    rows, columns = linear_sum_assignment(sane(costs)[:, own])
    queries[own[columns]] = rows
    return queries


def total(costs, queries):
    found = np.flatnonzero(queries != IGNORE)
    return sane(costs)[queries[found], found].sum()


def check(costs, valid, *, same_pairs=False):
    for mine, c, v in zip(
        np.asarray(compiled(costs, valid)), costs, valid, strict=True
    ):
        theirs = slow_match(c, v)
        found = mine[mine != IGNORE]
        assert len(set(found)) == len(found) == min(v.sum(), c.shape[0])
        assert not np.any(mine[~v] != IGNORE)
        np.testing.assert_allclose(total(c, mine), total(c, theirs), rtol=1e-6)
        if same_pairs:
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "batch, queries, targets",
    [(1, 12, 5), (3, 30, 21), (3, 21, 30), (2, 1, 4), (1, 1, 1)],
)
def test_random_costs_give_the_pairs_of_scipy(batch, queries, targets):
    rng = np.random.default_rng(batch)
    for share in (1.0, 0.6, 0.2, 0.0):
        costs = rng.normal(size=(batch, queries, targets)).astype(np.float32)
        valid = rng.random((batch, targets)) < share
        check(costs, valid, same_pairs=True)


def test_long_paths():
    """Costs of products make every insertion move those before it."""
    for queries, targets in ((30, 21), (21, 30)):
        costs = np.outer(1.0 + np.arange(queries), 1.0 + np.arange(targets))
        costs = np.stack([costs, costs[::-1], -costs]).astype(np.float32)
        check(costs, np.ones((3, targets), bool))


def test_degenerate_costs():
    rng = np.random.default_rng(1)
    shape = (3, 10, 6)
    valid = np.asarray([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0] * 6], bool)
    normal = rng.normal(size=shape).astype(np.float32)
    alike = np.broadcast_to(normal[:, :1], shape).copy()
    check(alike, valid)
    check(np.zeros(shape, np.float32), valid)
    check(rng.integers(0, 2, shape).astype(np.float32), valid)
    padded = np.where(valid[:, None], normal, 0.0)
    check(padded, np.ones_like(valid))
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        check(np.full(shape, bad, np.float32), valid)
        for where in ((slice(None), 2), (slice(None), slice(None), 3), (0, 4, 1)):
            costs = normal.copy()
            costs[where] = bad
            check(costs, valid)


def test_one_bad_target_spoils_no_other():
    rng = np.random.default_rng(2)
    costs = rng.normal(size=(3, 10, 6)).astype(np.float32)
    spoilt = costs.copy()
    spoilt[:, :, 0] = np.nan
    valid = np.ones((3, 6), bool)
    without = np.asarray(compiled(costs, valid & (np.arange(6) > 0)))
    with_it = np.asarray(compiled(spoilt, valid))
    np.testing.assert_array_equal(with_it[:, 1:], without[:, 1:])


def test_against_optax():
    queries, targets = 12, 5
    costs = np.random.default_rng(3).normal(size=(queries, targets))
    costs = jnp.asarray(costs, jnp.float32)
    rows, columns = optax.assignment.hungarian_algorithm(costs)
    mine = np.asarray(compiled(costs[None], np.ones((1, targets), bool)))[0]
    costs = np.asarray(costs)
    np.testing.assert_allclose(
        total(costs, mine), costs[rows, columns].sum(), rtol=1e-5
    )


def test_nothing_to_match():
    assert compiled(np.zeros((2, 5, 0), np.float32), np.zeros((2, 0), bool)).size == 0
    queries = compiled(np.zeros((2, 0, 3), np.float32), np.ones((2, 3), bool))
    np.testing.assert_array_equal(queries, np.full((2, 3), IGNORE))


def test_no_device_waits_for_another():
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXES))
    costs = np.random.default_rng(4).normal(size=(8, 9, 6)).astype(np.float32)
    valid = np.arange(48).reshape(8, 6) % 5 > 0
    placed = [jax.device_put(jnp.asarray(x), sharding) for x in (costs, valid)]
    with within(mesh):
        program = jax.jit(on_each_device(functools.partial(match)))
        program = program.lower(*placed).compile()
    text = program.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "permute"):
        assert collective not in text
    np.testing.assert_array_equal(program(*placed), compiled(costs, valid))
