"""Segmenter, with and without label selection, of three sources (method.md 3 to 7)."""

from collections.abc import Mapping

import ml_collections
import numpy as np

from mlseg_jax.pretrained import exact, vit
from mlseg_jax.pretrained.mapping import (
    CONV,
    POINTWISE,
    SAME,
    TRANSPOSED,
    UNBATCHED,
    Dropped,
    Row,
    linear,
    norm,
    to_theirs,
)

DECODER_BLOCK = "decoder/blocks/blocks/{i}"


def _decoder(prefix: str, rank_norm: list[Row]) -> list[Row]:
    """What the release's heads have in common with the official decoder."""
    return [
        *linear(f"{prefix}proj_dec", "decoder/feature_projection"),
        # These two are multiplied from the left there: no transposition.
        Row(f"{prefix}proj_patch", "decoder/patch_projection/kernel", SAME),
        Row(f"{prefix}proj_classes", "decoder/class_projection/kernel", SAME),
        *norm(f"{prefix}decoder_norm", "decoder/norm"),
        *rank_norm,
    ]


def official(config: ml_collections.ConfigDict) -> list[Row]:
    return [
        *vit.timm(config, "encoder."),
        Row("decoder.cls_emb", "class_embeddings", UNBATCHED),
        *_decoder("decoder.", norm("decoder.mask_norm", "rank_norm")),
        *vit.fused_block("decoder.blocks.{i}", DECODER_BLOCK),
    ]


OFFICIAL_DROPPED = (Dropped(r"encoder\.head\.(weight|bias)", vit.CLASSIFIER),)


def mmsegmentation(config: ml_collections.ConfigDict) -> list[Row]:
    head = "decode_head."
    return [
        *vit.mmcv(config),
        Row(f"{head}cls_emb", "class_embeddings", UNBATCHED),
        *linear(f"{head}dec_proj", "decoder/feature_projection"),
        *linear(f"{head}patch_proj", "decoder/patch_projection"),
        *linear(f"{head}classes_proj", "decoder/class_projection"),
        *norm(f"{head}decoder_norm", "decoder/norm"),
        *norm(f"{head}mask_norm", "rank_norm"),
        *vit.mmcv_block(f"{head}layers.{{i}}", DECODER_BLOCK),
    ]


def release(config: ml_collections.ConfigDict) -> list[Row]:
    """The authors' models; which of their heads follows from the configuration."""
    head = "decode_head."
    rank_norm = norm(f"{head}mask_norm", "rank_norm")
    if config.model.rank_norm.unbiased_variance:
        # The oracle's norm is one of its own.
        rank_norm = [
            Row(f"{head}mask_norm.gamma", "rank_norm/scale", SAME),
            Row(f"{head}mask_norm.beta", "rank_norm/bias", SAME),
        ]
    owner = "backbone." if config.model.class_embeddings.in_backbone else head
    return [
        *vit.mmcv(config),
        Row(f"{owner}cls_emb", "class_embeddings", UNBATCHED),
        *_decoder(head, rank_norm),
        *RELEASE_HEADS[config.model.multilabel_head.name],
    ]


_OURS = "multilabel_head"
_ENCODER_HEAD = [
    # The release's first block is the multi-label head's.
    *vit.fused_block("decode_head.blocks.0", f"{_OURS}/blocks/blocks/0"),
    *vit.fused_block("decode_head.blocks.{i+1}", DECODER_BLOCK),
    *norm("decode_head.decoder_norm2", f"{_OURS}/norm"),
    Row("decode_head.ml_fc.W", f"{_OURS}/classifier/weight", UNBATCHED),
    Row("decode_head.ml_fc.b", f"{_OURS}/classifier/bias", UNBATCHED),
]


def post_norm_layer(theirs: str, ours: str) -> list[Row]:
    """A decoder layer of DETR's kind, without its self-attention."""
    attention = f"{theirs}.multihead_attn"
    qkv = f"{ours}/attention/query_key_value"
    return [
        Row(f"{attention}.in_proj_weight", f"{qkv}/kernel", TRANSPOSED),
        Row(f"{attention}.in_proj_bias", f"{qkv}/bias", SAME),
        *linear(f"{attention}.out_proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.norm2", f"{ours}/attention_norm"),
        *linear(f"{theirs}.linear1", f"{ours}/mlp_in"),
        *linear(f"{theirs}.linear2", f"{ours}/mlp_out"),
        *norm(f"{theirs}.norm3", f"{ours}/mlp_norm"),
    ]


def pointwise(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/kernel", POINTWISE),
        Row(f"{theirs}.bias", f"{ours}/bias", SAME),
    ]


_BLOCKS_ALONE = vit.fused_block("decode_head.blocks.{i}", DECODER_BLOCK)

_HEAD = "decode_head.img_cls_head"
_DECODER_HEAD = [
    *_BLOCKS_ALONE,
    *pointwise(f"{_HEAD}.input_proj", f"{_OURS}/image_projection"),
    *post_norm_layer(
        f"{_HEAD}.transformer.decoder.layers.{{i}}",
        f"{_OURS}/transformer/decoder/{{i}}",
    ),
    *norm(f"{_HEAD}.transformer.decoder.norm", f"{_OURS}/transformer/norm"),
    Row(f"{_HEAD}.fc.W", f"{_OURS}/classifier/weight", UNBATCHED),
    Row(f"{_HEAD}.fc.b", f"{_OURS}/classifier/bias", UNBATCHED),
]
_POOLING_HEAD = [
    *_BLOCKS_ALONE,
    *pointwise(f"{_HEAD}.1.conv", f"{_OURS}/hidden"),
    *pointwise(f"{_HEAD}.2", f"{_OURS}/classifier"),
]

_ENCODING = "decoder/encoding"
_ENCNET = [
    *_BLOCKS_ALONE,
    *linear("decode_head.se_layer", f"{_OURS}/classifier"),
    Row("decode_head.bottleneck.conv.weight", f"{_ENCODING}/bottleneck/kernel", CONV),
    Row("decode_head.bottleneck.conv.bias", f"{_ENCODING}/bottleneck/bias", SAME),
    *(
        Row(f"decode_head.enc_module.{theirs}", f"{_ENCODING}/{ours}", change)
        for theirs, ours, change in (
            ("encoding_project.conv.weight", "reduction/kernel", CONV),
            ("encoding_project.conv.bias", "reduction/bias", SAME),
            ("encoding.0.codewords", "codes", SAME),
            ("encoding.0.scale", "code_scales", SAME),
            ("encoding.1.running_mean", "norm/mean", SAME),
            ("encoding.1.running_var", "norm/var", SAME),
        )
    ),
    *norm("decode_head.enc_module.encoding.1", f"{_ENCODING}/norm"),
    *linear("decode_head.enc_module.fc.0", f"{_ENCODING}/gate"),
]

RELEASE_HEADS = {
    "none": _BLOCKS_ALONE,
    "transformer_encoder": _ENCODER_HEAD,
    "transformer_decoder": _DECODER_HEAD,
    "global_pooling": _POOLING_HEAD,
    "linear": _ENCNET,
}
"""Rows of the blocks and of the multi-label head, by the name of ours."""


def to_release(
    config: ml_collections.ConfigDict, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Our weights under the names of the authors' release.

    Raises:
      UserError: the release has no such model.
    """
    head, backbone = config.model.multilabel_head.name, config.model.backbone
    is_oracle = config.selection.name == "oracle"
    is_essnet = config.model.decoder.name == "essnet"
    # Heads that score labels for a selection; EncNet's does not.
    selections = ("complete", "oracle") if head in ("none", "linear") else ("top_k",)
    # Only two of its heads take class embeddings out of the backbone.
    may_have_oce = head in ("none", "transformer_encoder")
    exact.check(
        config,
        "Segmenter",
        exact.PLAIN_TOP_K
        | {
            "model.class_embeddings.in_backbone": (False, may_have_oce),
            "model.decoder.name": ("segmenter", "encnet", "essnet"),
            "model.multilabel_head.name": tuple(RELEASE_HEADS),
            "model.multilabel_head.classes_apart": (False,),
            "model.decoder.classes_apart": (False,),
            "selection.name": selections,
            "loss.pixel": ("nearest_classes" if is_essnet else "cross_entropy",),
            "model.rank_norm.kind": ("affine",),
            # The oracle's norm alone.
            "model.rank_norm.unbiased_variance": (is_oracle,),
            "model.presence_prior.kind": ("none",),
            "model.backbone.name": ("vit",),
            "model.backbone.positions": ("table",),
            "model.backbone.position_resize": ("bicubic", "bilinear"),
            "model.backbone.key_bias": (True,),
            "model.backbone.gated": (False,),
            # Of several maps Segmenter takes the last.
            "model.backbone.taps": ((), (backbone.get("depth", 0) - 1,)),
        },
    )
    return to_theirs(arrays, release(config))


RELEASE_DROPPED = (
    Dropped(r"decode_head\.conv_seg\.(weight|bias)", "never used by this head"),
    Dropped(r".*\.position_embedding\.pe", "a constant that follows from the grid"),
    Dropped(r".*\.num_batches_tracked", "a counter"),
)
