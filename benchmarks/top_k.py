"""Ways to find the K best of C label scores, in microseconds.

    python benchmarks/top_k.py

All but ``approx_max_k`` are exact, ties to the lower class id, and are checked against
`lax.top_k`; ``np.argpartition`` only finds the K, and does not sort them.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402


def by_sort(x, k: int):
    ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    return tuple(y[:, :k] for y in jax.lax.sort((-x, ids), num_keys=1))


def by_threshold(x, k: int):
    """Counts to find the K-th value, bit by bit, then sorts K of the C."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    keys = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = jnp.full((x.shape[0], 1), -(2**31), jnp.int32)
    for bit in range(31, -1, -1):
        step = jnp.int32(-(2**31) if bit == 31 else 2**bit)
        enough = jnp.sum(keys >= low + step, axis=1, keepdims=True) >= k
        low = jnp.where(enough, low + step, low)
    place = jnp.cumsum(keys > low, axis=1)
    above = place[:, -1:]
    equal = keys == low
    place = jnp.where(equal, above + jnp.cumsum(equal, axis=1), place) - 1
    place = jnp.where(keys >= low, place, k)
    rows = jnp.arange(x.shape[0])[:, None]
    ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    ids = jnp.zeros((x.shape[0], k), jnp.int32).at[rows, place].set(ids, mode="drop")
    best = jnp.take_along_axis(x, ids, axis=1)
    order = jnp.argsort(-best, axis=1, stable=True)
    return tuple(jnp.take_along_axis(y, order, axis=1) for y in (best, ids))


def top_k_row(num_classes: int, k: int, batch: int, repetitions: int = 50) -> dict:
    """Microseconds that each way takes, in the median over turns."""
    random = np.random.default_rng(0)
    scores = jnp.asarray(random.standard_normal((batch, num_classes)), jnp.float32)

    ways = {
        "lax.top_k": lambda x: jax.lax.top_k(x, k),
        "lax.sort": lambda x: by_sort(x, k),
        "threshold": lambda x: by_threshold(x, k),
        "approx_max_k": lambda x: jax.lax.approx_max_k(x, k),
    }
    ways = {name: jax.jit(way) for name, way in ways.items()}
    truth = ways["lax.top_k"](scores)
    for name in ("lax.sort", "threshold"):
        assert (ways[name](scores)[1] == truth[1]).all(), name
    jax.block_until_ready(ways["approx_max_k"](scores))
    turns = {
        name: lambda way=way: measure.seconds_of(
            lambda: jax.block_until_ready(way(scores))
        )
        for name, way in ways.items()
    }
    host = np.asarray(scores)
    turns["np.argpartition"] = lambda: measure.seconds_of(
        lambda: np.argpartition(-host, k, axis=1)
    )
    middle = measure.medians(measure.alternate(turns, repetitions))
    row = {f"{name} us": round(t * 1e6, 1) for name, t in middle.items()}
    return {"C": num_classes, "K": k, "batch": batch, **row}


if __name__ == "__main__":
    measure.print_table([top_k_row(10_000, 100, batch) for batch in (1, 8)])
