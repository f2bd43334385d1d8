"""What decoders of regions have in common: queries are compared with the rows of the
selected labels and no-object (masks.md 2.1).
"""

import functools
import itertools

import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.decoders.dot_product import unit_length
from mlseg_jax.models.interfaces import AbstractDecoder, Regions
from mlseg_jax.models.layers.transformer import torch_uniform
from mlseg_jax.models.macs import Macs, in_full, product
from mlseg_jax.typing import Array, Bool, DTypeLike, Float, PRNGKeyArray

IMAGES = ("queries", "pixels")
"""What the multi-label head may look at."""


def mask_layers(widths: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.List:
    """The layers from a query to its mask embedding, with PyTorch's first values."""
    return nnx.List(
        [
            nnx.Linear(
                inputs,
                outputs,
                kernel_init=torch_uniform(inputs),
                bias_init=torch_uniform(inputs),
                dtype=dtype,
                rngs=rngs,
            )
            for inputs, outputs in itertools.pairwise(widths)
        ]
    )


class AbstractRegionDecoder(AbstractDecoder):
    """Object queries that become classes and masks.

    Class queries are compared with object queries by their cosine (``cosine``, as in
    the paper), or by a dot product with a bias for each class. No-object is one more
    row, of the decoder's own.
    """

    def __init__(
        self,
        embed_dim: int,
        num_queries: int,
        *,
        cosine: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.embed_dim = self.image_dim = embed_dim
        self.num_queries = num_queries
        self.class_bias = not cosine
        initial = functools.partial(torch_uniform(embed_dim), rngs.params())
        self.no_object = nnx.Param(initial((embed_dim,)))
        self.no_object_bias = None if cosine else nnx.Param(initial((1,)))
        self.dtype = dtype

    def classify(
        self,
        elements: Regions,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B P N K+1"]:
        """Scores in float32; the last column is no-object."""
        queries = elements.queries
        own = jnp.broadcast_to(
            self.no_object[...], (class_queries.shape[0], 1, self.embed_dim)
        )
        rows = jnp.concatenate([class_queries, own.astype(class_queries.dtype)], axis=1)
        rows = rows.astype(queries.dtype)
        if self.no_object_bias is None:
            queries, rows = unit_length(queries), unit_length(rows)
        scores = jnp.einsum(
            "bpnd,bkd->bpnk", queries, rows, preferred_element_type=jnp.float32
        )
        if self.no_object_bias is None:
            return scores
        # Those of the classes are added where they are gathered.
        ranks = class_queries.shape[1]
        own_bias = jnp.pad(self.no_object_bias[...], (ranks, 0))
        return scores + own_bias.reshape(1, 1, 1, -1)

    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        """As in evaluation: of the last prediction alone."""
        return in_full(product(*grid, num_ranks + 1, self.embed_dim))
