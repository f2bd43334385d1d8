"""The multi-label head beside convolutional decoders (method.md section 9.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.interfaces import (
    AbstractMultiLabelHead,
    Embeddings,
    FeatureMap,
    LabelPrediction,
)
from mlseg_jax.models.layers.conv import Conv
from mlseg_jax.models.layers.resize import adaptive_pool
from mlseg_jax.models.layers.transformer import linear_init
from mlseg_jax.models.macs import Macs, activation, product
from mlseg_jax.models.multilabel_heads.transformer_encoder import (
    TransformerEncoderHead,
)
from mlseg_jax.typing import Array, DTypeLike, Float, PRNGKeyArray

PROJECTIONS = ("convolutions", "linear")


class ProjectedEncoderHead(AbstractMultiLabelHead):
    """One transformer block over a projected map (or queries) and class tokens.

    ``projection`` is two convolutions of single cells with ReLUs, one of them for each
    channel alone, as beside convolutional decoders, or ``linear``, as beside
    Mask2Former (method.md 11.2). The head only finds out which labels there are: pixels
    go past it, and the rows that are gathered for them are the class embeddings as they
    are. The class tokens are the same rows, or, unless ``share_embeddings``, a table of
    their own; with ``class_projection`` they first pass a matrix, which the published
    parameter counts have and the released code has not (method.md 16, row 22).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_dim: int,
        embed_dim: int,
        num_heads: int,
        dropout_rate: float,
        downsample: int,
        share_embeddings: bool = True,
        class_projection: bool = False,
        projection: str = "convolutions",
        classes_apart: bool = False,
        mlp_ratio: int = 4,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if projection not in PROJECTIONS:
            raise UserError(
                f"Unknown model.multilabel_head.projection {projection!r}; choose one "
                f"of {', '.join(PROJECTIONS)}."
            )
        common = {"dtype": dtype, "rngs": rngs}
        self.depthwise = (
            Conv(image_dim, image_dim, groups=image_dim, **common)
            if projection == "convolutions"
            else None
        )
        initial = {"kernel_init": linear_init} if projection == "linear" else {}
        self.pointwise = Conv(image_dim, embed_dim, **initial, **common)
        own_rows = linear_init(rngs.params(), (num_classes, embed_dim))
        self.class_embeddings = None if share_embeddings else nnx.Param(own_rows)
        self.class_projection = (
            nnx.Linear(
                embed_dim, embed_dim, use_bias=False, kernel_init=linear_init, **common
            )
            if class_projection
            else None
        )
        self.encoder = TransformerEncoderHead(
            num_classes=num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dropout_rate=dropout_rate,
            downsample=0,
            classes_apart=classes_apart,
            mlp_ratio=mlp_ratio,
            remat=remat,
            **common,
        )
        self.downsample = downsample

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        image, tokens = embeddings.image, class_embeddings
        if self.downsample:
            image = FeatureMap(
                adaptive_pool(image.grid, self.downsample, image.grid_size)
            )
        if self.depthwise is None:
            image = self.pointwise(image)
        else:
            for conv in (self.depthwise, self.pointwise):
                image = conv(image)
                image = FeatureMap(jax.nn.relu(image.grid), image.grid_size)
        if self.class_embeddings is not None:
            tokens = self.class_embeddings[...]
        if self.class_projection is not None:
            tokens = self.class_projection(tokens)
        labels = self.encoder(Embeddings(image, image), tokens, rng)
        return LabelPrediction(labels.scores, class_embeddings, embeddings.elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        inputs, outputs = self.pointwise.kernel.shape[-2:]
        count = Macs()
        if self.downsample:
            count += activation(*grid, inputs)
            grid = (self.downsample, self.downsample)
        count += self.pointwise.macs(grid)
        if self.depthwise is not None:
            count += self.depthwise.macs(grid) + activation(*grid, inputs + outputs)
        if self.class_projection is not None:
            count += product(num_classes, outputs, outputs)
        return count + self.encoder.macs(grid, num_classes)
