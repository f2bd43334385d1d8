"""Which files we know, by the names in them; what they are, and what fits them."""

from collections.abc import Sequence

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import (
    beit,
    dinov3,
    eomt,
    query2label,
    regions,
    release,
    resnet,
    segmenter,
    swin,
    tresnet,
    vit,
)
from mlseg_jax.pretrained.format import Arrays, Format
from mlseg_jax.pretrained.mapping import SAME, Row
from mlseg_jax.pretrained.read import WeightFile

_TERMS = "the terms of the weights themselves are with whoever published them"

_TOGETHER = {f"model.{x}.classes_apart": False for x in ("multilabel_head", "decoder")}
"""In the blocks of Segmenter and of MLSeg classes see one another."""

_EPSILON, _RESIZE = "model.backbone.norm_epsilon", "model.backbone.position_resize"

FORMATS = {
    "release": Format(
        "MLSeg (RankSeg) on Segmenter, or its baseline, of the authors' release",
        (r"backbone\.layers\.\d+\.ln1\.weight", r"decode_head\.proj_(patch|classes)"),
        segmenter.release,
        f"code: MIT (openseg-group/RankSeg); {_TERMS}",
        dropped=segmenter.RELEASE_DROPPED,
        facts=_TOGETHER,
        classes=("decode_head.cls_emb", "backbone.cls_emb"),
    ),
    "mmseg": Format(
        "Segmenter of mmsegmentation",
        (r"backbone\.layers\.\d+\.ln1\.weight", r"decode_head\.\w+_proj\.weight"),
        segmenter.mmsegmentation,
        f"code: Apache 2.0 (open-mmlab/mmsegmentation); {_TERMS}",
        dropped=segmenter.RELEASE_DROPPED,
        facts=_TOGETHER,
        classes=("decode_head.cls_emb",),
    ),
    "release_deeplabv3": Format(
        "DeepLabv3 of mmsegmentation, or with MLSeg of the authors' release",
        (r"decode_head\.aspp_modules\.\d+\..*", r"decode_head\.image_pool\..*"),
        release.deeplabv3,
        f"code: MIT (openseg-group/RankSeg), Apache 2.0 (open-mmlab); {_TERMS}",
        dropped=release.DROPPED,
        rename=release.deeplabv3_names,
        facts=_TOGETHER,
        classes=("decode_head.cls_emb", "decode_head.conv_seg.weight"),
    ),
    "release_swin": Format(
        "UPerNet on Swin of mmsegmentation, or with MLSeg of the authors' release",
        (
            r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\..*",
            r"decode_head\.lateral_convs\.\d+\..*",
        ),
        release.swin_upernet,
        f"code: MIT (openseg-group/RankSeg), Apache 2.0 (open-mmlab); {_TERMS}",
        dropped=release.DROPPED,
        facts={"model.backbone.shift_small_maps": True} | _TOGETHER,
        classes=("decode_head.cls_emb", "decode_head.conv_seg.weight"),
    ),
    "release_beit": Format(
        "UPerNet on BEiT of its own code, or with MLSeg of the authors' release",
        (r"backbone\.blocks\.\d+\.gamma_[12]", r"decode_head\.lateral_convs\.\d+\..*"),
        release.beit_upernet,
        f"code: MIT (openseg-group/RankSeg, microsoft/unilm); {_TERMS}",
        dropped=release.DROPPED,
        facts=_TOGETHER,
        classes=("decode_head.cls_emb", "decode_head.conv_seg.weight"),
    ),
    "official_segmenter": Format(
        "Segmenter, official",
        (r"encoder\.blocks\.\d+\.norm1\.weight", r"decoder\.proj_(patch|classes)"),
        segmenter.official,
        f"code: MIT (rstrudel/segmenter); {_TERMS}",
        dropped=segmenter.OFFICIAL_DROPPED,
        facts={_EPSILON: 1e-5, _RESIZE: "bilinear"} | _TOGETHER,
        classes=("decoder.cls_emb",),
    ),
    "query2label": Format(
        "Query2Label",
        (r"transformer\.decoder\..*", r"backbone\.0\..*", r"fc\.[Wb]"),
        query2label.query2label,
        f"code: MIT (SlongLiu/query2labels); {_TERMS}",
        dropped=query2label.DROPPED,
        rename=query2label.names,
        facts={"model.backbone.shift_small_maps": False},
        classes=("query_embed.weight",),
    ),
    "augreg": Format(
        "ViT of AugReg or big_vision",
        (r"Transformer/encoderblock_\d+/LayerNorm_0/scale", r"embedding/(kernel|bias)"),
        vit.augreg,
        f"code: Apache 2.0 (google-research/vision_transformer); {_TERMS}",
        part="backbone/",
        dropped=vit.AUGREG_DROPPED,
        rename=vit.augreg_names,
        facts={_EPSILON: 1e-6, _RESIZE: "bicubic"},
    ),
    "hugging_face_eomt": Format(
        "EoMT of Hugging Face",
        (r"query\.weight", r"upscale_block\.block\.\d\.conv1\.weight"),
        eomt.hugging_face,
        f"code: Apache 2.0 (huggingface/transformers), MIT (tue-mps/eomt); {_TERMS}",
        dropped=eomt.DROPPED,
        rename=eomt.hugging_face_names,
        classes=("classes.weight",),
    ),
    "eomt": Format(
        "EoMT of its authors",
        (r"query\.weight", r"upscale_block\.block\.\d\.conv1\.weight"),
        eomt.hugging_face,
        f"code: MIT (tue-mps/eomt); {_TERMS}",
        dropped=eomt.DROPPED,
        rename=eomt.own_names,
        classes=("classes.weight",),
    ),
    "hugging_face_dinov3": Format(
        "DINOv3 of Hugging Face",
        (
            r"embeddings\.patch_embeddings\.weight",
            r"layers\.\d+\.layer_scale1\.lambda1",
        ),
        dinov3.hugging_face,
        dinov3.LICENCE,
        part="backbone/",
        dropped=dinov3.DROPPED,
        rename=dinov3.hugging_face_names,
        facts={_EPSILON: 1e-5},
    ),
    "dinov3": Format(
        "DINOv3, its own code or timm",
        (r"storage_tokens", r"blocks\.\d+\.attn\.q_bias"),
        dinov3.own,
        dinov3.LICENCE,
        part="backbone/",
        dropped=dinov3.DROPPED,
        rename=dinov3.own_names,
        facts={_EPSILON: 1e-5},
    ),
    "hugging_face_dinov2": Format(
        "DINOv2 of Hugging Face",
        (r"layers\.\d+\.layer_scale1\.lambda1",),
        beit.dinov2,
        f"code: Apache 2.0 (huggingface/transformers); {_TERMS}",
        part="backbone/",
        dropped=vit.HUGGING_FACE_DROPPED,
        rename=beit.dinov2_names,
        facts={_EPSILON: 1e-6},
    ),
    "dinov2": Format(
        "DINOv2, its own code or timm",
        (r"patch_embed\.proj\.\w+", r"blocks\.\d+\.ls1\.gamma"),
        beit.dinov2_own,
        f"code: Apache 2.0 (facebookresearch/dinov2); {_TERMS}",
        part="backbone/",
        dropped=beit.DINOV2_OWN_DROPPED,
        rename=beit.dinov2_own_names,
        facts={_EPSILON: 1e-6},
    ),
    "hugging_face_beit": Format(
        "BEiT of Hugging Face",
        (r"layers\.\d+\.lambda_1", r"layers\.\d+\.attention\.q_proj\.weight"),
        beit.beit,
        f"code: Apache 2.0 (huggingface/transformers), MIT (microsoft/unilm); {_TERMS}",
        part="backbone/",
        optional=beit.BEIT_OPTIONAL,
        dropped=beit.BEIT_DROPPED,
        rename=beit.beit_names,
    ),
    "beit": Format(
        "BEiT, its own code",
        (r"blocks\.\d+\.gamma_[12]", r"blocks\.\d+\.attn\.[qv]_bias"),
        beit.own,
        f"code: MIT (microsoft/unilm); {_TERMS}",
        part="backbone/",
        optional=beit.BEIT_OPTIONAL,
        dropped=beit.OWN_DROPPED,
        rename=beit.own_names,
    ),
    "hugging_face_mask2former": Format(
        "Mask2Former of Hugging Face",
        (
            r"queries\.layers\.\d+\.cross_attn\.in_proj_weight",
            r"pixels\.layers\.\d+\.fc1\.weight",
        ),
        regions.hugging_face_mask2former,
        f"code: Apache 2.0 (huggingface/transformers); {_TERMS}",
        dropped=regions.DROPPED,
        rename=regions.hugging_face_names,
        classes=("classes.weight",),
    ),
    "hugging_face_maskformer": Format(
        "MaskFormer of Hugging Face",
        (
            r"queries\.layers\.\d+\.encoder_attn\.q_proj\.weight",
            r"pixels\.fpn\.stem\.\d\.weight",
        ),
        regions.hugging_face_maskformer,
        f"code: Apache 2.0 (huggingface/transformers); {_TERMS}",
        dropped=regions.DROPPED,
        rename=regions.hugging_face_names,
        classes=("classes.weight",),
    ),
    "mask2former": Format(
        "Mask2Former of its authors, or of MLSeg's (RankSeg)",
        (
            r"queries\.transformer_ffn_layers\.\d+\.linear1\.weight",
            r"pixels\.layers\.\d+\.linear1\.weight",
        ),
        regions.detectron2_mask2former,
        f"code: MIT (facebookresearch/Mask2Former, openseg-group/RankSeg); {_TERMS}",
        dropped=regions.DROPPED,
        facts=_TOGETHER,
        rename=regions.detectron2_names,
        classes=("classes.weight",),
    ),
    "maskformer": Format(
        "MaskFormer of its authors",
        (
            r"queries\.transformer\.decoder\.layers\.\d+\.linear1\.weight",
            r"pixels\.layer_4\.\d\.weight",
        ),
        regions.detectron2_maskformer,
        f"code: Apache 2.0 (facebookresearch/MaskFormer); {_TERMS}",
        dropped=regions.DROPPED,
        rename=regions.detectron2_names,
        classes=("classes.weight",),
    ),
    "hugging_face_swin": Format(
        "Swin of Hugging Face",
        (r"encoder\.layers\.\d+\.blocks\.\d+\.attention\.q_proj\.weight",),
        swin.hugging_face,
        f"code: Apache 2.0 (huggingface/transformers), MIT (microsoft); {_TERMS}",
        part="backbone/",
        optional=swin.OPTIONAL,
        dropped=swin.DROPPED,
        rename=swin.hugging_face_names,
    ),
    "swin": Format(
        "Swin, its own code or timm",
        (r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",),
        swin.own,
        f"code: MIT (microsoft/Swin-Transformer); {_TERMS}",
        part="backbone/",
        optional=swin.OPTIONAL,
        dropped=swin.DROPPED,
        rename=swin.own_names,
    ),
    "timm_vit": Format(
        "ViT of timm",
        (
            r"patch_embed\.proj\.\w+",
            r"blocks\.\d+\.attn\.qkv\.weight",
            r"cls_token|pos_embed",
        ),
        vit.timm,
        f"code: Apache 2.0 (huggingface/pytorch-image-models); {_TERMS}",
        part="backbone/",
        dropped=vit.TIMM_DROPPED,
        facts={_EPSILON: 1e-6, _RESIZE: "antialiased_bicubic"},
    ),
    "resnet": Format(
        "residual network of torchvision or OpenMMLab",
        (r"stem\.\d\.\w+", r"layer\d\.\d+\.conv2\.weight"),
        resnet.resnet,
        f"code: BSD 3-clause (pytorch/vision), Apache 2.0 (open-mmlab); {_TERMS}",
        part="backbone/",
        dropped=resnet.DROPPED,
        rename=resnet.names,
    ),
    "tresnet": Format(
        "TResNet of MIIL or timm",
        (r"body\.conv1\.\w+\.\w+", r"body\.layer\d\.\d+\.se\.fc1\.weight"),
        tresnet.tresnet,
        f"code: Apache 2.0 (Alibaba-MIIL/TResNet, huggingface); {_TERMS}",
        part="backbone/",
        dropped=tresnet.DROPPED,
        rename=tresnet.names,
    ),
    "hugging_face_vit": Format(
        "ViT of Hugging Face",
        (
            r"embeddings\.(position_embeddings|cls_token)",
            r"layers\.\d+\.layernorm_before\.weight",
        ),
        vit.hugging_face,
        f"code: Apache 2.0 (huggingface/transformers); {_TERMS}",
        part="backbone/",
        dropped=vit.HUGGING_FACE_DROPPED,
        rename=vit.hugging_face_names,
        facts={_EPSILON: 1e-12, _RESIZE: "bicubic"},
    ),
}
"""In the order in which they are tried."""


def own_format(paths: Sequence[str]) -> Format:
    """Our own names as a format: of ``--to=safetensors`` and of work directories."""
    rows = [Row(path, path, SAME) for path in paths]
    return Format(
        "weights of mlseg_jax",
        (),
        lambda config: rows,
        "as the run they are of",
        classes=("class_embeddings",),
    )


def recognise(file: WeightFile) -> tuple[str, Format, Arrays]:
    """The format's key in FORMATS, the format, and the arrays by its names.

    Raises:
      UserError: the names are of no format, or an array cannot be what its name says.
    """
    arrays = file.arrays
    if all(name.startswith("module.") for name in arrays):
        # What torch's DataParallel puts before every name.
        arrays = {name.removeprefix("module."): x for name, x in arrays.items()}
    if "class_embeddings" in arrays:
        return "own", own_format(list(arrays)), arrays
    for key, known in FORMATS.items():
        renamed = known.renamed(arrays, file.name)
        if known.fits(list(renamed)):
            return key, known, renamed
    some = ", ".join(sorted(file.arrays)[:3])
    titles = "; ".join(known.title for known in FORMATS.values())
    raise UserError(
        f"{file.name} is of no known kind (its names are like {some}); known are: "
        f"{titles}."
    )
