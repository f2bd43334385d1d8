"""What the parts of a model say to each other.

A framework is two methods: ``embed`` makes per-pixel embeddings out of backbone
features, ``classify`` compares them with one vector per class. Neither knows how many
classes there are, nor which: label selection is the rows that ``classify`` is handed.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mlseg_jax.models.macs import Macs
from mlseg_jax.typing import Array, Bool, Float, Int, Length, PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A grid of features on a padded canvas.

    Attributes:
      grid: one vector per cell.
      grid_size: real rows and columns of it per example; ``None`` when all are real.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    grid: Float[Array, "B h w D"]
    grid_size: Int[Array, "B 2"] | None = None

    @property
    def mask(self) -> Bool[Array, "B h w"] | None:
        """True inside the picture, False on the padding of the canvas."""
        if self.grid_size is None:
            return None
        return inside_mask(self.grid.shape[1:3], self.grid_size)


def inside_mask(
    canvas: tuple[int, int], size: Int[Array, "B 2"]
) -> Bool[Array, "B H W"]:
    """True in the upper left rows and columns of a canvas that are real."""
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a decoder made of the features before it knows of any class.

    Attributes:
      pixels: what will be compared with the class queries.
      image: what the multi-label head looks at; often the same.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    pixels: FeatureMap
    image: FeatureMap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelPrediction:
    """What a multi-label head found out about the image.

    Attributes:
      scores: score of every class before the sigmoid (equation 1).
      class_queries: one vector per class, from which the selected rows are gathered;
        without a batch axis where they are the same for every image.
      pixels: pixel embeddings; the head may have refined them.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    scores: Float[Array, "B C"]
    class_queries: Float[Array, "B C D"] | Float[Array, "C D"]
    pixels: FeatureMap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """A model's whole answer.

    Attributes:
      label_scores: score of every class before the sigmoid.
      selection: the labels that pixels were classified among (`Selection`).
      logits: logits over ranks on the feature grid.
      grid_size: real rows and columns of it per example; ``None`` when all are real.
      auxiliary: embeddings of the auxiliary head, in training where there is one.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    label_scores: Float[Array, "B C"]
    selection: object
    logits: Float[Array, "B h w K"]
    grid_size: Int[Array, "B 2"] | None
    auxiliary: FeatureMap | None = None


class AbstractBackbone(nnx.Module):
    """Pixels to feature maps, from fine to coarse.

    Attributes:
      feature_dims: width of each map.
      any_canvas: whether a picture may fill a part of a larger canvas without any
        change; where it may not, prediction compiles once for every size of picture.
    """

    feature_dims: tuple[int, ...]
    any_canvas: bool = True

    @abc.abstractmethod
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None,
        rng: PRNGKeyArray | None,
    ) -> tuple[FeatureMap, ...]:
        """``image_size`` is the real part of the canvas; ``rng=None`` is evaluation."""

    @abc.abstractmethod
    def grid_lengths(self, length: Length) -> tuple[Length, ...]:
        """Rows (or columns) of each map for so many pixels."""

    @abc.abstractmethod
    def macs(self, size: tuple[int, int]) -> Macs:
        """Multiply-accumulates of one picture of so many rows and columns."""


class AbstractDecoder(nnx.Module):
    """Features and class queries to scores.

    Attributes:
      embed_dim: width of a class query.
      image_dim: width of what the multi-label head looks at.
      level: which of the backbone's maps has the grid of the scores.
      image_level: which has the grid of what the multi-label head looks at.
      class_bias: whether every class also has a learned bias on its scores.
    """

    embed_dim: int
    image_dim: int
    level: int
    image_level: int
    class_bias: bool

    @abc.abstractmethod
    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None
    ) -> Embeddings:
        """Pixel embeddings, whatever the classes."""

    @abc.abstractmethod
    def classify(
        self,
        pixels: FeatureMap,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None,
        rng: PRNGKeyArray | None,
    ) -> Float[Array, "B h w K"]:
        """Scores of each pixel for each row of ``class_queries``."""

    @abc.abstractmethod
    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """Of `embed`, for one picture whose backbone maps have these grids."""

    @abc.abstractmethod
    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        """Of `classify`, for pixel embeddings of so many rows and columns."""


class AbstractMultiLabelHead(nnx.Module):
    """Embeddings and class embeddings to label scores."""

    @abc.abstractmethod
    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None,
    ) -> LabelPrediction:
        """Scores all C labels for the whole image."""

    @abc.abstractmethod
    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        """Of one picture, where the head looks at so many rows and columns."""
