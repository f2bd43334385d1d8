"""No decoder at all: the selected classes join the last blocks of the encoder.

Not in the paper. Segmenter gives patches and class tokens two blocks of their own
behind the encoder; EoMT (`decoders.eomt`) found that queries may as well join the last
blocks of a pretrained one. MLSeg knows before those blocks which classes deserve to be
queries: their K embeddings join, and patches are compared with these and with as much
of what became of them as training finds of use.
"""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.decoders.dot_product import unit_length
from mlseg_jax.models.interfaces import (
    AbstractDecoder,
    Embeddings,
    FeatureMap,
    TokenMap,
)
from mlseg_jax.models.layers.transformer import split_rng
from mlseg_jax.models.macs import Macs, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray


class EncoderOnlyDecoder(AbstractDecoder):
    """The last ``depth`` blocks of the backbone over patches and K class tokens, its
    norm, and cosines between the two.

    What the blocks make of a class is added to its embedding through a gate that starts
    closed: they were trained on images, and what they first say of a class is noise
    that costs 6 points in the small study (docs/encoder_only.md). So training starts as
    a linear classifier's does.

    The multi-label head looks at the patches that enter those blocks, after the same
    norm. As class embeddings are tokens of the encoder, they are as wide as it.
    """

    level = 0
    class_bias = False

    def __init__(
        self,
        backbone: ViT,
        *,
        depth: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = backbone.feature_dims[-1]

        def cosine_projection():
            return nnx.Linear(
                width,
                width,
                use_bias=False,
                kernel_init=nnx.initializers.normal(width**-0.5),
                dtype=dtype,
                rngs=rngs,
            )

        # The same module as the model's: its last blocks run here.
        self.backbone = backbone
        self.embed_dim = self.image_dim = width
        self.image_level = 0
        self.depth = depth
        self.patch_projection = cosine_projection()
        self.class_projection = cosine_projection()
        self.class_gate = nnx.Param(jnp.zeros(width))

    def embed(
        self, features: tuple[TokenMap], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        (tokens,) = features
        image = FeatureMap(self.backbone.norm(tokens.grid), tokens.grid_size)
        return Embeddings(tokens, image)

    def classify(
        self,
        pixels: TokenMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B h w K"]:
        """Cosines between patches and classes; invalid classes are seen by nobody."""
        tokens, context = self.backbone.join(pixels, class_queries, valid)
        (blocks_rng,) = split_rng(rng, 1)
        blocks = self.backbone.blocks
        first, last = blocks.depth - self.depth, blocks.depth - 1
        (tokens,) = blocks.after((last,), tokens, context, blocks_rng, first=first)
        others, patches = self.backbone.apart(self.backbone.norm(tokens), pixels)
        became = others[:, self.backbone.num_others :]
        gate = self.class_gate[...].astype(became.dtype)[None, None]
        classes = class_queries.astype(became.dtype) + gate * became
        return jnp.einsum(
            "bhwd,bkd->bhwk",
            unit_length(self.patch_projection(patches.grid)),
            unit_length(self.class_projection(classes)),
            preferred_element_type=jnp.float32,
        )

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        return Macs()

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        patches, width = grid[0] * grid[1], self.embed_dim
        return (
            self.backbone.joint_macs(patches, num_ranks)
            + product(patches + num_ranks, width, width)
            + product(patches, num_ranks, width)
        )
