"""Stacks of equal blocks."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from mlseg_jax.distributed.sharding import gather_weights, pin_examples
from mlseg_jax.models.layers.transformer import Context
from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import Array, Float, PRNGKeyArray

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


def run_layer(layer: nnx.Module, *args, remat: str) -> Array:
    """One layer on ``args``, made again in the backward pass as ``remat`` says."""
    graph, weights = nnx.split(layer)
    run = rematerialised(lambda weights, *args: nnx.merge(graph, weights)(*args), remat)
    return pin_examples(run(weights, *args))


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
        if isinstance(drop_path_rate, float):
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

        run_block = rematerialised(run_block, self.remat, in_scan=self.scan)
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
                tokens, _ = jax.lax.scan(
                    lambda tokens, layer: (run_block(tokens, *layer), None),
                    tokens,
                    stacked,
                )
            else:
                for i in range(self.depth)[layers]:
                    block_rng = None if rngs is None else rngs[i]
                    weights, rate = nnx.state(self.blocks[i]), rates[i].tolist()
                    tokens = run_block(tokens, weights, rate, block_rng)
            outputs.append(tokens)
        return outputs

    def macs(self, *size, depth: int = 0, **rules) -> Macs:
        """Of ``depth`` blocks; of all with 0, of all but one with -1."""
        block = self.blocks if self.scan else self.blocks[0]
        return (depth if depth > 0 else self.depth + depth) * block.macs(*size, **rules)
