"""Names in a configuration become modules; nothing else registers anything."""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from mlseg_jax.errors import UserError
from mlseg_jax.models.backbones.swin import Swin
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.decoders.segmenter import SegmenterDecoder
from mlseg_jax.models.layers.context_encoding import ContextEncoding
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.models.multilabel_heads.global_pooling import GlobalPoolingHead
from mlseg_jax.models.multilabel_heads.linear import LinearHead
from mlseg_jax.models.multilabel_heads.none import NoMultiLabelHead
from mlseg_jax.models.multilabel_heads.segmentation_logits import (
    SegmentationLogitsHead,
)
from mlseg_jax.models.multilabel_heads.transformer_decoder import (
    TransformerDecoderHead,
)
from mlseg_jax.models.multilabel_heads.transformer_encoder import (
    TransformerEncoderHead,
)
from mlseg_jax.models.query2label import Query2Label
from mlseg_jax.models.rank_adaptive import RankNorm
from mlseg_jax.sharding import gather_weights
from mlseg_jax.typing import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Parameters = dict[str, Array]
"""Flat: the path of an array in the model, joined by ``/``, to the array."""


def _build_vit(config, **common):
    backbone = config.model.backbone
    return ViT(
        image_size=tuple(backbone.image_size),
        patch_size=backbone.patch_size,
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        mlp_dim=backbone.mlp_dim,
        norm_epsilon=backbone.norm_epsilon,
        position_resize=backbone.position_resize,
        drop_path_rate=backbone.drop_path_rate,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


def _build_swin(config, **common):
    backbone = config.model.backbone
    return Swin(
        embed_dim=backbone.embed_dim,
        depths=tuple(backbone.depths),
        num_heads=tuple(backbone.num_heads),
        window_size=backbone.window_size,
        drop_path_rate=backbone.drop_path_rate,
        num_norms=backbone.num_norms,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


def _num_heads(config) -> int:
    """Heads of the blocks after the backbone: as many as its last ones have."""
    heads = config.model.backbone.num_heads
    return heads if isinstance(heads, int) else heads[-1]


def _build_segmenter(config, backbone, encoding=None, cosine_dim=None, **common):
    head = config.model.multilabel_head.name
    return SegmenterDecoder(
        feature_dim=backbone.feature_dims[-1],
        embed_dim=backbone.feature_dims[-1],
        depth=config.model.decoder.depth,
        num_heads=_num_heads(config),
        dropout_rate=config.model.decoder.dropout_rate,
        # What the head looks at; features, where it is not said here.
        image={"transformer_encoder": "projected", "linear": "encoding"}.get(
            head, "features"
        ),
        encoding=encoding,
        cosine_dim=cosine_dim,
        remat=config.model.backbone.remat,
        **common,
    )


def _build_encnet(config, backbone, **common):
    num_codes = config.model.decoder.num_codes
    encoding = ContextEncoding(backbone.feature_dims[-1], num_codes, **common)
    return _build_segmenter(config, backbone, encoding=encoding, **common)


def _build_essnet(config, backbone, **common):
    cosine_dim = config.model.decoder.cosine_dim
    return _build_segmenter(config, backbone, cosine_dim=cosine_dim, **common)


def _build_transformer_encoder_head(config, decoder, num_classes, **common):
    return TransformerEncoderHead(
        num_classes=num_classes,
        embed_dim=decoder.embed_dim,
        num_heads=_num_heads(config),
        dropout_rate=config.model.decoder.dropout_rate,
        downsample=config.model.multilabel_head.downsample or None,
        remat=config.model.backbone.remat,
        **common,
    )


def _build_transformer_decoder_head(config, decoder, num_classes, **common):
    head = config.model.multilabel_head
    return TransformerDecoderHead(
        num_classes=num_classes,
        image_dim=decoder.image_dim,
        embed_dim=decoder.embed_dim,
        num_heads=head.num_heads,
        mlp_dim=head.mlp_dim,
        depth=head.depth,
        downsample=head.downsample,
        dropout_rate=config.model.decoder.dropout_rate,
        remat=config.model.backbone.remat,
        **common,
    )


def _build_global_pooling_head(config, decoder, num_classes, **common):
    return GlobalPoolingHead(
        num_classes=num_classes,
        image_dim=decoder.image_dim,
        downsample=config.model.multilabel_head.downsample,
        **common,
    )


BACKBONES = {"vit": _build_vit, "swin": _build_swin}
DECODERS = {
    "encnet": _build_encnet,
    "essnet": _build_essnet,
    "segmenter": _build_segmenter,
}
MULTILABEL_HEADS = {
    "transformer_encoder": _build_transformer_encoder_head,
    "transformer_decoder": _build_transformer_decoder_head,
    "global_pooling": _build_global_pooling_head,
    "linear": lambda config, decoder, num_classes, **common: LinearHead(
        num_classes=num_classes, image_dim=decoder.image_dim, **common
    ),
    "segmentation_logits": lambda config, decoder, num_classes, **common: (
        SegmentationLogitsHead(decoder, num_classes=num_classes)
    ),
    "none": lambda config, decoder, num_classes, **common: NoMultiLabelHead(),
}


def _build_mlseg(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg:
    common = {"dtype": _choose(DTYPES, "dtype", config.model.dtype), "rngs": rngs}
    choice = config.model
    make_backbone = _choose(BACKBONES, "backbone", choice.backbone.name)
    make_decoder = _choose(DECODERS, "decoder", choice.decoder.name)
    make_head = _choose(
        MULTILABEL_HEADS, "multi-label head", choice.multilabel_head.name
    )
    backbone = make_backbone(config, **common)
    decoder = make_decoder(config, backbone, **common)
    return MLSeg(
        backbone,
        decoder,
        make_head(config, decoder, num_classes, **common),
        RankNorm(
            choice.rank_norm.kind,
            _norm_size(config, num_classes),
            unbiased_variance=choice.rank_norm.unbiased_variance,
        ),
        num_classes=num_classes,
        classes_in_backbone=_classes_in_backbone(config),
        zero_classes=choice.class_embeddings.initial == "zeros",
        pixel_mean=tuple(config.data.pixel_mean),
        pixel_std=tuple(config.data.pixel_std),
        rngs=rngs,
    )


def _build_query2label(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> Query2Label:
    common = {"dtype": _choose(DTYPES, "dtype", config.model.dtype), "rngs": rngs}
    transformer = config.model.transformer
    make_backbone = _choose(BACKBONES, "backbone", config.model.backbone.name)
    return Query2Label(
        make_backbone(config, **common),
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


MODELS = {"semantic": _build_mlseg, "multilabel": _build_query2label}
"""The kind of model that a task trains."""


def build_model(
    config: ml_collections.ConfigDict, num_classes: int, rngs: nnx.Rngs
) -> MLSeg | Query2Label:
    """The model of a configuration for ``num_classes`` complete labels."""
    return _choose(MODELS, "task", config.task)(config, num_classes, rngs)


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
    if choice.initial not in ("normal", "zeros"):
        raise UserError(
            f"Unknown model.class_embeddings.initial {choice.initial!r}; choose normal "
            f"or zeros."
        )
    if choice.in_backbone and config.model.backbone.name != "vit":
        raise UserError(
            "model.class_embeddings.in_backbone puts the classes before the last block "
            "of a ViT; set it to False, or model.backbone to a ViT."
        )
    return choice.in_backbone


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
