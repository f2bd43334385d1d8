"""The tables of parts: a name in a configuration to what makes the module.

Parts build themselves: a row is a class whose constructor's arguments are named like
the keys of its section, such as ``model.decoder``; the rest of them is what it stands
on (a backbone on nothing, a decoder on the backbone, a head on the decoder or backbone
and the number of classes), ``dtype`` and ``rngs``. A section may have keys of other
parts of its table, so that ``name`` alone chooses another part and saved runs load.
Where something is no plain key, the row is a function that says it and leaves the
others to `from_section`.
"""

import re
from collections.abc import Mapping

import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.models.backbones.beit import Beit
from mlseg_jax.models.backbones.resnet import ResNet
from mlseg_jax.models.backbones.swin import Swin
from mlseg_jax.models.backbones.tresnet import TResNet
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.decoders.auxiliary import FCNHead
from mlseg_jax.models.decoders.deeplabv3 import DeepLabV3Decoder
from mlseg_jax.models.decoders.linear import LinearDecoder
from mlseg_jax.models.decoders.mask2former import Mask2FormerDecoder
from mlseg_jax.models.decoders.maskformer import MaskFormerDecoder
from mlseg_jax.models.decoders.segmenter import SegmenterDecoder
from mlseg_jax.models.decoders.upernet import UPerNetDecoder
from mlseg_jax.models.encoder_only import (
    build_encoder_only,
    build_eomt,
    check_held_back,
    held_back,
)
from mlseg_jax.models.layers.context_encoding import ContextEncoding
from mlseg_jax.models.multilabel_heads.global_pooling import GlobalPoolingHead
from mlseg_jax.models.multilabel_heads.linear import LinearHead
from mlseg_jax.models.multilabel_heads.none import NoMultiLabelHead
from mlseg_jax.models.multilabel_heads.projected_encoder import ProjectedEncoderHead
from mlseg_jax.models.multilabel_heads.segmentation_logits import (
    SegmentationLogitsHead,
)
from mlseg_jax.models.multilabel_heads.transformer_decoder import (
    TransformerDecoderHead,
)
from mlseg_jax.models.multilabel_heads.transformer_encoder import (
    TransformerEncoderHead,
)
from mlseg_jax.models.pixel_decoders.abstract import AbstractPixelDecoder
from mlseg_jax.models.pixel_decoders.deformable import DeformableDecoder
from mlseg_jax.models.pixel_decoders.encoder_fpn import EncoderFPNDecoder
from mlseg_jax.models.pixel_decoders.fpn import FPNDecoder
from mlseg_jax.models.sections import from_section


def make_part(
    config: ml_collections.ConfigDict, table: Mapping, key: str, *stands_on, **common
):
    """The part that ``model.KEY`` names.

    Raises:
      UserError: it needs a key that its section has not.
    """
    name = config.model[key].name
    row = table[name]
    try:
        if isinstance(row, type):
            offered = OFFERED[key](config, *stands_on)
            return from_section(row, config.model[key], **offered, **common)
        return row(config, *stands_on, **common)
    except AttributeError as error:
        # What a ConfigDict raises for a key that it has not.
        if not (error.args and isinstance(error.args[0], KeyError)):
            raise
        (missing, *_) = re.findall(r"\w+", str(error.args[0]))
        raise UserError(
            f"model.{key}.name={name!r} needs the key {missing!r}, which this "
            f"configuration has not; start from a file of configs/ that has it."
        ) from error


# ------------------------------------------------- what a part learns from what it
# stands on, by the name of its section


def _from_backbone(config, backbone, num_classes: int | None = None) -> dict:
    return {
        "feature_dims": backbone.feature_dims,
        "feature_dim": backbone.feature_dims[-1],
        "num_classes": num_classes,
    } | _how(config)


def _how(config) -> dict:
    """How equal layers run: as those of the backbone."""
    backbone = config.model.backbone
    return {"remat": backbone.remat, "scan": backbone.get("scan", False)}


def _from_decoder(config, decoder, num_classes: int) -> dict:
    """A head drops out as its decoder does, unless its own section has a rate."""
    section = config.model.decoder
    rate = {"dropout_rate": section.dropout_rate} if "dropout_rate" in section else {}
    return rate | {
        "decoder": decoder,
        "image_dim": decoder.image_dim,
        "embed_dim": decoder.embed_dim,
        "num_classes": num_classes,
        "remat": config.model.backbone.remat,
    }


OFFERED = {
    "backbone": held_back,
    "pixel_decoder": _from_backbone,
    "decoder": _from_backbone,
    "multilabel_head": _from_decoder,
    "auxiliary_head": _from_backbone,
}


# ------------------------------------------------------------ what is no plain key


def _check_taps(backbone, count: int | None = None) -> None:
    taps, last = tuple(backbone.taps), backbone.depth - 1
    fits = sorted(taps) == list(taps) and all(0 <= tap <= last for tap in taps)
    if not fits or len(taps) != (count or len(taps)):
        raise UserError(
            f"model.backbone.taps is {taps}; give {f'{count} ' if count else ''}"
            f"blocks from 0 to {last}, earlier ones first, or change "
            f"model.backbone.depth."
        )


def _build_vit(config, **common):
    backbone = config.model.backbone
    _check_taps(backbone)
    check_held_back(config)
    return from_section(ViT, backbone, **held_back(config), **common)


def _build_beit(config, **common):
    _check_taps(config.model.backbone, count=4)
    return from_section(Beit, config.model.backbone, **common)


def _check_stages(backbone, *keys: str) -> None:
    """Every key has an entry for each stage."""
    counts = [len(getattr(backbone, key)) for key in keys]
    if len(set(counts)) > 1:
        raise UserError(
            f"model.backbone.{', '.join(keys)} need one entry for each stage, but have "
            f"{', '.join(map(str, counts))}."
        )


def _build_swin(config, **common):
    backbone = config.model.backbone
    _check_stages(backbone, "depths", "num_heads")
    if any(depth % 2 for depth in backbone.depths):
        raise UserError(
            f"The blocks of Swin come in pairs, but model.backbone.depths is "
            f"{tuple(backbone.depths)}; give even numbers."
        )
    return from_section(Swin, backbone, **common)


def _build_tresnet(config, **common):
    _check_stages(config.model.backbone, "depths", "bottlenecks")
    return from_section(TResNet, config.model.backbone, **common)


def _build_resnet(config, **common):
    _check_stages(config.model.backbone, "depths", "strides", "dilations")
    return from_section(ResNet, config.model.backbone, **common)


def _num_heads(config, embed_dim: int) -> int:
    """Heads of the blocks after the backbone: as many as its last ones have, or else
    one for every 64 values.
    """
    heads = config.model.backbone.get("num_heads", max(1, embed_dim // 64))
    return heads if isinstance(heads, int) else heads[-1]


def _build_segmenter(config, backbone, encoding=None, cosine_dim=None, **common):
    width = backbone.feature_dims[-1]
    # What the head looks at; features, where it is not said here.
    image = {"transformer_encoder": "projected", "linear": "encoding"}.get(
        config.model.multilabel_head.name, "features"
    )
    said = {
        "embed_dim": width,
        "num_heads": _num_heads(config, width),
        "image": image,
        "encoding": encoding,
        "cosine_dim": cosine_dim,
    }
    offered = _from_backbone(config, backbone) | common
    return from_section(SegmenterDecoder, config.model.decoder, said, **offered)


def _build_encnet(config, backbone, **common):
    num_codes = config.model.decoder.num_codes
    encoding = ContextEncoding(backbone.feature_dims[-1], num_codes, **common)
    return _build_segmenter(config, backbone, encoding=encoding, **common)


def _build_essnet(config, backbone, **common):
    cosine_dim = config.model.decoder.cosine_dim
    return _build_segmenter(config, backbone, cosine_dim=cosine_dim, **common)


def _region_row(part: type):
    """The row of a decoder of regions, which stands on a pixel decoder."""

    def build(config, pixel_decoder, **common):
        section = config.model.decoder
        if not isinstance(pixel_decoder, AbstractPixelDecoder):
            raise UserError(
                f"model.decoder.name={section.name!r} stands on a pixel decoder; set "
                f"model.pixel_decoder.name, or start from configs/mask2former.py."
            )
        if section.image_layer > section.depth:
            raise UserError(
                f"model.decoder.image_layer is {section.image_layer}, but there are "
                f"{section.depth} layers; give a number up to that."
            )
        said = {"pixel_decoder": pixel_decoder}
        offered = _how(config) | common
        return from_section(part, section, said, **offered)

    return build


def _build_projected_encoder_head(config, decoder, num_classes, **common):
    section = config.model.multilabel_head
    # 0, or nothing said: as wide as the class queries.
    width = section.get("embed_dim", 0) or decoder.embed_dim
    if section.share_embeddings and width != decoder.embed_dim:
        raise UserError(
            f"model.multilabel_head.embed_dim is {width}, but it shares class "
            f"embeddings of {decoder.embed_dim}; set it to 0, or share_embeddings to "
            f"False."
        )
    offered = _from_decoder(config, decoder, num_classes) | common
    return from_section(ProjectedEncoderHead, section, {"embed_dim": width}, **offered)


def _build_transformer_encoder_head(config, decoder, num_classes, **common):
    if decoder.image_dim != decoder.embed_dim:
        raise UserError(
            f"The multi-label head 'transformer_encoder' needs features as wide as the "
            f"class embeddings ({decoder.embed_dim}), but model.decoder.name="
            f"{config.model.decoder.name!r} hands it {decoder.image_dim}; set "
            f"model.multilabel_head.name to projected_encoder."
        )
    # These keys of the section are other heads'.
    said = {
        "num_heads": _num_heads(config, decoder.embed_dim),
        "dropout_rate": config.model.decoder.dropout_rate,
    }
    offered = _from_decoder(config, decoder, num_classes) | common
    section = config.model.multilabel_head
    return from_section(TransformerEncoderHead, section, said, **offered)


def _build_fcn_head(config, backbone, num_classes, **common):
    head, count = config.model.auxiliary_head, len(backbone.feature_dims)
    if not -count <= head.level < count:
        raise UserError(
            f"model.auxiliary_head.level is {head.level}, but the backbone "
            f"{config.model.backbone.name!r} has {count} maps, from 0."
        )
    said = {"feature_dim": backbone.feature_dims[head.level]}
    return from_section(FCNHead, head, said, num_classes=num_classes, **common)


BACKBONES = {
    "beit": _build_beit,
    "resnet": _build_resnet,
    "swin": _build_swin,
    "tresnet": _build_tresnet,
    "vit": _build_vit,
}
DECODERS = {
    "deeplabv3": DeepLabV3Decoder,
    "encnet": _build_encnet,
    "encoder_only": build_encoder_only,
    "eomt": build_eomt,
    "essnet": _build_essnet,
    "linear": LinearDecoder,
    "mask2former": _region_row(Mask2FormerDecoder),
    "maskformer": _region_row(MaskFormerDecoder),
    "segmenter": _build_segmenter,
    "upernet": UPerNetDecoder,
}
REGION_DECODERS = ("eomt", "mask2former", "maskformer")
"""Those of `DECODERS` that classify regions."""
PIXEL_DECODERS = {
    "deformable": DeformableDecoder,
    "encoder_fpn": EncoderFPNDecoder,
    "fpn": FPNDecoder,
    # Pixels are classified: the decoder stands on the backbone itself.
    "none": lambda config, backbone, **common: backbone,
}
MULTILABEL_HEADS = {
    "transformer_encoder": _build_transformer_encoder_head,
    "transformer_decoder": TransformerDecoderHead,
    "projected_encoder": _build_projected_encoder_head,
    "global_pooling": GlobalPoolingHead,
    "linear": LinearHead,
    "segmentation_logits": SegmentationLogitsHead,
    "none": NoMultiLabelHead,
}
AUXILIARY_HEADS = {
    "fcn": _build_fcn_head,
    "none": lambda config, backbone, num_classes, **common: None,
}
