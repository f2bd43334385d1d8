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
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.classes_apart import run_blocks_apart
from mlseg_jax.models.layers.long_sequences import over_rows
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.layers.transformer import TransformerBlock, join_masks
from mlseg_jax.models.macs import Macs, norm
from mlseg_jax.models.multilabel_heads.group_wise_linear import GroupWiseLinear
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray


class TransformerEncoderHead(AbstractMultiLabelHead):
    """One block over [image tokens ; C class tokens], then one score per class.

    With ``downsample`` the image tokens are the embeddings averaged over that many bins
    a side, and the pixel embeddings themselves go on untouched. Without it the block
    sees all of them and, where they are also what is to be classified, refines them for
    the pixel classifier as well. Either way the
    class queries that are gathered later are the refined and normalised class tokens.

    With ``classes_apart`` a class token sees the image and itself alone, and the image
    sees no class: the cost is linear in C, and a new class changes no other's score.
    ``mlp_ratio`` is the width of the block's hidden layer over its tokens', and
    ``label_gradient`` the factor of the gradient that the label scores send beyond
    their own classifier. The paper has neither.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        num_heads: int,
        dropout_rate: float,
        downsample: int,
        classes_apart: bool = False,
        mlp_ratio: int = 4,
        label_gradient: float = 1.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.blocks = BlockStack(
            lambda rngs: TransformerBlock(
                embed_dim,
                num_heads,
                mlp_ratio * embed_dim,
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
        self.classes_apart = classes_apart
        self.label_gradient = label_gradient

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        # Pooling after the decoder's projection equals pooling before it: both linear.
        image, elements = embeddings.image, embeddings.elements
        if self.downsample:
            image = FeatureMap(
                adaptive_pool(image.grid, self.downsample, image.grid_size)
            )
        batch, height, width, embed_dim = image.grid.shape
        patches = image.grid.reshape(batch, height * width, embed_dim)
        classes = class_embeddings.astype(patches.dtype)
        if self.classes_apart:
            patches, classes = run_blocks_apart(
                self.blocks, patches, classes, image.mask, rng
            )
        else:
            classes = jnp.broadcast_to(classes, (batch, *classes.shape[-2:]))
            context = join_masks(image.mask, None, patches.shape, classes.shape)
            tokens = jnp.concatenate([patches, classes], axis=1)
            tokens = self.blocks(tokens, context, rng)
            patches, classes = jnp.split(tokens, [height * width], axis=1)
        if rng is None:
            class_queries = over_rows(self.norm, classes)
        else:  # In one piece: its way back is.
            class_queries = self.norm(classes)
        if not self.downsample and elements is embeddings.image:
            grid = patches.reshape(batch, height, width, embed_dim)
            elements = FeatureMap(grid, image.grid_size)
        scored = scale_gradient(class_queries, self.label_gradient)
        return LabelPrediction(self.classifier(scored), class_queries, elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        width = self.classifier.weight.shape[1]
        patches = self.downsample**2 if self.downsample else grid[0] * grid[1]
        if self.classes_apart:
            count = self.blocks.macs(patches, attention_in_paper=True)
            count += self.blocks.macs(num_classes, patches + 1, attention_in_paper=True)
        else:
            count = self.blocks.macs(patches + num_classes, attention_in_paper=True)
        if self.downsample:
            # The release projects the pooled map once more; here it is pooled after.
            count += Macs(0, patches * width * width)
        return count + norm(num_classes, width) + self.classifier.macs()


def scale_gradient(x: Array, factor: float) -> Array:
    """``x`` itself, whose gradient is multiplied on its way back."""
    if factor == 1.0:
        return x
    still = jax.lax.stop_gradient(x)
    return still + factor * (x - still)
