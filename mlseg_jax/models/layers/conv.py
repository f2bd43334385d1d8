"""Convolutions and pooling of feature maps, exact on a padded canvas.

Before a window looks at its neighbours, what lies outside the picture becomes zero, as
the border of a picture does in PyTorch: so a picture's features do not depend on the
canvas it lies on. What is outside *after* a layer is finite and means nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.norm import BatchNorm
from mlseg_jax.models.layers.resize import bilinear_matrix, resample
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.typing import Array, DTypeLike, Float, Length

kaiming_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
"""PyTorch's ``kaiming_normal_(mode="fan_out")``, the default of residual networks."""


def out_length(
    length: Length, window: int, stride: int, padding: int, dilation: int = 1
) -> Length:
    """Rows (or columns) after a window has slid over ``length`` of them."""
    return (length + 2 * padding - dilation * (window - 1) - 1) // stride + 1


def mask_outside(features: FeatureMap) -> FeatureMap:
    """The same map with zeros on the padding of its canvas."""
    if features.grid_size is None:
        return features
    return FeatureMap(_fill(features, 0.0), features.grid_size)


def _fill(features: FeatureMap, value: float) -> Array:
    if features.grid_size is None:
        return features.grid
    fill = jnp.asarray(value, features.grid.dtype)
    return jnp.where(features.mask[..., None], features.grid, fill)


class Conv(nnx.Module):
    """A square convolution, NHWC, padded with zeros on all sides.

    ``padding`` is by default what keeps the size at stride 1. The kernel is ``[window
    window in/groups out]``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = kaiming_init,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (window, window, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.window = window
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (window - 1) // 2 if padding is None else padding
        self.groups = groups
        self.dtype = dtype

    def __call__(self, features: FeatureMap) -> FeatureMap:
        kernel, stride = self.kernel[...].astype(self.dtype), self.stride
        if self.window == 1 and self.padding == 0 and self.groups == 1:
            # A matrix product, which needs no zeros around the picture.
            grid = features.grid[:, ::stride, ::stride].astype(self.dtype)
            grid = jnp.einsum("bhwd,de->bhwe", grid, kernel[0, 0])
        elif kernel.shape[2:] == (1, self.groups):
            around = (self.padding, self.padding)
            grid = _fill(features, 0.0).astype(self.dtype)
            grid = jnp.pad(grid, ((0, 0), around, around, (0, 0)))
            grid = depthwise(grid, kernel, stride, self.dilation)
        else:
            grid = jax.lax.conv_general_dilated(
                _fill(features, 0.0).astype(self.dtype),
                kernel,
                window_strides=(stride, stride),
                padding=[(self.padding, self.padding)] * 2,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.bias is not None:
            grid = grid + self.bias[...].astype(self.dtype)[None, None, None]
        return FeatureMap(grid, self.out_length(features.grid_size))

    def out_length(self, length: Length | None) -> Length | None:
        """Rows (or columns) of the result; ``None`` stays ``None``."""
        if length is None:
            return None
        return out_length(length, self.window, self.stride, self.padding, self.dilation)

    def macs(self, size: tuple[int, int]) -> Macs:
        """For a map of so many rows and columns."""
        rows, columns = map(self.out_length, size)
        # The kernel may be a stack of them.
        return product(rows, columns, *self.kernel.shape[-4:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    grid: Float[Array, "B H W C"],
    kernel: Float[Array, "n n 1 C"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "B h w C"]:
    """Each channel by a window of its own, without padding: a sum of shifted maps.

    XLA makes one loop over the map of it; the gradient to the kernel goes place by
    place, so that no map is kept for each. XLA's own convolution of as many groups as
    channels takes 10 times as long on a processor, its gradients 18 times (356 and 36,
    3,087 and 174 ms for 768 channels of 128 x 128: benchmarks/depthwise.py).
    """
    return _sum_of_shifted(grid, kernel, stride, dilation)


def _sum_of_shifted(grid, kernel, stride, dilation) -> Float[Array, "B h w C"]:
    window = kernel.shape[0]
    parts = (
        _shifted(grid, window, i, j, stride, dilation)
        * kernel[None, i : i + 1, j].astype(jnp.float32)
        for i, j in itertools.product(range(window), repeat=2)
    )
    return sum(parts).astype(grid.dtype)


def _shifted(grid, window, i, j, stride, dilation) -> Float[Array, "B h w C"]:
    """What the window's place (i, j), which may be traced, lies on, in float32."""
    batch, *lengths, width = grid.shape
    reach = [
        stride * (out_length(length, window, stride, 0, dilation) - 1) + 1
        for length in lengths
    ]
    start = (0, i * dilation, j * dilation, 0)
    part = jax.lax.dynamic_slice(grid, start, (batch, *reach, width))
    return part[:, ::stride, ::stride].astype(jnp.float32)


def _depthwise_forward(grid, kernel, stride, dilation):
    return _sum_of_shifted(grid, kernel, stride, dilation), (grid, kernel)


def _depthwise_backward(stride, dilation, inputs, out):
    grid, kernel = inputs
    window = kernel.shape[0]
    _, to_grid = jax.vjp(
        lambda grid: _sum_of_shifted(grid, kernel, stride, dilation), grid
    )

    def at(place):
        part = _shifted(grid, window, *place, stride, dilation)
        # Over the batch once for all places: devices sum up, and not in a loop.
        return jnp.sum(part * out.astype(jnp.float32), axis=(1, 2))

    places = jnp.stack(jnp.divmod(jnp.arange(window**2), window), axis=1)
    to_kernel = jnp.sum(jax.lax.map(at, places), axis=1).reshape(kernel.shape)
    return *to_grid(out), to_kernel.astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class ConvUnit(nnx.Module):
    """Convolution without bias, batch norm and, unless ``None``, an activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: int = 1,
        *,
        activation: Callable[[Array], Array] | None = jax.nn.relu,
        frozen: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **conv,
    ):
        self.conv = Conv(
            in_features,
            out_features,
            window,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
            **conv,
        )
        self.norm = BatchNorm(out_features, frozen=frozen)
        self.activation = activation

    def __call__(self, features: FeatureMap, train: bool) -> FeatureMap:
        features = self.conv(features)
        grid = self.norm(features.grid, train)
        if self.activation is not None:
            grid = self.activation(grid)
        return FeatureMap(grid, features.grid_size)

    def macs(self, size: tuple[int, int]) -> Macs:
        count = self.conv.macs(size)
        if self.activation is None:
            return count
        # The paper's counter knew no synchronised batch norm.
        shape = (*map(self.conv.out_length, size), self.conv.kernel.shape[-1])
        return count + activation(*shape)


def max_pool(
    features: FeatureMap, window: int, *, stride: int, padding: int = 0
) -> FeatureMap:
    """The largest value in each window; padding never is."""
    grid = _fill(features, -math.inf)
    grid = jax.lax.reduce_window(
        grid,
        # Not a traced value, or XLA's own gradient is not found.
        np.asarray(-math.inf, grid.dtype),
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        [(0, 0), (padding, padding), (padding, padding), (0, 0)],
    )
    size = features.grid_size
    if size is not None:
        size = out_length(size, window, stride, padding)
    # Nothing infinite stays outside, where a weight of zero would make it NaN.
    return mask_outside(FeatureMap(grid, size))


def resize_like(features: FeatureMap, like: FeatureMap) -> FeatureMap:
    """The features, interpolated bilinearly to the grid of another map."""
    same_grid = features.grid.shape[1:3] == like.grid.shape[1:3]
    if same_grid and features.grid_size is like.grid_size:
        return features
    lengths = zip(like.grid.shape[1:3], features.grid.shape[1:3], strict=True)
    matrices = [
        _resize_matrix(*length, axis, features.grid_size, like.grid_size)
        for axis, length in enumerate(lengths)
    ]
    grid = features.grid
    matrices = [matrix.astype(grid.dtype) for matrix in matrices]
    return FeatureMap(resample(*matrices, grid), like.grid_size)


def _resize_matrix(length_out, length_in, axis, size_in, size_out):
    """One matrix for all examples, or one for each where they fill canvases."""
    if size_out is None:
        return bilinear_matrix(length_out, length_in)
    if size_in is None:
        size_in = jnp.full_like(size_out, length_in)
    make = functools.partial(bilinear_matrix, length_out, length_in)
    return jax.vmap(make)(size_out[:, axis], size_in[:, axis])


def nearest_like(features: FeatureMap, like: FeatureMap) -> FeatureMap:
    """The features on the grid of another map, each cell repeated (PyTorch's
    nearest).
    """
    grid, shape = features.grid, like.grid.shape[1:3]
    for axis, length in enumerate(shape):
        cells = jnp.arange(length)
        if like.grid_size is None:
            index = cells * grid.shape[axis + 1] // length
            grid = jnp.take(grid, index, axis=axis + 1)
            continue
        size = features.grid_size[:, axis, None]
        index = cells[None] * size // like.grid_size[:, axis, None]
        index = jnp.minimum(index, size - 1)
        take = functools.partial(jnp.take, axis=axis)
        grid = jax.vmap(take)(grid, index)
    return FeatureMap(grid, like.grid_size)


def average_pool(features: FeatureMap) -> FeatureMap:
    """The mean over the real part of each picture, as a map of one cell."""
    total = jnp.sum(_fill(features, 0.0), axis=(1, 2), keepdims=True, dtype=jnp.float32)
    if features.grid_size is None:
        count = jnp.float32(math.prod(features.grid.shape[1:3]))
    else:
        count = jnp.prod(features.grid_size, axis=1).reshape(-1, 1, 1, 1)
    return FeatureMap((total / count).astype(features.grid.dtype))
