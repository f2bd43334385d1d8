"""Names in a configuration become modules; nothing else registers anything."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from mlseg_jax.distributed.sharding import gather_weights
from mlseg_jax.errors import UserError
from mlseg_jax.models.backbones.resnet import STEMS
from mlseg_jax.models.backbones.vit import POSITIONS
from mlseg_jax.models.decoders.regions import IMAGES
from mlseg_jax.models.layers.block_stack import REMAT_POLICIES
from mlseg_jax.models.layers.resize import POSITION_RESIZES
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.models.multilabel_heads.projected_encoder import PROJECTIONS
from mlseg_jax.models.parts import (
    AUXILIARY_HEADS,
    BACKBONES,
    DECODERS,
    MULTILABEL_HEADS,
    PIXEL_DECODERS,
    from_section,
    make_part,
)
from mlseg_jax.models.presence_prior import PRIORS, PresencePrior
from mlseg_jax.models.query2label import Query2Label
from mlseg_jax.models.rank_adaptive import RANK_NORMS, RankNorm
from mlseg_jax.settings import keys
from mlseg_jax.typing import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Parameters = dict[str, Array]
"""Flat: the path of an array in the model, joined by ``/``, to the array."""


def _build_mlseg(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg:
    common = {"dtype": DTYPES[config.model.dtype], "rngs": rngs}
    choice = config.model
    make = functools.partial(make_part, config, **common)
    backbone = make(BACKBONES, "backbone")
    # A decoder of regions stands on a pixel decoder.
    base = backbone
    if "pixel_decoder" in choice:
        base = make(PIXEL_DECODERS, "pixel_decoder", backbone)
    decoder = make(DECODERS, "decoder", base)
    return MLSeg(
        backbone,
        decoder,
        make(MULTILABEL_HEADS, "multilabel_head", decoder, num_classes),
        RankNorm(
            choice.rank_norm.kind,
            _norm_size(config, num_classes),
            unbiased_variance=choice.rank_norm.unbiased_variance,
            no_object=decoder.num_queries > 0,
        ),
        num_classes=num_classes,
        scales_of_classes=config.selection.name == "complete",
        classes_in_backbone=_classes_in_backbone(config),
        initial_classes=choice.class_embeddings.initial,
        num_nearest=_num_nearest(config),
        last_prediction_only=config.selection.last_prediction_only,
        presence_prior=_presence_prior(config, num_classes),
        auxiliary_head=make(AUXILIARY_HEADS, "auxiliary_head", backbone, num_classes),
        pixel_mean=tuple(config.data.pixel_mean),
        pixel_std=tuple(config.data.pixel_std),
        rngs=rngs,
    )


def _build_query2label(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> Query2Label:
    common = {"dtype": DTYPES[config.model.dtype], "rngs": rngs}
    return from_section(
        Query2Label,
        config.model.transformer,
        backbone=make_part(config, BACKBONES, "backbone", **common),
        num_classes=num_classes,
        pixel_mean=tuple(config.data.pixel_mean),
        pixel_std=tuple(config.data.pixel_std),
        **common,
    )


MODELS = {
    "semantic": _build_mlseg,
    "panoptic": _build_mlseg,
    "instance": _build_mlseg,
    "video_semantic": _build_mlseg,
    "video_instance": _build_mlseg,
    "multilabel": _build_query2label,
}
"""The kind of model that a task trains."""

SECTIONS = {
    _build_mlseg: ("decoder", "configs/segmenter.py or configs/mask2former.py"),
    _build_query2label: ("transformer", "configs/query2label.py"),
}
"""A part that each kind has alone, and recipes that give it one."""


class _Count:
    """How many keys there were, as a plain number in place of a traced array.

    Each change of that one took longer for every array that there was already, and all
    of them most of the time to build a model. The keys are the same.
    """

    def __init__(self):
        self._number = 0

    def __getitem__(self, index) -> int:
        return self._number

    def __setitem__(self, index, number: int) -> None:
        self._number = number


def build_model(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg | Query2Label:
    """The model of a configuration for ``num_classes`` complete labels."""
    check_config(config)
    for _, stream in rngs.items():
        stream.count.set_raw_value(_Count())
    return MODELS[config.task](config, num_classes, rngs)


TABLES = {
    "task": MODELS,
    "model.dtype": DTYPES,
    "model.presence_prior.kind": PRIORS,
    "model.rank_norm.kind": RANK_NORMS,
    "model.backbone.name": BACKBONES,
    "model.backbone.position_resize": POSITION_RESIZES,
    "model.backbone.positions": POSITIONS,
    "model.backbone.remat": REMAT_POLICIES,
    "model.backbone.stem": STEMS,
    "model.decoder.image": IMAGES,
    "model.decoder.name": DECODERS,
    "model.pixel_decoder.name": PIXEL_DECODERS,
    "model.multilabel_head.projection": PROJECTIONS,
    "model.multilabel_head.name": MULTILABEL_HEADS,
    "model.auxiliary_head.name": AUXILIARY_HEADS,
    "model.transformer.remat": REMAT_POLICIES,
}
"""Keys that are names in a table, and that table."""


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks every key of a configuration; whoever opens something calls it first.

    Raises:
      UserError: a sentence that names the key, says what it is and what it may be.
    """
    keys.check(config, TABLES)
    section, recipe = SECTIONS[MODELS[config.task]]
    if section not in config.model:
        raise UserError(
            f"The task {config.task!r} needs model.{section}, which this configuration "
            f"has not; start from {recipe}."
        )


def num_ranks(config: ml_collections.ConfigDict, num_classes: int) -> int:
    """How many ranks the model is trained with."""
    if config.selection.name == "complete":
        return num_classes
    return min(config.selection.k, num_classes)


def _norm_size(config: ml_collections.ConfigDict, num_classes: int) -> int:
    """Scales of the rank norm; the oracle's norm has C and uses the first ones."""
    if config.selection.name == "oracle":
        return num_classes
    return num_ranks(config, num_classes)


def _num_nearest(config: ml_collections.ConfigDict) -> int | None:
    """What ESSNet's loss compares each pixel's class with, it also predicts among."""
    is_essnet = config.loss.pixel == "nearest_classes"
    return config.loss.num_nearest if is_essnet else None


def _presence_prior(
    config: ml_collections.ConfigDict, num_classes: int
) -> PresencePrior | None:
    section = config.model.get("presence_prior")
    if section is None or section.kind == "none":
        return None
    if config.model.multilabel_head.name == "none":
        raise UserError(
            "model.presence_prior.kind needs label scores, but "
            "model.multilabel_head.name is 'none'; set one of the two."
        )
    return PresencePrior(
        section.kind,
        num_ranks(config, num_classes),
        initial=section.initial,
        detach=section.detach,
    )


def _classes_in_backbone(config: ml_collections.ConfigDict) -> bool:
    choice = config.model.class_embeddings
    if choice.in_backbone and config.model.backbone.name != "vit":
        raise UserError(
            "model.class_embeddings.in_backbone puts the classes before the last block "
            "of a ViT; set it to False, or model.backbone to a ViT."
        )
    return choice.in_backbone


class FunctionalModel(NamedTuple):
    """A model apart from its numbers: ``bind(parameters)`` is a model to call.

    Training, sharding, checkpoints and conversion all see one flat dict of arrays.
    """

    graph: nnx.GraphDef
    abstract: nnx.State
    num_classes: int

    @classmethod
    def build(cls, config: ml_collections.ConfigDict, num_classes: int):
        """Makes no array: the model is only traced."""
        make = functools.partial(build_model, config, num_classes)
        graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        return cls(graph, abstract, num_classes)

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return flat_parameters(self.abstract)

    @property
    def learned(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of parameters alone, without what batch norms measure."""
        return flat_parameters(nnx.state(self.abstract, nnx.Param))

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape.shape) for shape in self.learned.values())

    def grid_length(self, length: int) -> int:
        """Rows (or columns) of the logits for so many pixels."""
        return nnx.merge(self.graph, self.abstract).grid_length(length)

    @property
    def any_canvas(self) -> bool:
        return nnx.merge(self.graph, self.abstract).any_canvas

    @property
    def multiple(self) -> int:
        return nnx.merge(self.graph, self.abstract).multiple

    @property
    def num_queries(self) -> int:
        """Object queries of a picture; 0 where pixels are classified."""
        return nnx.merge(self.graph, self.abstract).decoder.num_queries

    def bind(self, parameters: Parameters) -> MLSeg | Query2Label:
        # Those of blocks are gathered block by block.
        outside = {k: v for k, v in parameters.items() if "/blocks/" not in k}
        parameters = parameters | gather_weights(outside)
        state = [
            (path, variable.replace(parameters["/".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(self.abstract)
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(state))


def flat_parameters(
    state: nnx.State,
) -> Parameters | dict[str, jax.ShapeDtypeStruct]:
    """The arrays of an ``nnx.State`` by path; shapes where it is abstract."""
    return {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def statistics(model: nnx.Module) -> Parameters:
    """What a model measures and does not learn: running averages of batch norms."""
    return flat_parameters(nnx.state(model, nnx.BatchStat))


def initial_parameters(
    config: ml_collections.ConfigDict, num_classes: int, seed: Array
) -> tuple[Parameters, Parameters]:
    """Random parameters, and statistics of nothing.

    Call it under ``jax.jit`` with the wanted shardings.
    """
    model = build_model(config, num_classes, nnx.Rngs(seed))
    return flat_parameters(nnx.state(model, nnx.Param)), statistics(model)
