"""Residual networks (He et al. 2016), plain and dilated (method.md section 9.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import gather_weights, pin_examples
from mlseg_jax.models.interfaces import AbstractBackbone, FeatureMap
from mlseg_jax.models.layers.block_stack import rematerialised
from mlseg_jax.models.layers.conv import ConvUnit, max_pool
from mlseg_jax.models.macs import Macs, activation
from mlseg_jax.typing import Array, DTypeLike, Float, Int, Length, PRNGKeyArray

EXPANSION = 4
"""How much wider a bottleneck's result is than the 3 x 3 convolution in its middle."""

STEMS = ("plain", "deep")


class ResNet(AbstractBackbone):
    """A stem of stride 4, then four stages of blocks; a map after each.

    Blocks are bottlenecks, or with ``bottleneck=False`` two convolutions of 3 x 3
    (ResNet-18 and 34), a quarter as wide. ``stem="plain"`` is one 7 x 7 convolution
    (torchvision's networks), ``"deep"`` three of 3 x 3 (V1c of Open-MMLab). Stages with
    a dilation keep their resolution. With ``contract_dilation`` the first block of such
    a stage has half of it.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 64,
        depths: tuple[int, ...],
        stem: str = "plain",
        strides: tuple[int, ...] = (1, 2, 2, 2),
        dilations: tuple[int, ...] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        bottleneck: bool = True,
        freeze_norms: bool = False,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"frozen": freeze_norms, "dtype": dtype, "rngs": rngs}
        if stem == "plain":
            units = [ConvUnit(3, embed_dim, 7, stride=2, **common)]
        else:
            half = embed_dim // 2
            units = [
                ConvUnit(3, half, 3, stride=2, **common),
                ConvUnit(half, half, 3, **common),
                ConvUnit(half, embed_dim, 3, **common),
            ]
        self.stem = nnx.List(units)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        block = Bottleneck if bottleneck else BasicBlock
        self.feature_dims = tuple(block.expansion * width for width in widths)
        inputs = (embed_dim, *self.feature_dims[:-1])
        self.stages = nnx.List(
            [
                Stage(
                    block,
                    *sizes,
                    contract_dilation=contract_dilation,
                    scan=scan,
                    remat=remat,
                    **common,
                )
                for sizes in zip(
                    inputs, widths, depths, strides, dilations, strict=True
                )
            ]
        )
        self.strides = strides
        self.dtype = dtype

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[FeatureMap, ...]:
        train = rng is not None
        features = FeatureMap(images.astype(self.dtype), image_size)
        for unit in self.stem:
            features = unit(features, train)
        features = max_pool(features, 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            features = stage(features, train)
            maps.append(features)
        return tuple(maps)

    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        """Every window of stride 2 rounds up."""
        length, lengths = _halve(_halve(length)), []
        for stride in self.strides:
            length = length if stride == 1 else -(-length // stride)
            lengths.append(length)
        return tuple(lengths)

    def macs(self, size: tuple[int, int]) -> Macs:
        count = Macs()
        for unit in self.stem:
            count += unit.macs(size)
            size = tuple(map(unit.conv.out_length, size))
        # Of the max-pooling.
        count += activation(*size, self.stages[0].first.conv1.conv.kernel.shape[-2])
        size = tuple(map(_halve, size))
        for stage in self.stages:
            count += stage.macs(size)
            size = tuple(map(stage.first.out_length, size))
        return count


def _halve(length: Length) -> Length:
    return -(-length // 2)


class BasicBlock(nnx.Module):
    """3 x 3 (which strides or dilates), 3 x 3; added to its input."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        frozen: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"frozen": frozen, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvUnit(
            in_features, width, 3, stride=stride, dilation=dilation, **common
        )
        self.conv2 = ConvUnit(
            width, width, 3, dilation=dilation, activation=None, **common
        )
        # A block begins as the identity.
        self.conv2.norm.scale[...] = jnp.zeros(width)
        self.shortcut = _shortcut(in_features, width, stride, common)

    def __call__(self, features: FeatureMap, train: bool) -> FeatureMap:
        branch = self.conv2(self.conv1(features, train), train)
        return _added(self.shortcut, features, branch, train)

    def out_length(self, length: Length) -> Length:
        return self.conv1.conv.out_length(length)

    def macs(self, size: tuple[int, int]) -> Macs:
        out = tuple(map(self.out_length, size))
        count = self.conv1.macs(size) + self.conv2.macs(out)
        if self.shortcut is not None:
            count += self.shortcut.macs(size)
        return count + activation(*out, self.conv2.conv.kernel.shape[-1])


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 (which strides or dilates), 1 x 1; added to its input."""

    expansion = EXPANSION

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        frozen: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"frozen": frozen, "dtype": dtype, "rngs": rngs}
        out_features = EXPANSION * width
        self.conv1 = ConvUnit(in_features, width, **common)
        self.conv2 = ConvUnit(
            width, width, 3, stride=stride, dilation=dilation, **common
        )
        self.conv3 = ConvUnit(width, out_features, activation=None, **common)
        # A block begins as the identity.
        self.conv3.norm.scale[...] = jnp.zeros(out_features)
        self.shortcut = _shortcut(in_features, out_features, stride, common)

    def __call__(self, features: FeatureMap, train: bool) -> FeatureMap:
        branch = self.conv3(self.conv2(self.conv1(features, train), train), train)
        return _added(self.shortcut, features, branch, train)

    def out_length(self, length: Length) -> Length:
        return self.conv2.conv.out_length(length)

    def macs(self, size: tuple[int, int]) -> Macs:
        count = self.conv1.macs(size) + self.conv2.macs(size)
        if self.shortcut is not None:
            count += self.shortcut.macs(size)
        size = tuple(map(self.out_length, size))
        return (
            count
            + self.conv3.macs(size)
            + activation(*size, self.conv3.conv.kernel.shape[-1])
        )


def _shortcut(in_features, out_features, stride, common) -> ConvUnit | None:
    """What brings a block's input to the shape of its result, where that changes."""
    if stride == 1 and in_features == out_features:
        return None
    return ConvUnit(in_features, out_features, stride=stride, activation=None, **common)


def _added(shortcut, features: FeatureMap, branch: FeatureMap, train) -> FeatureMap:
    if shortcut is not None:
        features = shortcut(features, train)
    return FeatureMap(jax.nn.relu(features.grid + branch.grid), branch.grid_size)


class Stage(nnx.Module):
    """A first block, which may change width and resolution, and equal ones after it.

    The equal blocks are unrolled or one scan over stacked weights; with ``remat`` each
    block is one rematerialisation (policies of `BlockStack`).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        in_features: int,
        width: int,
        depth: int,
        stride: int,
        dilation: int,
        *,
        contract_dilation: bool = False,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **common,
    ):
        def make_block(rngs: nnx.Rngs) -> BasicBlock | Bottleneck:
            return block(
                block.expansion * width,
                width,
                dilation=dilation,
                dtype=dtype,
                rngs=rngs,
                **common,
            )

        self.first = block(
            in_features,
            width,
            stride=stride,
            dilation=max(1, dilation // 2) if contract_dilation else dilation,
            dtype=dtype,
            rngs=rngs,
            **common,
        )
        self.num_equal = depth - 1
        self.scan = scan and depth > 1
        if self.scan:
            make = nnx.vmap(make_block, in_axes=0, out_axes=0)
            self.blocks = make(rngs.split(depth - 1))
        else:
            self.blocks = nnx.List([make_block(rngs) for _ in range(depth - 1)])
        self.remat = remat
        self.dtype = dtype

    def __call__(self, features: FeatureMap, train: bool) -> FeatureMap:
        blocks = [self.first, *([] if self.scan else self.blocks)]
        for block in blocks:
            run, weights = self._functional(block, train)
            features, statistics = run(features, weights)
            nnx.update(block, statistics)
        if self.scan:
            run, weights = self._functional(self.blocks, train)
            features, statistics = jax.lax.scan(run, features, weights)
            nnx.update(self.blocks, statistics)
        return features

    def macs(self, size: tuple[int, int]) -> Macs:
        count = self.first.macs(size)
        if self.num_equal == 0:
            return count
        size = tuple(map(self.first.out_length, size))
        block = self.blocks if self.scan else self.blocks[0]
        return count + self.num_equal * block.macs(size)

    def _functional(
        self, block: BasicBlock | Bottleneck, train: bool
    ) -> tuple[Callable[..., tuple], nnx.State]:
        """A pure function of features and weights, and the weights.

        Also returns the running averages: they are not to be changed across the border
        of a scan or a rematerialisation.
        """
        graph, weights = nnx.split(block)

        def run(features: FeatureMap, weights: nnx.State):
            block = nnx.merge(graph, gather_weights(weights, self.dtype))
            out = block(features, train)
            out = FeatureMap(pin_examples(out.grid), out.grid_size)
            return out, nnx.state(block, nnx.BatchStat)

        return rematerialised(run, self.remat, in_scan=self.scan), weights
