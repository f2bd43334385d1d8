"""Layer normalisation over the last axis, batch normalisation over all others."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import on_every_device, split_examples
from mlseg_jax.typing import Array, Float


class LayerNorm(nnx.Module):
    """Layer norm with float32 statistics and a gradient that is quick on CPU.

    XLA on CPU reduces over rows slowly; the same sums as a product with a vector of
    ones run at the speed of a matrix product.
    """

    def __init__(self, features: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        rows = x.reshape(-1, x.shape[-1])
        out = _layer_norm(rows, self.scale[...], self.bias[...], self.epsilon)
        return out.reshape(x.shape)


def _row_mean(x: Array) -> Array:
    ones = jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], jnp.float32)
    return jnp.matmul(x, ones, precision=jax.lax.Precision.HIGHEST)


def _column_sum(x: Array) -> Array:
    ones = jnp.ones((1, x.shape[0]), jnp.float32)
    return jnp.matmul(ones, x, precision=jax.lax.Precision.HIGHEST)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalises rows ``[n D]``."""
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean = _row_mean(wide)
    centred = wide - mean
    inverse_std = jax.lax.rsqrt(_row_mean(centred * centred) + epsilon)
    out = (centred * inverse_std * scale[None] + bias[None]).astype(x.dtype)
    return out, (x, mean, inverse_std, scale)


def _backward(epsilon, residuals, grad):
    del epsilon
    x, mean, inverse_std, scale = residuals
    grad = grad.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse_std
    scaled = grad * scale[None]
    correction = _row_mean(scaled) + normalised * _row_mean(scaled * normalised)
    x_grad = (scaled - correction) * inverse_std
    return (x_grad.astype(x.dtype), _column_sum(grad * normalised), _column_sum(grad))


_layer_norm.defvjp(_forward, _backward)


class BatchNorm(nnx.Module):
    """Normalises every channel over the batch; PyTorch's rules.

    In training by the mean and the biased variance of the whole global batch: under
    ``jit`` a sum over a split axis is a sum over all devices, so statistics are always
    synchronised. The running averages take ``momentum`` of each batch's mean and
    unbiased variance; they alone count in evaluation, and in training as well where
    ``frozen``. All statistics are float32. Training takes full canvases: padding would
    be counted.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        frozen: bool = False,
    ):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.epsilon = epsilon
        self.momentum = momentum
        self.frozen = frozen

    def __call__(self, x: Float[Array, "*B D"], train: bool) -> Float[Array, "*B D"]:
        rows = x.reshape(-1, x.shape[-1])
        scale, bias, mean, var = (
            v[...] for v in (self.scale, self.bias, self.mean, self.var)
        )
        if self.frozen or not train:
            factor = scale * jax.lax.rsqrt(var + self.epsilon)
            # The mean first: both may be large, and their difference small.
            centred = rows.astype(jnp.float32) - mean[None]
            out = centred * factor[None] + bias[None]
            return out.astype(x.dtype).reshape(x.shape)
        out, batch_mean, batch_var = _batch_norm(
            split_examples(x), scale, bias, self.epsilon
        )
        count = rows.shape[0]
        unbiased = batch_var * (count / max(count - 1, 1))
        self.mean[...] = mean + self.momentum * (batch_mean - mean)
        self.var[...] = var + self.momentum * (unbiased - var)
        return out.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
    """Normalises the columns of all parts ``[parts n D]`` alike; also their mean and
    variance, which carry no gradient. Keeps nothing of the size of ``x`` for the
    backward pass but ``x``.
    """
    return _batch_forward(x, scale, bias, epsilon)[0]


def _batch_forward(x, scale, bias, epsilon):
    mean, var = _batch_moments(x.astype(jnp.float32))
    inverse_std = jax.lax.rsqrt(var + epsilon)
    centred = x.astype(jnp.float32) - mean[None, None]
    out = centred * (scale * inverse_std)[None, None] + bias[None, None]
    return (out.astype(x.dtype), mean, var), (x, mean, inverse_std, scale)


def _batch_moments(x):
    """Mean and biased variance of the columns of ``[parts n D]`` float32.

    Each part about its own mean, then all about theirs (Chan et al. 1979): no
    difference of large numbers anywhere, whatever the mean. A part is what one device
    holds, so that devices talk once, about two numbers a column.
    """
    mean = jnp.mean(x, axis=1)
    centred = x - mean[:, None]
    # What rounding left of the mean of many rows.
    rest = jnp.mean(centred, axis=1)
    square = jnp.mean(centred * centred, axis=1) - rest * rest
    parts = on_every_device(jnp.stack([mean + rest, square], axis=1))
    mean, square = parts[:, 0], parts[:, 1]
    total = jnp.mean(mean, axis=0)
    return total, jnp.mean(square + (mean - total[None]) ** 2, axis=0)


def _batch_backward(epsilon, residuals, grads):
    del epsilon
    x, mean, inverse_std, scale = residuals
    grad = grads[0].astype(jnp.float32)
    count = x.shape[0] * x.shape[1]
    normalised = (x.astype(jnp.float32) - mean[None, None]) * inverse_std[None, None]
    grad_sum = jnp.sum(grad, axis=(0, 1))
    product_sum = jnp.sum(grad * normalised, axis=(0, 1))
    mean_grad, mean_product = grad_sum / count, product_sum / count
    correction = mean_grad[None, None] + normalised * mean_product[None, None]
    x_grad = (grad - correction) * (scale * inverse_std)[None, None]
    return x_grad.astype(x.dtype), product_sum, grad_sum


_batch_norm.defvjp(_batch_forward, _batch_backward)
