"""The tables of parts: a name in a configuration to a function that makes the module.

A builder gets the configuration, what it stands on (a backbone nothing, a decoder the
backbone, a multi-label head the decoder and the number of classes) and the keywords
``dtype`` and ``rngs``.
"""

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
from mlseg_jax.models.decoders.regions import IMAGES
from mlseg_jax.models.decoders.segmenter import SegmenterDecoder
from mlseg_jax.models.decoders.upernet import UPerNetDecoder
from mlseg_jax.models.interfaces import AbstractPixelDecoder
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
from mlseg_jax.models.pixel_decoders.deformable import DeformableDecoder
from mlseg_jax.models.pixel_decoders.encoder_fpn import EncoderFPNDecoder
from mlseg_jax.models.pixel_decoders.fpn import FPNDecoder


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
    return ViT(
        image_size=tuple(backbone.image_size),
        patch_size=backbone.patch_size,
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        mlp_dim=backbone.mlp_dim,
        norm_epsilon=backbone.norm_epsilon,
        position_resize=backbone.position_resize,
        taps=tuple(backbone.taps),
        num_registers=backbone.num_registers,
        layer_scale=backbone.layer_scale or None,
        gated=backbone.gated,
        pyramid=backbone.get("pyramid", False),
        drop_path_rate=backbone.drop_path_rate,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


def _build_beit(config, **common):
    backbone = config.model.backbone
    _check_taps(backbone, count=4)
    return Beit(
        image_size=tuple(backbone.image_size),
        patch_size=backbone.patch_size,
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        mlp_dim=backbone.mlp_dim,
        taps=tuple(backbone.taps),
        layer_scale=backbone.layer_scale,
        drop_path_rate=backbone.drop_path_rate,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


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
    return Swin(
        embed_dim=backbone.embed_dim,
        depths=tuple(backbone.depths),
        num_heads=tuple(backbone.num_heads),
        window_size=backbone.window_size,
        mlp_ratio=backbone.get("mlp_ratio", 4),
        drop_path_rate=backbone.drop_path_rate,
        num_norms=backbone.num_norms,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


def _build_tresnet(config, **common):
    backbone = config.model.backbone
    return TResNet(
        embed_dim=backbone.embed_dim,
        depths=tuple(backbone.depths),
        bottlenecks=tuple(backbone.bottlenecks),
        remat=backbone.remat,
        **common,
    )


def _build_resnet(config, **common):
    backbone = config.model.backbone
    _check_stages(backbone, "depths", "strides", "dilations")
    return ResNet(
        embed_dim=backbone.embed_dim,
        depths=tuple(backbone.depths),
        stem=backbone.stem,
        strides=tuple(backbone.strides),
        dilations=tuple(backbone.dilations),
        contract_dilation=backbone.contract_dilation,
        freeze_norms=backbone.freeze_norms,
        scan=backbone.scan,
        remat=backbone.remat,
        **common,
    )


def _num_heads(config, embed_dim: int) -> int:
    """Heads of the blocks after the backbone: as many as its last ones have, or else
    one for every 64 values.
    """
    heads = config.model.backbone.get("num_heads", max(1, embed_dim // 64))
    return heads if isinstance(heads, int) else heads[-1]


def _build_segmenter(config, backbone, encoding=None, cosine_dim=None, **common):
    head = config.model.multilabel_head.name
    return SegmenterDecoder(
        feature_dim=backbone.feature_dims[-1],
        embed_dim=backbone.feature_dims[-1],
        depth=config.model.decoder.depth,
        num_heads=_num_heads(config, backbone.feature_dims[-1]),
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


def _build_deeplabv3(config, backbone, **common):
    return DeepLabV3Decoder(
        feature_dim=backbone.feature_dims[-1],
        embed_dim=config.model.decoder.embed_dim,
        dilations=tuple(config.model.decoder.dilations),
        dropout_rate=config.model.decoder.dropout_rate,
        **common,
    )


def _build_upernet(config, backbone, **common):
    return UPerNetDecoder(
        feature_dims=backbone.feature_dims,
        embed_dim=config.model.decoder.embed_dim,
        dropout_rate=config.model.decoder.dropout_rate,
        **common,
    )


def _build_linear(config, backbone, **common):
    return LinearDecoder(
        feature_dims=backbone.feature_dims,
        dropout_rate=config.model.decoder.dropout_rate,
        **common,
    )


def _build_fpn(config, backbone, **common):
    pixels = config.model.pixel_decoder
    return FPNDecoder(
        feature_dims=backbone.feature_dims,
        embed_dim=pixels.embed_dim,
        num_groups=pixels.num_groups,
        **common,
    )


def _build_encoder_fpn(config, backbone, **common):
    pixels = config.model.pixel_decoder
    return EncoderFPNDecoder(
        feature_dims=backbone.feature_dims,
        embed_dim=pixels.embed_dim,
        num_groups=pixels.num_groups,
        depth=pixels.depth,
        num_heads=pixels.num_heads,
        mlp_dim=pixels.mlp_dim,
        dropout_rate=pixels.dropout_rate,
        remat=config.model.backbone.remat,
        **common,
    )


def _build_deformable(config, backbone, **common):
    pixels = config.model.pixel_decoder
    return DeformableDecoder(
        feature_dims=backbone.feature_dims,
        embed_dim=pixels.embed_dim,
        num_groups=pixels.num_groups,
        depth=pixels.depth,
        num_heads=pixels.num_heads,
        num_points=pixels.num_points,
        mlp_dim=pixels.mlp_dim,
        dropout_rate=pixels.dropout_rate,
        remat=config.model.backbone.remat,
        **common,
    )


def _region_settings(config, pixel_decoder) -> dict:
    decoder = config.model.decoder
    if not isinstance(pixel_decoder, AbstractPixelDecoder):
        raise UserError(
            f"model.decoder.name={decoder.name!r} stands on a pixel decoder; set "
            f"model.pixel_decoder.name, or start from configs/mask2former.py."
        )
    if decoder.image not in IMAGES:
        raise UserError(
            f"Unknown model.decoder.image {decoder.image!r}; choose one of "
            f"{', '.join(IMAGES)}."
        )
    if decoder.image_layer > decoder.depth:
        raise UserError(
            f"model.decoder.image_layer is {decoder.image_layer}, but there are "
            f"{decoder.depth} layers; give a number up to that."
        )
    return {
        "embed_dim": decoder.embed_dim,
        "num_queries": decoder.num_queries,
        "depth": decoder.depth,
        "num_heads": decoder.num_heads,
        "mlp_dim": decoder.mlp_dim,
        "cosine": decoder.cosine,
        "image": decoder.image,
        "image_layer": decoder.image_layer,
        "remat": config.model.backbone.remat,
    }


def _build_mask2former(config, pixel_decoder, **common):
    settings = _region_settings(config, pixel_decoder)
    return Mask2FormerDecoder(pixel_decoder, **settings, **common)


def _build_maskformer(config, pixel_decoder, **common):
    settings = _region_settings(config, pixel_decoder)
    return MaskFormerDecoder(
        pixel_decoder,
        dropout_rate=config.model.decoder.dropout_rate,
        **settings,
        **common,
    )


def _build_transformer_encoder_head(config, decoder, num_classes, **common):
    if decoder.image_dim != decoder.embed_dim:
        raise UserError(
            f"The multi-label head 'transformer_encoder' needs features as wide as the "
            f"class embeddings ({decoder.embed_dim}), but model.decoder.name="
            f"{config.model.decoder.name!r} hands it {decoder.image_dim}; set "
            f"model.multilabel_head.name to projected_encoder."
        )
    return TransformerEncoderHead(
        num_classes=num_classes,
        embed_dim=decoder.embed_dim,
        num_heads=_num_heads(config, decoder.embed_dim),
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


def _build_projected_encoder_head(config, decoder, num_classes, **common):
    head = config.model.multilabel_head
    # 0, or nothing said: as wide as the class queries.
    width = head.get("embed_dim", 0) or decoder.embed_dim
    if head.share_embeddings and width != decoder.embed_dim:
        raise UserError(
            f"model.multilabel_head.embed_dim is {width}, but it shares class "
            f"embeddings of {decoder.embed_dim}; set it to 0, or share_embeddings to "
            f"False."
        )
    return ProjectedEncoderHead(
        num_classes=num_classes,
        image_dim=decoder.image_dim,
        embed_dim=width,
        num_heads=head.num_heads,
        dropout_rate=head.dropout_rate,
        downsample=head.downsample or None,
        share_embeddings=head.share_embeddings,
        class_projection=head.class_projection,
        projection=head.get("projection", "convolutions"),
        remat=config.model.backbone.remat,
        **common,
    )


def _build_fcn_head(config, backbone, num_classes, **common):
    head, count = config.model.auxiliary_head, len(backbone.feature_dims)
    if not -count <= head.level < count:
        raise UserError(
            f"model.auxiliary_head.level is {head.level}, but the backbone "
            f"{config.model.backbone.name!r} has {count} maps, from 0."
        )
    return FCNHead(
        num_classes,
        level=head.level,
        feature_dim=backbone.feature_dims[head.level],
        embed_dim=head.embed_dim,
        dropout_rate=head.dropout_rate,
        **common,
    )


BACKBONES = {
    "beit": _build_beit,
    "resnet": _build_resnet,
    "swin": _build_swin,
    "tresnet": _build_tresnet,
    "vit": _build_vit,
}
DECODERS = {
    "deeplabv3": _build_deeplabv3,
    "encnet": _build_encnet,
    "essnet": _build_essnet,
    "linear": _build_linear,
    "mask2former": _build_mask2former,
    "maskformer": _build_maskformer,
    "segmenter": _build_segmenter,
    "upernet": _build_upernet,
}
PIXEL_DECODERS = {
    "deformable": _build_deformable,
    "encoder_fpn": _build_encoder_fpn,
    "fpn": _build_fpn,
    # Pixels are classified: the decoder stands on the backbone itself.
    "none": lambda config, backbone, **common: backbone,
}
MULTILABEL_HEADS = {
    "transformer_encoder": _build_transformer_encoder_head,
    "transformer_decoder": _build_transformer_decoder_head,
    "projected_encoder": _build_projected_encoder_head,
    "global_pooling": _build_global_pooling_head,
    "linear": lambda config, decoder, num_classes, **common: LinearHead(
        num_classes=num_classes, image_dim=decoder.image_dim, **common
    ),
    "segmentation_logits": lambda config, decoder, num_classes, **common: (
        SegmentationLogitsHead(decoder, num_classes=num_classes)
    ),
    "none": lambda config, decoder, num_classes, **common: NoMultiLabelHead(),
}
AUXILIARY_HEADS = {
    "fcn": _build_fcn_head,
    "none": lambda config, backbone, num_classes, **common: None,
}
