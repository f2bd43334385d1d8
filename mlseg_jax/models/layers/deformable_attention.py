"""Multi-scale deformable attention (Zhu et al. 2021; masks.md 1.3)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.bilinear_samples import weighted_samples
from mlseg_jax.models.layers.conv import mask_outside
from mlseg_jax.models.layers.dropout import dropout
from mlseg_jax.models.layers.long_sequences import over_rows
from mlseg_jax.models.layers.norm import LayerNorm
from mlseg_jax.models.layers.transformer import split_rng, torch_uniform
from mlseg_jax.models.macs import Macs, activation, norm, product
from mlseg_jax.typing import Array, DTypeLike, Float, Int, PRNGKeyArray

xavier = nnx.initializers.glorot_uniform()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grids:
    """Of maps whose cells are tokens one map after the other, rows first.

    Attributes:
      sizes: real rows and columns of each map per example; ``None`` where all are real.
      shapes: rows and columns of each map's canvas.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    sizes: tuple[Int[Array, "B 2"] | None, ...]
    shapes: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, maps: tuple[FeatureMap, ...]) -> "Grids":
        shapes = tuple(each.grid.shape[1:3] for each in maps)
        return cls(tuple(each.grid_size for each in maps), shapes)

    def join(self, grids: list[Float[Array, "#B _ _ D"]]) -> Float[Array, "#B L D"]:
        flat = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in grids]
        return jnp.concatenate(flat, axis=1)

    def split(self, tokens: Float[Array, "B L D"]) -> tuple[FeatureMap, ...]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = jnp.split(tokens, ends, axis=1)
        return tuple(
            FeatureMap(part.reshape(part.shape[0], *shape, -1), size)
            for part, shape, size in zip(parts, self.shapes, self.sizes, strict=True)
        )

    def references(self) -> Float[Array, "#B L 2"]:
        """The middle of every token's cell, (x, y) as shares of the picture."""

        def middles(
            shape: tuple[int, int], size: Int[Array, "B 2"] | None
        ) -> Float[Array, "#B h w 2"]:
            size = jnp.asarray([shape]) if size is None else size
            y, x = (jnp.arange(n, dtype=jnp.float32)[None] + 0.5 for n in shape)
            y, x = y / size[:, :1], x / size[:, 1:]
            canvas = (size.shape[0], *shape)
            x = jnp.broadcast_to(x[:, None], canvas)
            return jnp.stack([x, jnp.broadcast_to(y[:, :, None], canvas)], axis=-1)

        return self.join(list(map(middles, self.shapes, self.sizes)))


class DeformableAttention(nnx.Module):
    """Every token looks at a few places around itself, on all maps.

    Where they lie, in cells of the map they are on, and how much each counts, are
    linear in the token. Coordinates and weights are float32 whatever ``dtype``: in
    bfloat16 they would be half a cell apart.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        places = num_heads * num_levels * num_points
        directions = first_offsets(num_heads, num_levels, num_points).reshape(-1)
        self.sampling_offsets = nnx.Linear(
            embed_dim,
            2 * places,
            kernel_init=nnx.initializers.zeros,
            bias_init=lambda *_: jnp.asarray(directions),
            rngs=rngs,
        )
        self.attention_weights = nnx.Linear(
            embed_dim, places, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        self.value = nnx.Linear(
            embed_dim, embed_dim, kernel_init=xavier, dtype=dtype, rngs=rngs
        )
        self.out = nnx.Linear(
            embed_dim, embed_dim, kernel_init=xavier, dtype=dtype, rngs=rngs
        )
        self.shape = (num_heads, num_levels, num_points)

    def __call__(
        self,
        queries: Float[Array, "B L D"],
        tokens: Float[Array, "B L D"],
        grids: Grids,
    ) -> Float[Array, "B L D"]:
        """``queries`` are the tokens with their positions."""
        batch, length, _ = tokens.shape
        heads, levels, points = self.shape
        queries = queries.astype(jnp.float32)
        offsets = self.sampling_offsets(queries)
        offsets = offsets.reshape(batch, length, heads, levels, points, 2)
        weights = self.attention_weights(queries)
        weights = jax.nn.softmax(weights.reshape(batch, length, heads, -1), axis=-1)
        weights = weights.reshape(batch, length, heads, levels, points)
        references = grids.references()[:, :, None, None]
        out = 0.0
        for i, values in enumerate(grids.split(self.value(tokens))):
            shape = values.grid.shape[1:3]
            size = grids.sizes[i]
            size = jnp.asarray([shape]) if size is None else size
            # (x, y), and one for every token, head and point.
            scale = size[:, None, None, None, ::-1].astype(jnp.float32)
            places = references * scale - 0.5 + offsets[:, :, :, i]
            grid = mask_outside(values).grid.reshape(batch, *shape, heads, -1)
            out = out + weighted_samples(grid, places, weights[:, :, :, i])
        return self.out(out.reshape(tokens.shape).astype(tokens.dtype))

    def macs(self, num_tokens: int) -> Macs:
        """As fvcore counts: the four linear layers; samples are interpolation."""
        width, places = self.value.in_features, math.prod(self.shape)
        return product(num_tokens, width, 2 * width + 3 * places)


def first_offsets(
    num_heads: int, num_levels: int, num_points: int
) -> Float[np.ndarray, "heads levels P 2"]:
    """Every head looks into a direction of its own, 1, 2, ... cells away."""
    angles = 2.0 * math.pi / num_heads * np.arange(num_heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    directions /= np.max(np.abs(directions), axis=-1, keepdims=True)
    steps = np.arange(1, num_points + 1)[None, None, :, None]
    offsets = directions[:, None, None] * steps
    shape = (num_heads, num_levels, num_points, 2)
    return np.broadcast_to(offsets, shape).astype(np.float32)


class DeformableLayer(nnx.Module):
    """x = norm(x + attention); x = norm(x + mlp(x)), with a ReLU."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        mlp_dim: int,
        *,
        dropout_rate: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.attention = DeformableAttention(
            embed_dim, num_heads, num_levels, num_points, dtype=dtype, rngs=rngs
        )
        self.attention_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.mlp_in = detr_linear(embed_dim, mlp_dim, dtype, rngs)
        self.mlp_out = detr_linear(mlp_dim, embed_dim, dtype, rngs)
        self.mlp_norm = LayerNorm(embed_dim, epsilon=1e-5)
        self.dropout_rate = dropout_rate

    def __call__(
        self,
        tokens: Float[Array, "B L D"],
        positions: Float[Array, "#B L D"],
        grids: Grids,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L D"]:
        attention_rng, in_rng, out_rng = split_rng(rng, 3)
        branch = self.attention(tokens + positions, tokens, grids)
        branch = dropout(branch, self.dropout_rate, attention_rng)
        tokens = self.attention_norm(tokens + branch)

        def mlp(tokens: Array) -> Array:
            hidden = jax.nn.relu(self.mlp_in(tokens))
            branch = self.mlp_out(dropout(hidden, self.dropout_rate, in_rng))
            branch = dropout(branch, self.dropout_rate, out_rng)
            return self.mlp_norm(tokens + branch)

        return over_rows(mlp, tokens) if rng is None else mlp(tokens)

    def macs(self, num_tokens: int) -> Macs:
        width, hidden = self.mlp_in.in_features, self.mlp_in.out_features
        return (
            self.attention.macs(num_tokens)
            + 2 * product(num_tokens, width, hidden)
            + activation(num_tokens, hidden)
            + 2 * norm(num_tokens, width)
        )


def detr_linear(
    in_features: int, out_features: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
    """As DETR's start: Xavier's kernel, and PyTorch's own bias."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=xavier,
        bias_init=torch_uniform(in_features),
        dtype=dtype,
        rngs=rngs,
    )
