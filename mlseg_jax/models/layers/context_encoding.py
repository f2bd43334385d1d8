"""EncNet's residual encoding of a picture (Zhang et al. 2018; method.md 10.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.conv import Conv
from mlseg_jax.models.layers.norm import BatchNorm
from mlseg_jax.models.layers.transformer import linear_init
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.typing import Array, DTypeLike, Float


class ContextEncoding(nnx.Module):
    """Residuals of all cells to learned code words, and a gate on the channels.

    The vector of a picture is the mean over code words of their normalised, summed
    residuals. It gates the features, and a multi-label head scores it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_codes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        bound = (num_codes * embed_dim) ** -0.5
        common = {"dtype": dtype, "rngs": rngs}
        self.bottleneck = Conv(embed_dim, embed_dim, 3, **common)
        self.reduction = Conv(embed_dim, embed_dim, 1, **common)
        self.codes = nnx.Param(
            jax.random.uniform(
                rngs.params(), (num_codes, embed_dim), minval=-bound, maxval=bound
            )
        )
        self.code_scales = nnx.Param(
            jax.random.uniform(rngs.params(), (num_codes,), minval=-1.0, maxval=0.0)
        )
        self.norm = BatchNorm(num_codes)
        self.gate = nnx.Linear(embed_dim, embed_dim, kernel_init=linear_init, **common)

    def __call__(
        self, features: FeatureMap, train: bool
    ) -> tuple[FeatureMap, FeatureMap]:
        """The gated features, and the picture's vector as a map of one cell."""
        features = self.bottleneck(features)
        grid = jax.nn.relu(features.grid)
        reduced = jax.nn.relu(self.reduction(FeatureMap(grid)).grid)
        batch, height, width, embed_dim = grid.shape
        cells = reduced.reshape(batch, height * width, embed_dim).astype(jnp.float32)
        mask = features.mask
        residuals = self._residuals(
            cells, None if mask is None else mask.reshape(batch, -1)
        )
        # Batch norm has one channel per code word.
        normalised = self.norm(residuals.swapaxes(1, 2), train)
        vector = jnp.mean(jax.nn.relu(normalised), axis=2).astype(grid.dtype)
        gate = jax.nn.sigmoid(self.gate(vector))[:, None, None]
        gated = FeatureMap(jax.nn.relu(grid + grid * gate), features.grid_size)
        return gated, FeatureMap(vector[:, None, None])

    def _residuals(
        self, cells: Float[Array, "B L D"], mask: Array | None
    ) -> Float[Array, "B codes D"]:
        """Sum over cells of their share in a code word times their distance to it.

        Distances are the same from any origin. From the middle of the cells, no number
        is much larger than they are, and differences of squares keep their digits.
        """
        inside = None if mask is None else mask[..., None]
        middle = jnp.mean(cells, axis=1, keepdims=True, where=inside)
        middle = jax.lax.stop_gradient(middle)
        cells, codes = cells - middle, self.codes[...][None] - middle
        dots = jnp.einsum("bld,bnd->bln", cells, codes, precision="highest")
        square = jnp.sum(cells**2, axis=-1)[..., None] - 2.0 * dots
        square = square + jnp.sum(codes**2, axis=-1)[:, None]
        shares = jax.nn.softmax(self.code_scales[...][None, None] * square, axis=-1)
        if mask is not None:
            shares = jnp.where(mask[..., None], shares, 0.0)
        total = jnp.sum(shares, axis=1)[..., None] * codes
        return jnp.einsum("bln,bld->bnd", shares, cells, precision="highest") - total

    def macs(self, num_cells: int) -> Macs:
        num_codes, width = self.codes.shape
        convolutions = product(10, num_cells, width, width)
        encoding = 2 * product(num_cells, num_codes, width, in_paper=False)
        gate = product(width, width) + 2 * activation(num_cells, width)
        return convolutions + encoding + gate
