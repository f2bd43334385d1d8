"""A trained model as three functions of arrays, which is what is exported.

``encode`` looks at pictures and scores all C labels, ``classify`` is asked which of K
labels each cell or query is, as often as one likes, and ``segment`` is both with the
selection in between and a label map at the end. All results are flat dictionaries of
arrays, none of which has C channels per pixel.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mlseg_jax.distributed.sharding import for_any_platform
from mlseg_jax.errors import UserError
from mlseg_jax.inference.rank_space import best_rank, upsampled_tile
from mlseg_jax.label_selection import Selection, SelectionPolicy, ranks_to_labels
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.interfaces import (
    FeatureMap,
    LabelPrediction,
    Regions,
    TokenMap,
)
from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.models.mlseg import clear_padding
from mlseg_jax.tasks.engines import evaluation_policy
from mlseg_jax.typing import Array, Bool, Int, UInt8

Arrays = dict[str, Array]

BAND_BYTES = 2**25
"""Of logits at full resolution, for each picture: label maps are made by bands."""

TASKS = ("semantic", "panoptic", "instance")
"""That segment single pictures."""


@dataclasses.dataclass(frozen=True)
class Functions:
    """The three functions of a model for pictures of one size.

    Attributes:
      model, parameters: the network, whose numbers become constants.
      policy: how labels are selected; its ``k`` is the number of ranks.
      size: height and width of pictures, which the network sees whole.
      fixed_queries: class queries [C D] where they are the same for all pictures.
      sized: whether ``encode`` takes the real sizes of pictures on larger canvases.
    """

    model: FunctionalModel
    parameters: Parameters
    policy: SelectionPolicy
    size: tuple[int, int]
    fixed_queries: Array | None
    sized: bool

    @classmethod
    def of(
        cls,
        config: ml_collections.ConfigDict,
        model: FunctionalModel,
        parameters: Parameters,
        size: tuple[int, int],
    ) -> "Functions":
        """Of what a configuration says.

        Raises:
          UserError: the model cannot be exported; the sentence says why.
        """
        policy = exported_policy(config, model.num_classes)
        parts = model.bind(parameters)
        if any(side % parts.multiple for side in size):
            raise UserError(
                f"Pictures of {size[0]} x {size[1]} are no whole number of the "
                f"network's {parts.multiple} pixels; choose another --size."
            )
        images = jnp.zeros((1, *size, 3), jnp.uint8)
        with for_any_platform():
            shapes = jax.eval_shape(lambda x: model.bind(parameters).encode(x), images)
            fixed = None
            if shapes.class_queries.ndim == 2:
                fixed = jax.jit(
                    lambda x: model.bind(parameters).encode(x).class_queries
                )(images)
        # However large data.base_size: a long picture has a shorter side.
        return cls(model, parameters, policy, size, fixed, sized=parts.any_canvas)

    @property
    def num_ranks(self) -> int:
        return self.policy.k

    def encode(
        self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"] | None = None
    ) -> Arrays:
        """Label scores before the sigmoid [B C], and what ``classify`` needs of the
        pictures: features [B h w D] (and ``others``, further tokens [B O D], where
        the last blocks of the backbone classify), or object queries [B N D] and their
        masks before the sigmoid [B N h w]; and class queries [B C D], where pictures
        have their own.

        ``size``: real rows and columns of pictures that fill the upper left alone; then
        ``grid_size`` [B 2] is that of the features.
        """
        parts = self.model.bind(self.parameters)
        seen = None
        if size is not None:
            image = clear_padding(image, size, parts.pixel_mean)
            seen = -(-size // parts.multiple) * parts.multiple
        labels = parts.encode(image, image_size=seen)
        elements = labels.elements
        result = {"scores": labels.scores.astype(jnp.float32)}
        if isinstance(elements, Regions):
            result["queries"] = elements.queries[:, -1]
            result["mask_logits"] = elements.mask_logits()
        else:
            result["features"] = elements.grid
            if isinstance(elements, TokenMap):
                result["others"] = elements.others
            if elements.grid_size is not None:
                result["grid_size"] = elements.grid_size.astype(jnp.int32)
        if self.fixed_queries is None:
            result["class_queries"] = labels.class_queries
        return result

    def classify(
        self, encoded: Arrays, class_ids: Int[Array, "B K"], valid: Bool[Array, "B K"]
    ) -> Arrays:
        """``logits`` over ranks: of cells [B h w K], or of queries [B N K+1], where the
        last is no-object. Ranks that are not valid get -100.
        """
        if "features" in encoded:
            grid, size = encoded["features"], encoded.get("grid_size")
            elements = FeatureMap(grid, size)
            if "others" in encoded:
                elements = TokenMap(grid, size, encoded["others"])
        else:
            nothing = jnp.zeros((1, 1, 1))
            queries = encoded["queries"][:, None]
            elements = Regions(queries, nothing, FeatureMap(nothing[..., None]))
        queries = encoded.get("class_queries", self.fixed_queries)
        labels = LabelPrediction(encoded["scores"], queries, elements)
        selection = Selection(class_ids, valid, self.model.num_classes)
        output = self.model.bind(self.parameters).classify(labels, selection)
        if "features" in encoded:
            return {"logits": output.logits}
        return {"logits": output.class_logits[:, -1]}

    def segment(
        self, image: UInt8[Array, "B H W 3"], k: Int[Array, ""] | None = None
    ) -> Arrays:
        """Scores [B C], selected ``class_ids`` and which are ``valid`` [B K], and the
        ``label_map`` [B H W]; of pictures of the whole size. With ``k`` only so many
        ranks are valid.
        """
        encoded = self.encode(image)
        selection = self.policy.select()(encoded["scores"])
        ranks = jnp.arange(self.num_ranks)[None]
        valid = jnp.full(selection.class_ids.shape, True)
        if selection.valid is not None:
            valid = selection.valid
        if k is not None:
            valid &= ranks < jnp.maximum(k, 1)
        class_ids = selection.class_ids.astype(jnp.int32)
        selection = Selection(class_ids, valid, self.model.num_classes)
        logits = self.classify(encoded, class_ids, valid)["logits"]
        return {
            "scores": encoded["scores"],
            "class_ids": class_ids,
            "valid": valid,
            "label_map": self._label_map(encoded, logits, selection),
        }

    def _label_map(self, encoded: Arrays, logits: Array, selection: Selection):
        """Class ids [B H W], made a band of rows after the other."""
        if "features" in encoded:
            grid, scores_of = logits, upsampled_tile
        else:
            probabilities = jax.nn.softmax(logits, axis=-1)[..., :-1]
            probabilities = jnp.where(selection.valid[:, None], probabilities, 0.0)
            grid = jnp.moveaxis(encoded["mask_logits"], 1, -1)
            scores_of = functools.partial(_region_scores, probabilities)
        height, width = self.size
        rows, columns = (
            bilinear_matrix(length, cells)
            for length, cells in zip(self.size, grid.shape[1:3], strict=True)
        )
        channels = max(grid.shape[-1], self.num_ranks)
        step = int(np.clip(BAND_BYTES // (4 * channels * width), 1, height))
        bands = [
            best_rank(scores_of(grid, rows[y : y + step], columns))
            for y in range(0, height, step)
        ]
        return ranks_to_labels(jnp.concatenate(bands, axis=1), selection)


def _region_scores(probabilities: Array, masks: Array, rows, columns) -> Array:
    """Sum over queries of a label's probability times its mask's [B K S T]."""
    inside = jax.nn.sigmoid(upsampled_tile(masks, rows, columns))
    return jnp.einsum("bnk,bnST->bkST", probabilities, inside)


def exported_policy(
    config: ml_collections.ConfigDict, num_classes: int
) -> SelectionPolicy:
    """The selection of the exported chain.

    Raises:
      UserError: there is none that a picture alone decides.
    """
    if config.task not in TASKS:
        raise UserError(
            f"A run of the task {config.task!r} cannot be exported or served; those of "
            f"{', '.join(TASKS)} can."
        )
    policy = evaluation_policy(config, num_classes)
    if policy.name in ("oracle", "given"):
        has_scores = config.model.multilabel_head.name != "none"
        raise UserError(
            f"The selection {policy.name!r} needs more than a picture and cannot be "
            f"exported; add --config.selection.eval_name="
            f"{'top_k (or complete)' if has_scores else 'complete'}."
        )
    return policy
