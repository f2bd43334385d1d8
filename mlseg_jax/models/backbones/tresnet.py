"""TResNet (Ridnik et al. 2021), a backbone of Query2Label (method.md section 8.1).

In training its batch norms are the plain ones of which the release's in-place ones are
a memory-saving form; whoever converts its weights takes their scales as |scale| + 1e-5.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import gather_weights, pin_examples
from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap
from mlseg_jax.models.layers.block_stack import rematerialised
from mlseg_jax.models.layers.conv import Conv, ConvUnit, average_pool
from mlseg_jax.models.layers.patches import patchify
from mlseg_jax.models.layers.resize import blur_matrix, pair_matrix, resample
from mlseg_jax.models.macs import Macs, activation, norm, product
from mlseg_jax.typing import Array, DTypeLike, Float, Int, Length, PRNGKeyArray

PATCH_SIZE = 4
EXPANSION = 4
"""How much wider a bottleneck's result is than its middle."""


def leaky_relu(slope: float):
    return functools.partial(jax.nn.leaky_relu, negative_slope=slope)


class TResNet(AbstractBackbone):
    """Patches of 4 x 4 pixels, then four stages of strides 4, 8, 16 and 32.

    ``bottlenecks`` says for each stage whether its blocks are bottlenecks or basic; all
    stages but the last one have squeeze-and-excitation.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        bottlenecks: tuple[bool, ...],
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.stem = ConvUnit(
            PATCH_SIZE**2 * 3, embed_dim, 3, activation=leaky_relu(1e-2), **common
        )
        stages, width = [], embed_dim
        for i, (depth, is_bottleneck) in enumerate(
            zip(depths, bottlenecks, strict=True)
        ):
            blocks = []
            for j in range(depth):
                block = Block(
                    width,
                    embed_dim * 2**i,
                    is_bottleneck=is_bottleneck,
                    halves=i > 0 and j == 0,
                    has_gate=i < len(depths) - 1,
                    **common,
                )
                width = block.out_features
                blocks.append(block)
            stages.append(Stage(blocks))
        self.stages = nnx.List(stages)
        self.feature_dims = tuple(stage.blocks[-1].out_features for stage in stages)
        self.remat = remat
        self.dtype = dtype

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        train = rng is not None
        size = None if image_size is None else -(-image_size // PATCH_SIZE)
        patches = patchify(images, PATCH_SIZE).astype(self.dtype)
        features, maps = self.stem(FeatureMap(patches, size), train), []
        for stage in self.stages:
            for block in stage.blocks:
                features = self._run(block, features, train)
            maps.append(features)
        return tuple(maps)

    def _run(self, block: "Block", features: FeatureMap, train: bool) -> FeatureMap:
        """One block, whose running averages must not change inside a `remat`."""
        graph, weights = nnx.split(block)

        def run(features: FeatureMap, weights: nnx.State):
            block = nnx.merge(graph, gather_weights(weights, self.dtype))
            out = block(features, train)
            out = FeatureMap(pin_examples(out.grid), out.grid_size)
            return out, nnx.state(block, nnx.BatchStat)

        run = rematerialised(run, self.remat)
        features, statistics = run(features, weights)
        nnx.update(block, statistics)
        return features

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        lengths = [-(-length // PATCH_SIZE)]
        for _ in self.stages[1:]:
            lengths.append(-(-lengths[-1] // 2))
        return tuple(lengths)

    def macs(self, size: tuple[int, int]) -> Macs:
        grids = list(zip(*map(self.grid_lengths, size), strict=True))
        count = _unit_macs(self.stem, *grids[0]) + activation(
            *grids[0], self.stem.conv.kernel.shape[-1]
        )
        for stage, before, grid in zip(
            self.stages, grids[:1] + grids[:-1], grids, strict=True
        ):
            for i, block in enumerate(stage.blocks):
                count += block.macs(before if i == 0 else grid, grid)
        return count


class Stage(nnx.Module):
    def __init__(self, blocks: list):
        self.blocks = nnx.List(blocks)


class Block(nnx.Module):
    """A residual block: basic (3 x 3, 3 x 3) or a bottleneck (1 x 1, 3 x 3, 1 x 1).

    One that ``halves`` the resolution blurs before it drops every other cell, and its
    shortcut averages cells.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        is_bottleneck: bool,
        halves: bool,
        has_gate: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        unit = functools.partial(ConvUnit, dtype=dtype, rngs=rngs)
        leaky = leaky_relu(1e-3)
        self.out_features = out = width * (EXPANSION if is_bottleneck else 1)
        self.conv1 = unit(
            in_features, width, 1 if is_bottleneck else 3, activation=leaky
        )
        self.conv2 = unit(width, width, 3, activation=leaky if is_bottleneck else None)
        self.conv3 = unit(width, out, activation=None) if is_bottleneck else None
        last = self.conv3 if is_bottleneck else self.conv2
        last.norm.scale[...] = jnp.zeros(out)  # a block begins as the identity
        hidden = max(out // (8 if is_bottleneck else 4), 64)
        make_gate = functools.partial(Gate, width, hidden, dtype=dtype, rngs=rngs)
        self.gate = make_gate() if has_gate else None
        is_changed = halves or in_features != out
        self.shortcut = unit(in_features, out, activation=None) if is_changed else None
        self.halves = halves

    def __call__(self, features: FeatureMap, train: bool) -> FeatureMap:
        branch = self.conv1(features, train)
        if self.conv3 is None:
            branch = self.conv2(self._blurred(branch), train)
        else:
            branch = self._blurred(self.conv2(branch, train))
        if self.gate is not None:
            branch = self.gate(branch)
        if self.conv3 is not None:
            branch = self.conv3(branch, train)
        if self.halves:
            features = _halve(features, pair_matrix)
        if self.shortcut is not None:
            features = self.shortcut(features, train)
        return FeatureMap(jax.nn.relu(features.grid + branch.grid), branch.grid_size)

    def _blurred(self, features: FeatureMap) -> FeatureMap:
        return _halve(features, blur_matrix) if self.halves else features

    def macs(self, before: tuple[int, int], after: tuple[int, int]) -> Macs:
        """The blur and the means count as elementwise work: not at all."""
        is_basic = self.conv3 is None
        count = _unit_macs(self.conv1, *before)
        count += _unit_macs(self.conv2, *(after if is_basic else before))
        width = self.conv1.conv.kernel.shape[-1]
        count += activation(*before, width) + activation(*after, self.out_features)
        if not is_basic:
            count += _unit_macs(self.conv3, *after) + activation(*before, width)
        if self.gate is not None:
            count += self.gate.macs()
        if self.shortcut is not None:
            count += _unit_macs(self.shortcut, *after)
        return count


class Gate(nnx.Module):
    """Squeeze and excitation: channels are weighed by what is in the picture."""

    def __init__(self, features: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.squeeze = Conv(features, hidden, dtype=dtype, rngs=rngs)
        self.excite = Conv(hidden, features, dtype=dtype, rngs=rngs)

    def __call__(self, features: FeatureMap) -> FeatureMap:
        hidden = self.squeeze(average_pool(features))
        hidden = FeatureMap(jax.nn.relu(hidden.grid))
        weights = jax.nn.sigmoid(self.excite(hidden).grid)
        return FeatureMap(features.grid * weights, features.grid_size)

    def macs(self) -> Macs:
        features, hidden = self.squeeze.kernel.shape[-2:]
        return 2 * product(features, hidden)


def _unit_macs(unit: ConvUnit, height: int, width: int) -> Macs:
    kernel = unit.conv.kernel.shape
    return product(height * width, *kernel) + norm(height, width, kernel[-1])


def _halve(features: FeatureMap, matrix) -> FeatureMap:
    """Every other cell of each side, made of its neighbours by ``matrix``."""
    grid, size = features.grid, features.grid_size
    _, height, width, _ = grid.shape
    if size is None:
        rows, columns = matrix(height), matrix(width)
    else:
        rows = jax.vmap(functools.partial(matrix, height))(size[:, 0])
        columns = jax.vmap(functools.partial(matrix, width))(size[:, 1])
        size = -(-size // 2)
    grid = resample(
        jnp.asarray(rows, grid.dtype), jnp.asarray(columns, grid.dtype), grid
    )
    return FeatureMap(grid, size)
