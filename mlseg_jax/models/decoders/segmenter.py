"""Segmenter's mask transformer (method.md section 3)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.dot_product import unit_length
from mlseg_jax.models.interfaces import AbstractDecoder, Embeddings, FeatureMap
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.classes_apart import run_blocks_apart
from mlseg_jax.models.layers.context_encoding import ContextEncoding
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import (
    TransformerBlock,
    join_masks,
    linear_init,
    split_rng,
)
from mlseg_jax.models.macs import Macs, norm, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class SegmenterDecoder(AbstractDecoder):
    """Patches and class tokens through a few blocks, then cosines between the two.

    With an ``encoding``, which gates the features first, this is the paper's EncNet;
    with a small ``cosine_dim`` it is their ESSNet. ``image`` says what a multi-label
    head looks at: ``projected`` patches, where it shares the space of the blocks, the
    vector of the ``encoding``, or the ``features`` before any projection. With
    ``classes_apart`` a class token sees the patches and itself alone, and patches see
    no class; the paper does not have it.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        dropout_rate: float,
        image: str = "projected",
        encoding: ContextEncoding | None = None,
        cosine_dim: int | None = None,
        classes_apart: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def cosine_projection():
            return nnx.Linear(
                embed_dim,
                cosine_dim or embed_dim,
                use_bias=False,
                kernel_init=nnx.initializers.normal(embed_dim**-0.5),
                dtype=dtype,
                rngs=rngs,
            )

        self.encoding = encoding
        self.classes_apart = classes_apart
        self.embed_dim = embed_dim
        self.image_dim = embed_dim if image == "projected" else feature_dim
        self.image = image
        self.level = self.image_level = -1
        self.class_bias = False
        self.feature_projection = nnx.Linear(
            feature_dim, embed_dim, kernel_init=linear_init, dtype=dtype, rngs=rngs
        )
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
            depth,
            remat=remat,
            rngs=rngs,
        )
        self.norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.patch_projection = cosine_projection()
        self.class_projection = cosine_projection()

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        last = features[self.level]
        maps = {}
        if self.encoding is not None:
            last, maps["encoding"] = self.encoding(last, rng is not None)
        pixels = FeatureMap(self.feature_projection(last.grid), last.grid_size)
        maps["projected"] = pixels
        return Embeddings(pixels, maps.get(self.image, last))

    def classify(
        self,
        pixels: FeatureMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w K"]:
        """Cosines between patches and classes; invalid classes are seen by nobody."""
        batch, height, width, _ = pixels.grid.shape
        patches = pixels.grid.reshape(batch, height * width, -1)
        classes = class_queries.astype(patches.dtype)
        (rng,) = split_rng(rng, 1)
        if self.classes_apart:
            patches, classes = run_blocks_apart(
                self.blocks, patches, classes, pixels.mask, rng
            )
        else:
            tokens = jnp.concatenate([patches, classes], axis=1)
            mask = join_masks(pixels.mask, valid, patches.shape, classes.shape)
            tokens = self.blocks(tokens, mask, rng)
            patches, classes = jnp.split(tokens, [height * width], axis=1)
        patches = unit_length(self.patch_projection(self.norm(patches)))
        classes = unit_length(self.class_projection(self.norm(classes)))
        cosines = jnp.einsum(
            "bld,bkd->blk", patches, classes, preferred_element_type=jnp.float32
        )
        return cosines.reshape(batch, height, width, -1)

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        height, width = grids[self.level]
        projection = self.feature_projection
        count = product(height * width, projection.in_features, self.embed_dim)
        if self.encoding is not None:
            count += self.encoding.macs(height * width)
        return count

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        patches, width = grid[0] * grid[1], self.embed_dim
        cosine_dim = self.patch_projection.out_features
        tokens = patches + num_ranks
        if self.classes_apart:
            blocks = self.blocks.macs(patches, attention_in_paper=True)
            blocks += self.blocks.macs(num_ranks, patches + 1, attention_in_paper=True)
        else:
            blocks = self.blocks.macs(tokens, attention_in_paper=True)
        return (
            blocks
            + norm(tokens, width)
            # The paper left ESSNet's two small projections out.
            + product(tokens, width, cosine_dim, in_paper=cosine_dim == width)
            + product(patches, num_ranks, cosine_dim)
        )
