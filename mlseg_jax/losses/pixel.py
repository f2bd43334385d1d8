"""Cross-entropy of pixels, fused with the upsampling of the logits.

Logits live on the feature grid; labels on the pixels. The upsampled logits, the largest
array of a usual implementation, are made a strip of rows at a time and made again in
the backward pass.
"""

import jax
import jax.numpy as jnp

from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.typing import IGNORE, Array, Float, Int

STRIP_BYTES = 16 * 2**20
"""Upsampled logits made at a time: enough rows for efficient products, no more."""


def upsampled_cross_entropy(
    logits: Float[Array, "B h w K"], labels: Int[Array, "B H W"]
) -> Float[Array, "B H W"]:
    """Softmax cross-entropy of bilinearly upsampled logits; 0 where ``IGNORE``.

    ``labels`` number the last axis of ``logits``: ranks under a selection, classes in
    the baseline. Upsampling as PyTorch's ``interpolate(align_corners=False)``.
    """
    _, grid_height, grid_width, num_labels = logits.shape
    batch, height, width = labels.shape
    rows = bilinear_matrix(height, grid_height)
    columns = bilinear_matrix(width, grid_width)
    grid = logits.astype(jnp.float32).transpose(0, 3, 1, 2)

    def strip(rows: Array, labels: Array) -> Array:
        """Loss of a few rows: ``[S h], [B S W]`` to ``[B S W]``."""
        lines = jnp.einsum("Sh,bkhw->bkSw", rows, grid)
        pixels = jnp.einsum("Ww,bkSw->bkSW", columns, lines)
        ranks = jnp.arange(num_labels)[None, :, None, None]
        # A masked sum in place of a gather, whose gradient would be a slow scatter.
        picked = jnp.sum(jnp.where(labels[:, None] == ranks, pixels, 0.0), axis=1)
        loss = jax.nn.logsumexp(pixels, axis=1) - picked
        return jnp.where(labels == IGNORE, 0.0, loss)

    size = max(1, min(height, STRIP_BYTES // (4 * batch * num_labels * width)))
    num_strips = -(-height // size)
    size = -(-height // num_strips)
    padding = num_strips * size - height
    rows = jnp.pad(jnp.asarray(rows), [(0, padding), (0, 0)])
    padded = jnp.pad(labels, [(0, 0), (0, padding), (0, 0)], constant_values=IGNORE)
    strips = padded.reshape(batch, num_strips, size, width).swapaxes(0, 1)
    losses = jax.lax.map(
        lambda args: jax.checkpoint(strip, prevent_cse=False)(*args),
        (rows.reshape(num_strips, size, grid_height), strips),
    )
    losses = losses.swapaxes(0, 1).reshape(batch, num_strips * size, width)
    return losses[:, :height]
