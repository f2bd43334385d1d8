"""What the parts of a model say to each other.

A framework is two methods: ``embed`` makes embeddings out of backbone features, of
pixels or of regions, and ``classify`` compares them with one vector per class. Neither
knows how many classes there are, nor which: label selection is the rows that
``classify`` is handed.
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
    """A grid of features on a padded canvas; of a clip, one of each frame.

    Attributes:
      grid: one vector per cell.
      grid_size: real rows and columns of it per example; ``None`` when all are real.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    grid: Float[Array, "B *T h w D"]
    grid_size: Int[Array, "B 2"] | None = None

    @property
    def mask(self) -> Bool[Array, "B h w"] | None:
        """True inside the picture, False on the padding of the canvas."""
        if self.grid_size is None:
            return None
        return inside_mask(self.grid.shape[-3:-1], self.grid_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenMap(FeatureMap):
    """Patch tokens as a map, with what else the last blocks of a backbone need.

    Attributes:
      others: class token and registers.
      position_scale: what coordinates of patches were stretched by, in training; None
        where they were not.
    """

    __no_type_check__ = True

    others: Float[Array, "B O D"] | None = None
    position_scale: Float[Array, ""] | None = None


def inside_mask(
    canvas: tuple[int, int], size: Int[Array, "B 2"]
) -> Bool[Array, "B H W"]:
    """True in the upper left rows and columns of a canvas that are real."""
    rows = jnp.arange(canvas[0])[None, :, None] < size[:, 0, None, None]
    return rows & (jnp.arange(canvas[1])[None, None] < size[:, 1, None, None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
    """Object queries and the masks they stand for, of every supervised prediction.

    In training there are P predictions, the last one last; in evaluation it alone. A
    mask is the product of its query's embedding with the mask features, so that masks
    of a whole grid exist only where somebody asks for them.

    Attributes:
      queries: what is compared with the class queries.
      mask_embeddings: one vector for each mask.
      features: what the masks are products with, on the finest grid: one map, or a
        tuple of one for each prediction.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    queries: Float[Array, "B P N D"]
    mask_embeddings: Float[Array, "B P N E"]
    features: FeatureMap | tuple[FeatureMap, ...]

    @property
    def grid_size(self) -> Int[Array, "B 2"] | None:
        """Real rows and columns of the masks; ``None`` when all are real."""
        return self.features_of(-1).grid_size

    @property
    def grids(
        self,
    ) -> Float[Array, "B *T h w E"] | tuple[Float[Array, "B *T h w E"], ...]:
        """The features alone."""
        if isinstance(self.features, tuple):
            return tuple(each.grid for each in self.features)
        return self.features.grid

    def features_of(self, prediction: int) -> FeatureMap:
        """What the masks of a prediction are products with."""
        if isinstance(self.features, tuple):
            return self.features[prediction]
        return self.features

    @property
    def mask(self) -> None:
        """Every query is real, whatever the canvas."""
        return None

    @property
    def num_predictions(self) -> int:
        return self.queries.shape[1]

    def mask_logits(self, prediction: int = -1) -> Float[Array, "B N *T h w"]:
        """Masks of one prediction before the sigmoid, in float32."""
        features = self.features_of(prediction)
        return mask_products(self.mask_embeddings[:, prediction], features.grid)


def mask_products(
    mask_embeddings: Float[Array, "B N E"], features: Float[Array, "B *T h w E"]
) -> Float[Array, "B N *T h w"]:
    """Mask logits in float32."""
    return jnp.einsum(
        "bne,b...e->bn...",
        mask_embeddings,
        features.astype(mask_embeddings.dtype),
        preferred_element_type=jnp.float32,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a decoder made of the features before it knows of any class.

    Attributes:
      elements: what will be compared with the class queries: pixels or regions.
      image: what the multi-label head looks at: the same, an earlier map, or object
        queries side by side as a map of one row.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    elements: FeatureMap | Regions
    image: FeatureMap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelPrediction:
    """What a multi-label head found out about the image.

    Attributes:
      scores: score of every class before the sigmoid (equation 1).
      class_queries: one vector per class, from which the selected rows are gathered;
        without a batch axis where they are the same for every image.
      elements: pixels or regions; the head may have refined the pixels.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    scores: Float[Array, "B C"]
    class_queries: Float[Array, "B C D"] | Float[Array, "C D"]
    elements: FeatureMap | Regions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """The whole answer of a model that classifies pixels.

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RegionOutput:
    """The whole answer of a model that classifies regions.

    Attributes:
      label_scores: score of every class before the sigmoid.
      selection: the labels that regions were classified among (`Selection`).
      class_logits: logits over ranks of every query of every prediction; the last
        column, beyond all ranks, is no-object.
      regions: the masks.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    label_scores: Float[Array, "B C"]
    selection: object
    class_logits: Float[Array, "B P N K+1"]
    regions: Regions

    @property
    def grid_size(self) -> Int[Array, "B 2"] | None:
        """Real rows and columns of the masks; ``None`` when all are real."""
        return self.regions.grid_size


def make_output(
    label_scores: Float[Array, "B C"],
    selection: object,
    logits: Float[Array, "B _ _ ranks"],
    elements: FeatureMap | Regions,
) -> Output | RegionOutput:
    """The answer about pixels, or about regions."""
    if isinstance(elements, Regions):
        return RegionOutput(label_scores, selection, logits, elements)
    return Output(label_scores, selection, logits, elements.grid_size)


class AbstractBackbone(nnx.Module):
    """Pixels to feature maps, from fine to coarse.

    Attributes:
      feature_dims: width of each map.
      any_canvas: whether a picture may fill a part of a larger canvas without any
        change; where it may not, prediction compiles once for every size of picture.
      multiple: stride of the coarsest map, to which regions' pictures are padded.
    """

    feature_dims: tuple[int, ...]
    any_canvas: bool = True
    multiple: int = 32

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
    """Features and class queries to scores, of pixels or of regions.

    Attributes:
      embed_dim: width of a class query.
      image_dim: width of what the multi-label head looks at.
      level: which of the backbone's maps has the grid of the scores or masks.
      upscale: how many times as fine they are as that map.
      image_level: which has the grid of what the multi-label head looks at; ``None``
        where these are object queries.
      class_bias: whether every class also has a learned bias on its scores.
      num_queries: object queries of a picture; 0 where pixels are classified. Where
        there are any, scores have a last column, no-object, of the decoder's own.
      anneals: whether `embed` is told the progress of the training, too.
    """

    embed_dim: int
    image_dim: int
    level: int
    image_level: int | None
    class_bias: bool
    num_queries: int = 0
    upscale: int = 1
    anneals: bool = False

    @abc.abstractmethod
    def embed(
        self, features: tuple[FeatureMap, ...], rng: PRNGKeyArray | None
    ) -> Embeddings:
        """Embeddings of pixels or regions, whatever the classes."""

    @abc.abstractmethod
    def classify(
        self,
        elements: FeatureMap | Regions,
        class_queries: Float[Array, "B K D"],
        valid: Bool[Array, "B K"] | None,
        rng: PRNGKeyArray | None,
    ) -> Float[Array, "B h w K"] | Float[Array, "B P N K+1"]:
        """Scores of each pixel or query for each row of ``class_queries``."""

    @abc.abstractmethod
    def embed_macs(self, grids: tuple[tuple[int, int], ...]) -> Macs:
        """Of `embed`, for one picture whose backbone maps have these grids."""

    @abc.abstractmethod
    def classify_macs(self, grid: tuple[int, int], num_ranks: int) -> Macs:
        """Of `classify`, for so many rows and columns of pixels or queries."""


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
