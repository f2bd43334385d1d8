"""Exact assignment of targets to object queries, inside the compiled step.

The cheapest one-to-one assignment by shortest augmenting paths (Jonker and Volgenant
1987). Targets are inserted one after the other; each step of the search for a path
looks at all queries at once. Padded targets are never looked at, which is what makes
it quick: a constant column of costs is the slowest there is for such an algorithm
(masks.md section 4). Costs that are not numbers neither hang it nor spoil the rest.

It loops as long as the slowest example of a batch needs. Call it within
`sharding.on_each_device`, or XLA asks all devices at every step.
"""

import jax
import jax.numpy as jnp

from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int

LARGEST_COST = 1e10
"""Costs are clamped to plus and minus this, and stand at this where they are NaN."""


def match(costs: Float[Array, "B N M"], valid: Bool[Array, "B M"]) -> Int[Array, "B M"]:
    """The query of each target, ``IGNORE`` for targets without one.

    The sum of ``costs`` over the pairs is the least possible. Every valid target has a
    query of its own; of more than N of them, N do.
    """
    costs = jnp.where(jnp.isnan(costs), LARGEST_COST, costs.astype(jnp.float32))
    costs = jnp.clip(costs, -LARGEST_COST, LARGEST_COST)
    return jax.vmap(_match)(costs, valid)


def _match(costs: Float[Array, "N M"], valid: Bool[Array, "M"]) -> Int[Array, "M"]:
    num_queries, num_targets = costs.shape
    if num_targets == 0 or num_queries == 0:
        return jnp.full(num_targets, IGNORE)
    order = jnp.argsort(~valid)  # valid targets first
    rows = costs.T[order]
    count = jnp.sum(valid, dtype=jnp.int32)
    if num_targets <= num_queries:
        query = _assign(rows, count, jnp.ones(num_queries, bool))
    else:
        query = _assign_either_way(rows, count)
    return jnp.full(num_targets, IGNORE).at[order].set(query)


def _assign_either_way(
    costs: Float[Array, "M N"], count: Int[Array, ""]
) -> Int[Array, "M"]:
    """`_assign` where targets may outnumber queries: then queries are the rows."""
    num_targets, num_queries = costs.shape
    crowded = count > num_queries
    here = jnp.arange(num_targets)
    square = jnp.pad(costs, [(0, 0), (0, num_targets - num_queries)])
    usable = jnp.where(crowded, here < count, here < num_queries)
    column = _assign(
        jnp.where(crowded, square.T, square), jnp.minimum(count, num_queries), usable
    )
    nowhere = jnp.where(column == IGNORE, num_targets, column)
    inverse = jnp.full(num_targets, IGNORE).at[nowhere].set(here, mode="drop")
    return jnp.where(crowded, inverse, column)


def _assign(
    costs: Float[Array, "R S"], count: Int[Array, ""], usable: Bool[Array, "S"]
) -> Int[Array, "R"]:
    """The column of each of the first ``count`` rows, ``IGNORE`` for the others.

    There are ``count`` usable columns at least.
    """
    num_rows, num_columns = costs.shape
    # All rows get a column, so what a row's costs have in common decides nothing. A row
    # of nothing but the largest cost would leave no digits for the others.
    costs = costs - jnp.min(costs, axis=1, keepdims=True)

    def insert(row, state):
        prices, row_of, column_of = state
        distances, scanned, previous, column, last = _shortest_path(
            costs, row, prices, row_of, column_of, usable
        )
        shorter = jnp.where(scanned, distances - last, 0.0)
        row_of, column_of = _augment(row, column, previous, row_of, column_of)
        return prices + shorter, row_of, column_of

    free = jnp.zeros(num_columns), jnp.full(num_columns, IGNORE)
    state = (*free, jnp.full(num_rows, IGNORE))
    return jax.lax.fori_loop(0, count, insert, state)[2]


def _shortest_path(costs, row, prices, row_of, column_of, usable):
    """Dijkstra from ``row`` to the nearest free column.

    Lengths are reduced costs: a pair's cost minus the prices of its column and of its
    row, the latter read from the pair that the row is in. Returns distances ``[S]`` and
    which of them are final, the row before each column, the column and its distance.
    """
    num_rows, num_columns = costs.shape
    columns = jnp.arange(num_columns)
    taken = (row_of != IGNORE) * num_columns

    def searching(state):
        *_, column, steps = state
        found = (column != IGNORE) & (row_of[column] == IGNORE)
        return ~found & (steps <= num_rows)

    def look(state):
        distances, scanned, previous, here, passed, _, steps = state
        through = passed + costs[here] - prices
        closer = (through < distances) & ~scanned & usable
        distances = jnp.where(closer, through, distances)
        previous = jnp.where(closer, here, previous)
        open_ = jnp.where(scanned, jnp.inf, distances)
        least = jnp.min(open_)
        # Of equally near columns a free one, then the first.
        nearest = jnp.where((open_ == least) & ~scanned, columns + taken, 2**30)
        column = jnp.min(nearest) % num_columns
        scanned = scanned | (columns == column)
        here = jnp.maximum(row_of[column], 0)
        passed = least - costs[here, column] + prices[column]
        return distances, scanned, previous, here, passed, column, steps + 1

    start = (
        jnp.full(num_columns, jnp.inf),
        jnp.zeros(num_columns, bool),
        jnp.full(num_columns, IGNORE),
        jnp.asarray(row, jnp.int32),
        jnp.float32(0.0),
        jnp.int32(IGNORE),
        jnp.int32(0),
    )
    distances, scanned, previous, _, _, column, _ = jax.lax.while_loop(
        searching, look, start
    )
    return distances, scanned, previous, column, distances[column]


def _augment(row, column, previous, row_of, column_of):
    """Gives each row on the path the column after it."""

    def going(state):
        *_, column, steps = state
        return (column != IGNORE) & (steps <= len(column_of))

    def step(state):
        row_of, column_of, column, steps = state
        here = previous[column]
        before = jnp.where(here == row, IGNORE, column_of[here])
        row_of = row_of.at[column].set(here)
        return row_of, column_of.at[here].set(column), before, steps + 1

    state = row_of, column_of, column, jnp.int32(0)
    return jax.lax.while_loop(going, step, state)[:2]
