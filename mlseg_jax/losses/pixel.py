"""Cross-entropies of pixels, fused with the upsampling of the logits.

Logits live on the feature grid; labels on the pixels. The upsampled logits, the largest
array of a usual implementation, exist for a strip of rows at a time. The backward pass
makes them again and needs the log-sum-exp of each pixel alone, one number, to go on.
"""

import jax
import jax.numpy as jnp

from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.typing import IGNORE, Array, Float, Int

STRIP_BYTES = 2 * 2**20
"""Upsampled logits of one example that exist at a time.

On CPU two megabytes stay in the cache; with eight the loss takes three times as long.
"""


def upsampled_cross_entropy(
    logits: Float[Array, "B h w K"], labels: Int[Array, "B H W"]
) -> Float[Array, "B H W"]:
    """Softmax cross-entropy of bilinearly upsampled logits; 0 where ``IGNORE``.

    ``labels`` number the last axis of ``logits``: ranks under a selection, classes in
    the baseline. Upsampling as PyTorch's ``interpolate(align_corners=False)``.
    """
    grid = logits.astype(jnp.float32).transpose(0, 3, 1, 2)
    return _cross_entropy(grid, labels)


def nearest_class_cross_entropy(
    logits: Float[Array, "B h w C"], labels: Int[Array, "B H W"], num_nearest: int
) -> Float[Array, "B H W"]:
    """ESSNet's: each pixel's class among those that score best there (method.md 10.2).

    The pixel's class and the ``num_nearest`` best are compared. Where the class is one
    of these, the class before it takes that place, as in the release, even if it is
    one of them too (and then counts twice); before class 0 stands class 0.
    """
    grid = logits.astype(jnp.float32).transpose(0, 3, 1, 2)
    columns, strips = _strips(grid, labels)
    classes = jnp.arange(grid.shape[1])[None, :, None, None]

    def strip(grid: Array, rows: Array, labels: Array) -> Array:
        pixels = _upsample(grid, rows, columns)
        fixed = jax.lax.stop_gradient(pixels)
        count = min(num_nearest, pixels.shape[1])
        least = jax.lax.top_k(jnp.moveaxis(fixed, 1, -1), count)[0][..., -1]
        near = fixed >= least[:, None]
        truth = labels[:, None] == classes
        before = jnp.maximum(labels - 1, 0)[:, None] == classes
        found = jnp.any(near & truth, axis=1, keepdims=True)
        # How often each class is compared with.
        times = (truth | near).astype(jnp.float32) + (found & before)
        picked = jnp.sum(jnp.where(truth, pixels, 0.0), axis=1)
        loss = jax.nn.logsumexp(pixels, axis=1, b=times) - picked
        return jnp.where(labels == IGNORE, 0.0, loss)

    made_again = jax.checkpoint(strip, prevent_cse=False)
    return _join(jax.lax.map(lambda part: made_again(grid, *part), strips), labels)


@jax.custom_vjp
def _cross_entropy(grid, labels):
    """``[B K h w], [B H W]`` to the loss of each pixel ``[B H W]``."""
    return _forward(grid, labels)[0]


def _forward(grid, labels):
    def strip(rows, labels):
        pixels = _upsample(grid, rows, columns)
        log_sum = jax.nn.logsumexp(pixels, axis=1)
        picked = jnp.take_along_axis(pixels, jnp.maximum(labels, 0)[:, None], axis=1)
        return jnp.where(labels == IGNORE, 0.0, log_sum - picked[:, 0]), log_sum

    columns, strips = _strips(grid, labels)
    losses, log_sums = jax.lax.map(lambda strips: strip(*strips), strips)
    return _join(losses, labels), (grid, labels, log_sums)


def _backward(residuals, loss_grad):
    grid, labels, log_sums = residuals
    ranks = jnp.arange(grid.shape[1])[None, :, None, None]

    def strip(total, strips):
        rows, labels, loss_grad, log_sum = strips
        weight = jnp.where(labels == IGNORE, 0.0, loss_grad)[:, None]
        pixels = _upsample(grid, rows, columns)
        grads = jnp.exp(pixels - log_sum[:, None]) - (labels[:, None] == ranks)
        lines = jnp.einsum("Ww,bkSW->bkSw", columns, grads * weight)
        return total + jnp.einsum("Sh,bkSw->bkhw", rows, lines), None

    columns, strips = _strips(grid, labels, loss_grad)
    total, _ = jax.lax.scan(strip, jnp.zeros_like(grid), (*strips, log_sums))
    return total, None


_cross_entropy.defvjp(_forward, _backward)


def _upsample(grid, rows, columns):
    """``[B K h w]`` to the pixels ``[B K S W]`` of a few rows."""
    return jnp.einsum("Ww,bkSw->bkSW", columns, jnp.einsum("Sh,bkhw->bkSw", rows, grid))


def _strips(grid, labels, *others):
    """The matrix of columns; that of rows, labels and others in strips of rows."""
    _, num_labels, grid_height, grid_width = grid.shape
    batch, height, width = labels.shape
    size = max(1, min(height, STRIP_BYTES // (4 * num_labels * width)))
    num_strips = -(-height // size)
    size = -(-height // num_strips)
    padding = (0, num_strips * size - height)

    def split(x, fill):
        x = jnp.pad(x, [(0, 0), padding, (0, 0)], constant_values=fill)
        return x.reshape(batch, num_strips, size, width).swapaxes(0, 1)

    rows = jnp.pad(bilinear_matrix(height, grid_height), [padding, (0, 0)])
    rows = rows.reshape(num_strips, size, grid_height)
    strips = (rows, split(labels, IGNORE), *(split(x, 0.0) for x in others))
    return jnp.asarray(bilinear_matrix(width, grid_width)), strips


def _join(strips, labels):
    """``[strips B S W]`` to ``[B H W]``."""
    batch, height, width = labels.shape
    return strips.swapaxes(0, 1).reshape(batch, -1, width)[:, :height]


def classified_cross_entropy(
    embeddings: Float[Array, "B h w D"],
    labels: Int[Array, "B H W"],
    class_weights: Float[Array, "C D"],
    class_biases: Float[Array, "C"],
) -> Float[Array, "B H W"]:
    """`upsampled_cross_entropy` of embeddings x weights + biases, for many classes.

    Those logits, with C channels for each cell of the grid, exist for a strip of rows
    at a time as well. Embeddings are upsampled along columns before they are
    classified: both are linear.
    """
    batch, height, width = labels.shape
    grid_height, grid_width = embeddings.shape[1:3]
    row_bytes = 4 * len(class_weights) * grid_width
    size = max(1, min(height, STRIP_BYTES // row_bytes))
    num_strips = -(-height // size)
    size = -(-height // num_strips)
    padding = num_strips * size - height

    def strip(rows: Array, labels: Array) -> Array:
        lines = jnp.einsum("Sh,bhwd->bSwd", rows.astype(embeddings.dtype), embeddings)
        logits = jnp.einsum(
            "bSwd,cd->bSwc",
            lines,
            class_weights.astype(embeddings.dtype),
            preferred_element_type=jnp.float32,
        )
        return upsampled_cross_entropy(logits + class_biases[None, None, None], labels)

    rows = jnp.pad(bilinear_matrix(height, grid_height), [(0, padding), (0, 0)])
    padded = jnp.pad(labels, [(0, 0), (0, padding), (0, 0)], constant_values=IGNORE)
    strips = padded.reshape(batch, num_strips, size, width).swapaxes(0, 1)
    losses = jax.lax.map(
        lambda args: jax.checkpoint(strip, prevent_cse=False)(*args),
        (rows.reshape(num_strips, size, grid_height), strips),
    )
    return losses.swapaxes(0, 1).reshape(batch, -1, width)[:, :height]
