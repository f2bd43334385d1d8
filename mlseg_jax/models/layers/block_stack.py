"""Stacks of equal blocks."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.distributed.sharding import gather_weights, pin_examples
from mlseg_jax.models.layers.transformer import Context
from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray, PyTree

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What a block keeps for its backward pass: everything, matrix products, nothing."""


def rematerialised(
    run_block: Callable, remat: str, *, in_scan: bool = False
) -> Callable:
    """The function of a block, keeping what a row of `REMAT_POLICIES` says."""
    if remat == "none":
        return run_block
    return jax.checkpoint(
        run_block, policy=REMAT_POLICIES[remat], prevent_cse=not in_scan
    )


def run_layers(
    layers: Sequence[nnx.Module],
    run: Callable,
    state: PyTree,
    rng: PRNGKeyArray | None = None,
    *,
    period: int = 1,
    scan: bool = False,
    remat: str = "none",
) -> tuple[PyTree, list]:
    """Equal layers, one after the other, whose weights are kept apart.

    Args:
      layers: those.
      run: from ``(layer, place, state, rng)``, ``place`` being the layer's number
        modulo ``period``, to the state after it and what is to be kept of it.
      state: before the first layer: arrays ``[B ...]``.
      rng: is split over the layers; ``None`` is evaluation.
      period: layers of one place see arrays of the same shapes.
      scan: one loop over rounds of ``period`` layers, which compiles once whatever the
        depth. Weights are stacked while it runs. Worth it in training of layers with
        their norms behind: unrolled, XLA fuses their gradients through the whole depth
        on CPU, which takes minutes to compile and computes much of it several times.
      remat: what is kept for the backward pass (`REMAT_POLICIES`).

    Returns:
      The state after the last layer, and what ``run`` kept of each.
    """
    rounds, first, kept = len(layers) // period, 0, []
    rngs = [None] * len(layers) if rng is None else jax.random.split(rng, len(layers))
    graph = nnx.split(layers[0])[0] if layers else None

    def run_one(place, state, weights, rng):
        state, keep = run(nnx.merge(graph, weights), place, state, rng)
        return jax.tree.map(pin_examples, state), keep

    def step(place: int, in_scan: bool) -> Callable:
        one = functools.partial(run_one, place)
        return rematerialised(one, remat, in_scan=in_scan)

    weights = [nnx.state(layer) for layer in layers]
    if scan and rounds > 1:
        steps = [step(place, True) for place in range(period)]
        first = rounds * period
        each = [(weights[i], rngs[i]) for i in range(first)]
        stacked = [
            jax.tree.map(lambda *x: jnp.stack(x), *each[place::period])
            for place in range(period)
        ]

        def run_round(state, layers):
            kept = []
            for step, layer in zip(steps, layers, strict=True):
                state, keep = step(state, *layer)
                kept.append(keep)
            return state, kept

        state, stacks = jax.lax.scan(run_round, state, stacked)
        kept = [
            jax.tree.map(lambda x, i=i: x[i], stack)
            for i in range(rounds)
            for stack in stacks
        ]
    for i in range(first, len(layers)):
        state, keep = step(i % period, False)(state, weights[i], rngs[i])
        kept.append(keep)
    return state, kept


class BlockStack(nnx.Module):
    """``depth`` equal blocks, unrolled or as one scan over stacked weights.

    A scan compiles once whatever the depth; unrolled, XLA may fuse across blocks.
    Drop path rises linearly from 0 to ``drop_path_rate`` over the depth; a tuple says
    the rate of each block instead.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        drop_path_rate: float | tuple = 0.0,
        scan: bool = False,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if scan:
            make = nnx.vmap(make_block, in_axes=0, out_axes=0)
            self.blocks = make(rngs.split(depth))
        else:
            self.blocks = nnx.List([make_block(rngs) for _ in range(depth)])
        self.depth = depth
        if not isinstance(drop_path_rate, tuple):
            rates = np.linspace(0.0, drop_path_rate, depth, dtype=np.float32)
            drop_path_rate = tuple(rates.tolist())
        self.drop_path_rates = drop_path_rate
        self.scan = scan
        self.remat = remat

    def __call__(
        self,
        tokens: Float[Array, "B *L D"],
        context: Context = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B *L D"]:
        return self.after((self.depth - 1,), tokens, context, rng)[0]

    def alone(
        self,
        function: Callable,
        *inputs: PyTree,
        dtype: DTypeLike | None,
        place: int = 0,
    ) -> PyTree:
        """``function(block, *inputs)`` of one block, not scanned: arrays ``[B ...]``.

        ``dtype`` is what kernels travel in; None is their own.
        """
        graph, weights = nnx.split(self.blocks[place])

        def run_block(weights, *inputs):
            block = nnx.merge(graph, gather_weights(weights, dtype))
            return jax.tree.map(pin_examples, function(block, *inputs))

        return rematerialised(run_block, self.remat)(weights, *inputs)

    def after(
        self,
        taps: tuple[int, ...],
        tokens: Float[Array, "B *L D"],
        context: Context = None,
        rng: PRNGKeyArray | None = None,
        *,
        first: int = 0,
    ) -> list[Float[Array, "B *L D"]]:
        """The tokens after each of the blocks ``taps``, from 0 and not falling.

        ``first`` is the block that sees ``tokens``.
        """
        graph, _ = nnx.split(self.blocks if self.scan else self.blocks[0])
        rates = np.asarray(self.drop_path_rates, np.float32)
        drops = bool(np.any(rates > 0.0))

        def run_block(tokens, weights, rate, rng):
            block = nnx.merge(graph, gather_weights(weights, tokens.dtype))
            tokens = block(tokens, context, rate if drops else 0.0, rng)
            return pin_examples(tokens)

        # A scan of one block is none once compiled.
        in_scan, alone = (
            rematerialised(run_block, self.remat, in_scan=x) for x in (True, False)
        )
        tokens = pin_examples(tokens)
        rngs = None if rng is None else jax.random.split(rng, self.depth)
        outputs, start = [], first
        for tap in taps:
            layers = slice(start, tap + 1)
            start = tap + 1
            if self.scan:
                stacked = (nnx.state(self.blocks), rates, rngs)
                if (layers.start, layers.stop) != (0, self.depth):
                    stacked = jax.tree.map(lambda x, part=layers: x[part], stacked)
                run = in_scan if layers.stop - layers.start > 1 else alone
                tokens, _ = jax.lax.scan(
                    lambda tokens, layer, run=run: (run(tokens, *layer), None),
                    tokens,
                    stacked,
                )
            else:
                for i in range(self.depth)[layers]:
                    block_rng = None if rngs is None else rngs[i]
                    weights, rate = nnx.state(self.blocks[i]), rates[i].tolist()
                    tokens = alone(tokens, weights, rate, block_rng)
            outputs.append(tokens)
        return outputs

    def macs(self, *size, depth: int = 0, **rules) -> Macs:
        """Of ``depth`` blocks; of all with 0, of all but one with -1."""
        block = self.blocks if self.scan else self.blocks[0]
        return (depth if depth > 0 else self.depth + depth) * block.macs(*size, **rules)
