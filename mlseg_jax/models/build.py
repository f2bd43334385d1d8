"""Names in a configuration become modules; nothing else registers anything."""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.mlseg import CLASS_INITIALS, MLSeg
from mlseg_jax.models.parts import (
    AUXILIARY_HEADS,
    BACKBONES,
    DECODERS,
    MULTILABEL_HEADS,
    PIXEL_DECODERS,
)
from mlseg_jax.models.query2label import Query2Label
from mlseg_jax.models.rank_adaptive import RankNorm
from mlseg_jax.sharding import gather_weights
from mlseg_jax.typing import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Parameters = dict[str, Array]
"""Flat: the path of an array in the model, joined by ``/``, to the array."""


def _build_mlseg(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg:
    common = {"dtype": _choose(DTYPES, "dtype", config.model.dtype), "rngs": rngs}
    choice = config.model
    make = functools.partial(_make_part, config, **common)
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
        auxiliary_head=make(AUXILIARY_HEADS, "auxiliary_head", backbone, num_classes),
        pixel_mean=tuple(config.data.pixel_mean),
        pixel_std=tuple(config.data.pixel_std),
        rngs=rngs,
    )


def _build_query2label(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> Query2Label:
    common = {"dtype": _choose(DTYPES, "dtype", config.model.dtype), "rngs": rngs}
    transformer = config.model.transformer
    return Query2Label(
        _make_part(config, BACKBONES, "backbone", **common),
        num_classes=num_classes,
        num_heads=transformer.num_heads,
        mlp_dim=transformer.mlp_dim,
        num_encoder_layers=transformer.num_encoder_layers,
        num_decoder_layers=transformer.num_decoder_layers,
        dropout_rate=transformer.dropout_rate,
        remat=transformer.remat,
        pixel_mean=tuple(config.data.pixel_mean),
        pixel_std=tuple(config.data.pixel_std),
        **common,
    )


MODELS = {
    "semantic": _build_mlseg,
    "panoptic": _build_mlseg,
    "instance": _build_mlseg,
    "multilabel": _build_query2label,
}
"""The kind of model that a task trains."""


def build_model(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg | Query2Label:
    """The model of a configuration for ``num_classes`` complete labels."""
    _check_sizes(config)
    return _choose(MODELS, "task", config.task)(config, num_classes, rngs)


_MAY_BE_ZERO = (
    *("downsample", "num_registers", "num_norms", "num_encoder_layers"),
    "image_layer",
)
"""Counts that 0 switches off."""

_PLACES = ("taps", "level")
"""Numbers of blocks or maps; `parts` knows how many there are."""


def _check_sizes(config: ml_collections.ConfigDict) -> None:
    """Whole numbers of parts are sizes and counts; rates are probabilities."""
    for part, settings in config.model.items():
        if not isinstance(settings, ml_collections.ConfigDict):
            continue
        for name, value in settings.items():
            values = value if isinstance(value, tuple | list) else (value,)
            if name.endswith("_rate"):
                fits = all(0 <= x < 1 for x in values)
                wanted = "a probability, from 0 to below 1"
            else:
                least = 0 if name in _MAY_BE_ZERO else 1
                # A bool is an int to `isinstance`.
                fits = name in _PLACES or all(
                    x >= least for x in values if type(x) is int
                )
                wanted = f"a whole number from {least}"
            if not fits:
                raise UserError(f"model.{part}.{name} is {value}; give {wanted}.")


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


def _classes_in_backbone(config: ml_collections.ConfigDict) -> bool:
    choice = config.model.class_embeddings
    _choose(CLASS_INITIALS, "model.class_embeddings.initial", choice.initial)
    if choice.in_backbone and config.model.backbone.name != "vit":
        raise UserError(
            "model.class_embeddings.in_backbone puts the classes before the last block "
            "of a ViT; set it to False, or model.backbone to a ViT."
        )
    return choice.in_backbone


def _make_part(
    config: ml_collections.ConfigDict, table: Mapping, key: str, *args, **common
):
    """The part that ``model.KEY`` names, which must have all that this kind reads."""
    name = config.model[key].name
    make = _choose(table, f"model.{key}.name", name)
    try:
        return make(config, *args, **common)
    except AttributeError as error:
        # What a ConfigDict raises for a key that it has not.
        if not (error.args and isinstance(error.args[0], KeyError)):
            raise
        (missing, *_) = re.findall(r"\w+", str(error.args[0]))
        raise UserError(
            f"model.{key}.name={name!r} needs the key {missing!r}, which this "
            f"configuration has not; start from a file of configs/ that has it."
        ) from error


def _choose(table: Mapping, what: str, name: str):
    if name not in table:
        raise UserError(f"Unknown {what} {name!r}; choose one of {', '.join(table)}.")
    return table[name]


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
