"""MaskFormer's decoder (Cheng et al. 2021; masks.md 3.2)."""

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.queries import AbstractQueryDecoder
from mlseg_jax.models.interfaces import Embeddings, FeatureMap
from mlseg_jax.models.layers.block_stack import run_layers
from mlseg_jax.models.layers.conv import Conv
from mlseg_jax.models.layers.group_norm import xavier_fill
from mlseg_jax.models.layers.position_embedding import map_positions
from mlseg_jax.models.layers.query_layer import QueryLayer
from mlseg_jax.models.layers.transformer import split_rng
from mlseg_jax.models.macs import Macs, in_full, product
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder
from mlseg_jax.typing import DTypeLike, PRNGKeyArray


class MaskFormerDecoder(AbstractQueryDecoder):
    """Queries that look at each other and then at one coarse map; they start at zero,
    and there is a prediction after each layer.
    """

    def __init__(
        self,
        pixel_decoder: AbstractPixelDecoder,
        *,
        embed_dim: int,
        num_queries: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        dropout_rate: float,
        cosine: bool,
        image: str = "queries",
        image_layer: int = 3,
        scan: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            pixel_decoder,
            embed_dim=embed_dim,
            num_queries=num_queries,
            cosine=cosine,
            image=image,
            image_layer=image_layer,
            dtype=dtype,
            rngs=rngs,
        )
        memory_dim = pixel_decoder.memory_dim
        self.input_projection = (
            None
            if memory_dim == embed_dim
            else Conv(
                memory_dim, embed_dim, kernel_init=xavier_fill, dtype=dtype, rngs=rngs
            )
        )
        self.layers = nnx.List(
            [
                QueryLayer(
                    embed_dim,
                    num_heads,
                    mlp_dim,
                    picture_first=False,
                    dropout_rate=dropout_rate,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )
        self.scan = scan
        self.remat = remat

    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None = None
    ) -> Embeddings:
        pixel_rng, layers_rng = split_rng(rng, 2)
        pixels = self.pixel_decoder(features, pixel_rng)
        memory = pixels.memory
        if self.input_projection is not None:
            memory = self.input_projection(memory)
        batch, height, width, dim = memory.grid.shape
        shape = (batch, height * width, dim)
        values = memory.grid.reshape(shape)
        keys = memory.grid + map_positions(memory, dim).astype(self.dtype)
        keys = keys.reshape(shape)
        mask = None if memory.mask is None else memory.mask.reshape(batch, -1)
        positions = self.query_positions[...][None].astype(self.dtype)
        queries = jnp.zeros((batch, *positions.shape[1:]), self.dtype)

        def look(layer, place, queries, rng):
            queries = layer(queries, positions, keys, values, mask, rng)
            return queries, queries

        how = {"scan": self.scan or rng is not None, "remat": self.remat}
        _, later = run_layers(self.layers, look, queries, layers_rng, **how)
        states = [queries, *later]
        supervised = later if rng is not None else later[-1:]
        return self.embeddings(list(map(self.head, supervised)), states, pixels)

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """As in evaluation: one prediction."""
        queries, count = self.num_queries, self.pixel_decoder.macs(grids)
        height, width = grids[-1]
        if self.input_projection is not None:
            count += self.input_projection.macs(grids[-1])
        for layer in self.layers:
            count += layer.macs(queries, height * width)
        mask_dim = self.pixel_decoder.embed_dim
        count += product(*grids[self.level], queries, mask_dim)
        return in_full(count + self.head.macs(queries))
