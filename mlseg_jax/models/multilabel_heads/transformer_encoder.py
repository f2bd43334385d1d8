"""The default multi-label head: one transformer block (method.md section 4.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    FeatureMap,
    LabelPrediction,
)
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.resize import adaptive_pool_matrix, resample
from mlseg_jax.models.layers.transformer import (
    BlockStack,
    TransformerBlock,
    join_masks,
    over_rows,
)
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray


class TransformerEncoderHead(AbstractMultiLabelHead):
    """One block over [image tokens ; C class tokens], then one score per class.

    With ``downsample`` the image tokens are the embeddings averaged over that many bins
    a side, and the pixel embeddings themselves go on untouched. Without it the block
    sees all of them and refines them for the pixel classifier as well. Either way the
    class queries that are gathered later are the refined and normalised class tokens.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        num_heads: int,
        dropout_rate: float,
        downsample: int | None,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                4 * embed_dim,
                epsilon=1e-5,
                dropout_rate=dropout_rate,
                dtype=dtype,
                rngs=rngs,
            ),
            1,
            remat=remat,
            rngs=rngs,
        )
        self.norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.classifier = GroupWiseLinear(num_classes, embed_dim, rngs=rngs)
        self.downsample = downsample

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        # Pooling after the decoder's projection equals pooling before it: both linear.
        image, pixels = embeddings.image, embeddings.pixels
        if self.downsample:
            image = self._pool(image)
        batch, height, width, embed_dim = image.grid.shape
        patches = image.grid.reshape(batch, height * width, embed_dim)
        classes = jnp.broadcast_to(
            class_embeddings.astype(patches.dtype), (batch, *class_embeddings.shape)
        )
        mask = join_masks(image.mask, None, patches.shape, classes.shape)
        tokens = jnp.concatenate([patches, classes], axis=1)
        tokens = self.blocks(tokens, mask, rng)
        patches, classes = jnp.split(tokens, [height * width], axis=1)
        if not self.downsample:
            grid = patches.reshape(batch, height, width, embed_dim)
            pixels = FeatureMap(grid, image.grid_size)
        class_queries = over_rows(self.norm, classes)
        return LabelPrediction(self.classifier(class_queries), class_queries, pixels)

    def _pool(self, image: FeatureMap) -> FeatureMap:
        _, height, width, _ = image.grid.shape
        bins, size = self.downsample, image.grid_size
        if size is None:
            rows = adaptive_pool_matrix(bins, height)
            columns = adaptive_pool_matrix(bins, width)
        else:
            pool = adaptive_pool_matrix
            rows = jax.vmap(lambda n: pool(bins, height, n))(size[:, 0])
            columns = jax.vmap(lambda n: pool(bins, width, n))(size[:, 1])
        dtype = image.grid.dtype
        grid = resample(rows.astype(dtype), columns.astype(dtype), image.grid)
        return FeatureMap(grid)


class GroupWiseLinear(nnx.Module):
    """Each class query against its own row: s_c = <W_c, q_c> + b_c."""

    def __init__(self, num_classes: int, embed_dim: int, *, rngs: nnx.Rngs):
        bound = embed_dim**-0.5

        def uniform(shape):
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        self.weight = nnx.Param(uniform((num_classes, embed_dim)))
        self.bias = nnx.Param(uniform((num_classes,)))

    def __call__(self, class_queries: Float[Array, "B C D"]) -> Float[Array, "B C"]:
        products = class_queries.astype(jnp.float32) * self.weight[...][None]
        return jnp.sum(products, axis=-1) + self.bias[...][None]
