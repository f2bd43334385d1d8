"""Every spatial resampling of the system, as a pair of small matrices.

Resizing an image is ``rows @ image @ columns.T``. As matrices, the resampling of a
picture that fills only part of a padded canvas is the same code with other numbers,
sliding windows are one product more (see ``inference``), and gradients are products
too.

The conventions are PyTorch's with ``align_corners=False`` and no anti-aliasing, which
``jax.image.resize`` does not offer for bicubic (a = -0.75, clamped borders) nor for
bilinear when shrinking.

``size_in`` and ``size_out`` are the part of the padded lengths that is real. They may
be traced integers, so one compilation serves every picture size; with plain integers
the matrices are NumPy constants.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.typing import Array, Float, Int

Size = int | Int[Array, ""]


def _namespace(*sizes: Size) -> types.ModuleType:
    return np if all(isinstance(size, int) for size in sizes) else jnp


def _source_positions(xp, length_out: int, size_out: Size, size_in: Size):
    """Where the centre of each output sample lies in the input, in input samples."""
    scale = xp.float32(size_in) / xp.float32(size_out)
    return (xp.arange(length_out, dtype=xp.float32) + 0.5) * scale - 0.5


def _taps(xp, indices, weights, length_in: int):
    hit = indices[:, None] == xp.arange(length_in)[None]
    return xp.where(hit, weights[:, None], xp.float32(0.0))


def bilinear_matrix(
    length_out: int,
    length_in: int,
    size_out: Size | None = None,
    size_in: Size | None = None,
) -> Float[Array | np.ndarray, "out in"]:
    """Linear interpolation from ``size_in`` to ``size_out`` samples."""
    size_out = length_out if size_out is None else size_out
    size_in = length_in if size_in is None else size_in
    xp = _namespace(size_out, size_in)
    low, high, fraction = bilinear_taps(length_out, size_out, size_in)
    return _taps(xp, low, 1 - fraction, length_in) + _taps(
        xp, high, fraction, length_in
    )


def bilinear_taps(length_out: int, size_out: Size, size_in: Size):
    """The two input samples of each output sample, and the weight of the second.

    For signals too long for a matrix of all pairs; see `bilinear_matrix`.
    """
    xp = _namespace(size_out, size_in)
    position = _source_positions(xp, length_out, size_out, size_in)
    position = xp.maximum(position, xp.float32(0.0))
    low = xp.floor(position)
    fraction = position - low
    low = xp.minimum(low.astype(xp.int32), size_in - 1)
    return low, xp.minimum(low + 1, size_in - 1), fraction


def bicubic_matrix(
    length_out: int,
    length_in: int,
    size_out: Size | None = None,
    *,
    antialias: bool = False,
) -> Float[Array | np.ndarray, "out in"]:
    """Cubic convolution (a = -0.75, indices clamped at the borders).

    With ``antialias``, as PyTorch and Pillow do it: a = -0.5, a kernel as wide as an
    output sample when shrinking, and weights normalised over what is inside.
    """
    size_out = length_out if size_out is None else size_out
    xp = _namespace(size_out)
    position = _source_positions(xp, length_out, size_out, length_in)
    if antialias:
        stretch = xp.maximum(xp.float32(length_in) / xp.float32(size_out), 1.0)
        samples = xp.arange(length_in, dtype=xp.float32)[None]
        weights = _cubic(xp, xp.abs(samples - position[:, None]) / stretch, -0.5)
        total = xp.sum(weights, axis=1, keepdims=True)
        # Beyond the end of the real samples there may be none.
        return weights / xp.where(total == 0.0, xp.float32(1.0), total)
    base = xp.floor(position)
    matrix = xp.zeros((length_out, length_in), xp.float32)
    for offset in (-1, 0, 1, 2):
        weights = _cubic(xp, xp.abs(position - (base + offset)), -0.75)
        index = xp.clip(base.astype(xp.int32) + offset, 0, length_in - 1)
        matrix = matrix + _taps(xp, index, weights, length_in)
    return matrix


def _cubic(xp, distance, a: float):
    """The cubic convolution kernel, zero from a distance of 2 on."""
    near = ((a + 2.0) * distance - (a + 3.0)) * distance**2 + 1.0
    far = a * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    weights = xp.where(distance <= 1.0, near, far)
    return xp.where(distance < 2.0, weights, 0.0).astype(xp.float32)


POSITION_RESIZES = {
    "bicubic": bicubic_matrix,
    "antialiased_bicubic": functools.partial(bicubic_matrix, antialias=True),
    "bilinear": bilinear_matrix,
}
"""How position tables are brought to other grids: the release and Hugging Face; timm,
and DINOv2 with registers; the official Segmenter."""


def adaptive_pool_matrix(
    num_bins: int, length_in: int, size_in: Size | None = None
) -> Float[Array | np.ndarray, "bins in"]:
    """Averages over bins floor(i n / bins) .. ceil((i + 1) n / bins) - 1, n real
    samples.

    Bins overlap by a sample where n is not a multiple of ``num_bins``.
    """
    size_in = length_in if size_in is None else size_in
    xp = _namespace(size_in)
    bins = xp.arange(num_bins)
    start = (bins * size_in) // num_bins
    end = -((-(bins + 1) * size_in) // num_bins)
    samples = xp.arange(length_in)[None]
    inside = (samples >= start[:, None]) & (samples < end[:, None])
    return inside / (end - start)[:, None].astype(xp.float32)


def adaptive_pool(
    grid: Float[Array, "B h w D"], bins: int, grid_size: Int[Array, "B 2"] | None
) -> Float[Array, "B bins bins D"]:
    """Averages over ``bins`` x ``bins`` parts of each example's real cells."""
    _, height, width, _ = grid.shape
    if grid_size is None:
        rows = adaptive_pool_matrix(bins, height)
        columns = adaptive_pool_matrix(bins, width)
    else:
        pool = adaptive_pool_matrix
        rows = jax.vmap(lambda n: pool(bins, height, n))(grid_size[:, 0])
        columns = jax.vmap(lambda n: pool(bins, width, n))(grid_size[:, 1])
    return resample(rows.astype(grid.dtype), columns.astype(grid.dtype), grid)


def resample(
    rows: Float[Array | np.ndarray, "*#B H h"],
    columns: Float[Array | np.ndarray, "*#B W w"],
    grid: Float[Array, "*#B h w D"],
) -> Float[Array, "*B H W D"]:
    """Applies a pair of resampling matrices to a feature grid."""
    grid = jnp.einsum("...Hh,...hwd->...Hwd", rows, grid)
    return jnp.einsum("...Ww,...Hwd->...HWd", columns, grid)


def blur_matrix(
    length_in: int, size_in: Size | None = None
) -> Float[Array | np.ndarray, "out in"]:
    """Every other sample after a blur of (1, 2, 1) / 4, reflected at the borders."""
    size_in = length_in if size_in is None else size_in
    xp = _namespace(size_in)
    centre = 2 * xp.arange(-(-length_in // 2))
    left = xp.abs(centre - 1)
    right = xp.minimum(centre + 1, 2 * size_in - centre - 3)
    matrix = xp.zeros((len(centre), length_in), xp.float32)
    for index, weight in ((left, 0.25), (centre, 0.5), (right, 0.25)):
        index = xp.clip(index, 0, size_in - 1)
        weights = xp.full(len(centre), weight, xp.float32)
        matrix = matrix + _taps(xp, index, weights, length_in)
    return matrix


def pair_matrix(
    length_in: int, size_in: Size | None = None
) -> Float[Array | np.ndarray, "out in"]:
    """Means of pairs of samples; an odd last one stays as it is."""
    size_in = length_in if size_in is None else size_in
    xp = _namespace(size_in)
    first = 2 * xp.arange(-(-length_in // 2))[:, None]
    samples = xp.arange(length_in)[None]
    inside = (samples >= first) & (samples <= first + 1) & (samples < size_in)
    return inside / xp.maximum(inside.sum(axis=1, keepdims=True), 1).astype(xp.float32)
