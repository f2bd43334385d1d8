"""A depthwise convolution of 3 x 3: XLA's own, and our sum of shifted maps.

    python benchmarks/depthwise.py [--side=128] [--channels=768]

Milliseconds of a call, and of the gradients to map and kernel; medians of turns. That
both say the same, `tests/models/test_conv.py` holds against a third.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

from mlseg_jax.models.layers.conv import depthwise  # noqa: E402


def grouped(grid, kernel):
    return jax.lax.conv_general_dilated(
        *(grid, kernel, (1, 1), "VALID"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=grid.shape[-1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    shape = (1, args.side, args.side, args.channels)
    grid = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, args.channels))
    calls = {}
    for name, way in {"convolution": grouped, "shifted maps": depthwise}.items():
        energy = lambda grid, kernel, way=way: jnp.sum(way(grid, kernel) ** 2)  # noqa: E731
        calls[name, "forward"] = jax.jit(way)
        calls[name, "gradients"] = jax.jit(jax.grad(energy, (0, 1)))

    def seconds(call):
        return measure.seconds_of(lambda: jax.block_until_ready(call(grid, kernel)))

    turns = {key: functools.partial(seconds, call) for key, call in calls.items()}
    measure.alternate(turns, 1)  # compiles
    times = measure.medians(measure.alternate(turns, args.repetitions))
    rows = [
        {"way": name}
        | {what: 1e3 * times[name, what] for what in ("forward", "gradients")}
        for name in ("convolution", "shifted maps")
    ]
    measure.print_table(rows)


if __name__ == "__main__":
    main()
