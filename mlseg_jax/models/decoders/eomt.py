"""EoMT: object queries among the tokens of a pretrained encoder's last blocks, and no
decoder besides (Kerssies et al. 2025; masks.md 7.1).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.decoders.regions import AbstractRegionDecoder, mask_layers
from mlseg_jax.models.interfaces import (
    Embeddings,
    FeatureMap,
    Regions,
    TokenMap,
    mask_products,
)
from mlseg_jax.models.layers.conv import Conv, resize_like
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.pyramid import DoubleSize
from mlseg_jax.models.layers.transformer import gelu, split_rng, torch_uniform
from mlseg_jax.models.macs import Macs, in_full, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray

FALL = 0.9
"""Power with which the share of masked queries falls."""


def mask_share(
    progress: Float[Array, ""], start: float, end: float
) -> Float[Array, ""]:
    """Share of the queries that a block still masks when ``progress`` of the training
    is over: 1 until ``start``, 0 from ``end`` on.
    """
    fallen = (progress - start) / max(end - start, 1e-6)
    return (1.0 - jnp.clip(fallen, 0.0, 1.0)) ** FALL


class Upscale(nnx.Module):
    """A map of twice as many rows and columns."""

    def __init__(self, embed_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.double = DoubleSize(
            embed_dim,
            embed_dim,
            kernel_init=torch_uniform(4 * embed_dim),
            dtype=dtype,
            rngs=rngs,
        )
        self.depthwise = Conv(
            embed_dim,
            embed_dim,
            3,
            groups=embed_dim,
            use_bias=False,
            kernel_init=torch_uniform(9),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(embed_dim, epsilon=1e-6)

    def __call__(self, features: FeatureMap) -> FeatureMap:
        size = features.grid_size
        doubled = gelu(self.double(features.grid))
        doubled = FeatureMap(doubled, None if size is None else 2 * size)
        finer = self.depthwise(doubled)
        return FeatureMap(self.norm(finer.grid), finer.grid_size)

    def macs(self, num_cells: int) -> Macs:
        """For a map of so many cells, before it is enlarged."""
        _, _, width, _ = self.double.kernel.shape
        return product(4 * num_cells, width, width) + product(4 * num_cells, 9, width)


class EomtDecoder(AbstractRegionDecoder):
    """Queries join the patches for the last ``depth`` blocks of the backbone.

    There is a prediction before each of them and one after the last. In training a
    block shows a query only the patches that the prediction before it calls its mask;
    with which share of the queries it still does so falls from 1 to 0 while the share
    of the training that is over goes from ``mask_starts`` to ``mask_ends`` of that
    block; without those, nothing is masked.
    In evaluation nothing is, and there is the last prediction alone.

    The multi-label head looks at the patches that enter these blocks (``image`` is
    pixels), or at the queries after ``image_layer`` of them.
    """

    level = 0
    anneals = True

    def __init__(
        self,
        backbone: ViT,
        *,
        num_queries: int,
        depth: int,
        cosine: bool,
        mask_starts: tuple[float, ...] = (),
        mask_ends: tuple[float, ...] = (),
        image: str = "pixels",
        image_layer: int = 2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        embed_dim = backbone.feature_dims[-1]
        # The same module as the model's: its last blocks run here.
        self.backbone = backbone
        self.queries = nnx.Param(
            jax.random.normal(rngs.params(), (num_queries, embed_dim))
        )
        self.mask_layers = mask_layers((embed_dim,) * 4, dtype, rngs)
        num_upscales = max(1, int(math.log2(backbone.patch_size)) - 2)
        self.upscales = nnx.List(
            [Upscale(embed_dim, dtype=dtype, rngs=rngs) for _ in range(num_upscales)]
        )
        super().__init__(embed_dim, num_queries, cosine=cosine, dtype=dtype, rngs=rngs)
        self.depth = depth
        self.masks = tuple(zip(mask_starts, mask_ends, strict=True))
        self.upscale = 2**num_upscales
        self.image = image
        self.image_layer = image_layer
        self.image_level = 0 if image == "pixels" else None

    def embed(
        self,
        features: tuple[TokenMap],
        rng: PRNGKeyArray | None = None,
        progress: Float[Array, ""] | None = None,
    ) -> Embeddings:
        """``progress`` is the share of the training that is over; without it masks are
        as at its start.
        """
        (tokens,) = features
        batch, num_queries = tokens.grid.shape[0], self.num_queries
        queries = jnp.broadcast_to(
            self.queries[...].astype(tokens.grid.dtype)[None],
            (batch, num_queries, self.embed_dim),
        )
        blocks_rng, draw_rng = split_rng(rng, 2)
        state, context = self.backbone.join(tokens, queries)
        first = self.backbone.blocks.depth - self.depth
        supervised, seen_by_head = [], self.backbone.norm(tokens.grid)
        for i in range(self.depth):
            placed = context
            if rng is not None:
                supervised.append(self._predict(state, tokens))
                if self.masks:
                    seen = self._seen(*supervised[-1][1:], tokens)
                    seen = self._unmask(seen, i, draw_rng, progress)
                    placed = dataclasses.replace(context, seen=seen)
            (state,) = self.backbone.blocks.after(
                (first + i,), state, placed, blocks_rng, first=first + i
            )
            if self.image == "queries" and i + 1 == self.image_layer:
                seen_by_head = self.backbone.norm(state[:, -num_queries:])[:, None]
        supervised.append(self._predict(state, tokens))
        queries, masks, maps = zip(*supervised, strict=True)
        queries, masks = jnp.stack(queries, axis=1), jnp.stack(masks, axis=1)
        regions = Regions(queries, masks, maps if len(maps) > 1 else maps[0])
        size = tokens.grid_size if self.image == "pixels" else None
        return Embeddings(regions, FeatureMap(seen_by_head, size))

    def _predict(
        self, state: Float[Array, "B L D"], like: TokenMap
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N D"], FeatureMap]:
        """What class queries are compared with, mask embeddings and mask features."""
        others, patches = self.backbone.apart(self.backbone.norm(state), like)
        queries = masks = others[:, self.backbone.num_others :]
        for layer in self.mask_layers[:-1]:
            masks = gelu(layer(masks))
        for upscale in self.upscales:
            patches = upscale(patches)
        return queries, self.mask_layers[-1](masks), patches

    def _seen(
        self, mask_embeddings: Array, features: FeatureMap, like: TokenMap
    ) -> Bool[Array, "B N P"]:
        """Patches of each query's mask; enlarging is linear, so that masks need not be
        made on the finest grid first.
        """
        coarse = resize_like(features, FeatureMap(like.grid, like.grid_size))
        coarse = jax.lax.stop_gradient(coarse.grid)
        logits = mask_products(jax.lax.stop_gradient(mask_embeddings), coarse)
        return logits.reshape(*logits.shape[:2], -1) > 0.0

    def _unmask(
        self,
        seen: Bool[Array, "B N P"],
        block: int,
        rng: PRNGKeyArray,
        progress: Float[Array, ""] | None,
    ) -> Bool[Array, "B N P"]:
        """Opens the rows of as many queries as the annealing says."""
        if progress is None:
            return seen
        share = mask_share(progress, *self.masks[block])
        rng = jax.random.fold_in(rng, block)
        keeps = jax.random.uniform(rng, seen.shape[:2]) < share
        return seen | ~keeps[..., None]

    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """As in evaluation: one prediction."""
        height, width = grids[self.level]
        cells, queries, dim = height * width, self.num_queries, self.embed_dim
        count = self.backbone.joint_macs(cells, queries)
        count += product(3 * queries, dim, dim)
        for upscale in self.upscales:
            count += upscale.macs(cells)
            cells *= 4
        return in_full(count + product(cells, queries, dim))
