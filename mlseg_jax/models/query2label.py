"""Query2Label: which labels are in a picture, and nothing more (method.md 8.1).

The classifier of the independent scheme (paper section 3.2): a backbone whose last map
is the memory of a small DETR-style transformer, in which one learned query per class
looks for its label. Liu et al. 2021.
"""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.distributed.sharding import pin_examples
from mlseg_jax.models.interfaces import AbstractBackbone
from mlseg_jax.models.layers.position_embedding import sine_positions
from mlseg_jax.models.layers.post_norm import PostNormTransformer
from mlseg_jax.models.layers.transformer import split_rng
from mlseg_jax.models.macs import Macs
from mlseg_jax.models.mlseg import normalise
from mlseg_jax.models.multilabel_heads.group_wise_linear import GroupWiseLinear
from mlseg_jax.typing import Array, DTypeLike, Float, Int, PRNGKeyArray, UInt8


class Query2Label(nnx.Module):
    """A backbone and a transformer of the backbone's width; one score per class."""

    def __init__(
        self,
        backbone: AbstractBackbone,
        *,
        num_classes: int,
        num_heads: int,
        mlp_dim: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dropout_rate: float,
        remat: str,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        embed_dim = backbone.feature_dims[-1]
        self.backbone = backbone
        self.transformer = PostNormTransformer(
            embed_dim,
            num_heads,
            mlp_dim,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            dropout_rate=dropout_rate,
            kernel_init=nnx.initializers.glorot_uniform(),
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        normal = nnx.initializers.normal(1.0)
        self.class_embeddings = nnx.Param(
            normal(rngs.params(), (num_classes, embed_dim))
        )
        self.classifier = GroupWiseLinear(num_classes, embed_dim, rngs=rngs)
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std

    def __call__(
        self,
        images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
        *,
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B C"]:
        """Score of every class before the sigmoid; ``rng`` is for training.

        ``image_size`` as for `MLSeg`: positions then count on the whole canvas.
        """
        backbone_rng, transformer_rng = split_rng(rng, 2)
        pixels = normalise(images, image_size, self.pixel_mean, self.pixel_std)
        features = self.backbone(pixels, image_size, backbone_rng)[-1]
        batch, height, width, embed_dim = features.grid.shape
        memory = pin_examples(features.grid.reshape(batch, height * width, embed_dim))
        mask = features.mask
        queries = self.transformer(
            memory,
            sine_positions(height, width, embed_dim),
            self.class_embeddings[...],
            None if mask is None else mask.reshape(batch, -1),
            transformer_rng,
        )
        return self.classifier(queries)

    def macs(self, size: tuple[int, int], num_ranks: int) -> dict[str, Macs]:
        """Multiply-accumulates of one picture, by part; there are no ranks here."""
        del num_ranks
        height, width = (self.backbone.grid_lengths(side)[-1] for side in size)
        num_classes = self.class_embeddings.shape[0]
        return {
            "backbone": self.backbone.macs(size),
            "transformer": self.transformer.macs(height * width, num_classes),
            "classifier": self.classifier.macs(),
        }
