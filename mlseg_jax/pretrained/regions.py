"""Mask2Former and MaskFormer of others (masks.md section 8).

Names are first made uniform, those of both generations of transformers and those of
Detectron2's checkpoints of every version: ``backbone.`` then stands before what the
tables of backbones know, ``pixels.`` before the pixel decoder, ``queries.`` before the
transformer, and no-object has left the other classes.
"""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained import resnet, swin, vit
from mlseg_jax.pretrained.mapping import (
    CONV,
    SAME,
    TRANSPOSED,
    UNBATCHED,
    Change,
    Dropped,
    Row,
    linear,
    norm,
)
from mlseg_jax.pretrained.upernet import CLASS_BIASES

OURS = "decoder/pixel_decoder"
HEAD = "multilabel_head"

Arrays = dict[str, np.ndarray]


def _conv(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/kernel", CONV),
        Row(f"{theirs}.bias", f"{ours}/bias", SAME),
    ]


def _unit(conv: str, group_norm: str, ours: str) -> list[Row]:
    return [*_conv(conv, f"{ours}/conv"), *norm(group_norm, f"{ours}/norm")]


def _within(rows: list[Row], prefix: str) -> list[Row]:
    """A table whose names all stand behind a prefix."""
    return [
        Row(
            prefix + row.theirs
            if isinstance(row.theirs, str)
            else tuple(prefix + name for name in row.theirs),
            *row[1:],
        )
        for row in rows
    ]


def fused_attention(theirs: str, ours: str) -> list[Row]:
    """PyTorch's own module."""
    fused = f"{ours}/query_key_value"
    return [
        Row(f"{theirs}.in_proj_weight", f"{fused}/kernel", TRANSPOSED),
        Row(f"{theirs}.in_proj_bias", f"{fused}/bias", SAME),
        *linear(f"{theirs}.out_proj", f"{ours}/out"),
    ]


# ------------------------------------------------------------------ parts in common


def _classes(config: ml_collections.ConfigDict) -> list[Row]:
    """The classifier, the two heads, and the multi-label head of the release."""
    rows = [
        Row("classes.weight", "class_embeddings", SAME),
        Row("no_object.weight", "decoder/no_object", UNBATCHED),
        Row("classes.bias", "class_biases", CLASS_BIASES),
        Row("no_object.bias", "decoder/no_object_bias", SAME),
        *norm("queries.norm", "decoder/head/norm"),
        *linear("queries.mask_embed.{i}", "decoder/head/mask_layers/{i}"),
        Row("queries.positions", "decoder/query_positions", SAME),
    ]
    if config.model.multilabel_head.name == "none":
        return rows
    pointwise = Change(lambda x: x.T[None, None], lambda x: x[0, 0].T)
    return [
        *rows,
        *norm("ml_norm", "rank_norm"),
        Row("ml_head.proj_dec.weight", f"{HEAD}/pointwise/kernel", pointwise),
        Row("ml_head.proj_dec.bias", f"{HEAD}/pointwise/bias", SAME),
        Row("ml_head.cls_emb", f"{HEAD}/class_embeddings", UNBATCHED),
        *vit.fused_block("ml_head.block", f"{HEAD}/encoder/blocks/blocks/0"),
        *norm("ml_head.norm", f"{HEAD}/encoder/norm"),
        Row("ml_head.fc.W", f"{HEAD}/encoder/classifier/weight", UNBATCHED),
        Row("ml_head.fc.b", f"{HEAD}/encoder/classifier/bias", UNBATCHED),
    ]


def _mask2former(config: ml_collections.ConfigDict, layer: dict[str, str]) -> list[Row]:
    """``layer`` has what both sources call differently in a layer of the encoder."""
    encoder, ours = "pixels.layers.{i}", f"{OURS}/layers/{{i}}"
    rows = [
        Row("pixels.level_embed", f"{OURS}/level_embeddings", SAME),
        *_unit(
            "pixels.input_projections.{i}.0",
            "pixels.input_projections.{i}.1",
            f"{OURS}/input_projections/{{i}}",
        ),
        *_unit("pixels.adapter_1.0", "pixels.adapter_1.1", f"{OURS}/laterals/0"),
        *_unit("pixels.layer_1.0", "pixels.layer_1.1", f"{OURS}/smoothings/0"),
        *_conv("pixels.mask_features", f"{OURS}/mask_features"),
        *norm(f"{encoder}.{layer['attention_norm']}", f"{ours}/attention_norm"),
        *linear(f"{encoder}.{layer['mlp_in']}", f"{ours}/mlp_in"),
        *linear(f"{encoder}.{layer['mlp_out']}", f"{ours}/mlp_out"),
        *norm(f"{encoder}.{layer['mlp_norm']}", f"{ours}/mlp_norm"),
        Row("queries.features", "decoder/query_features", SAME),
        Row("queries.level_embed", "decoder/level_embeddings", SAME),
    ]
    pairs = {
        "sampling_offsets": "sampling_offsets",
        "attention_weights": "attention_weights",
        "value_proj": "value",
        "output_proj": "out",
    }
    for theirs, name in pairs.items():
        rows += linear(f"{encoder}.self_attn.{theirs}", f"{ours}/attention/{name}")
    return rows + _classes(config)


def _pyramid(proj: str, block: str, stem: str) -> list[Row]:
    """Theirs counts from coarse to fine; ``proj`` and ``block`` have a place for it."""
    rows = _unit(f"{stem}.0", f"{stem}.1", f"{OURS}/pyramid/stem")
    for i in range(3):
        for theirs, ours in ((proj, "laterals"), (block, "smoothings")):
            name = theirs.format(2 - i)
            rows += _unit(f"{name}.0", f"{name}.1", f"{OURS}/pyramid/{ours}/{i}")
    return rows + _conv("pixels.mask_features", f"{OURS}/pyramid/mask_features")


# --------------------------------------------------------------------- Hugging Face


def _hugging_face_backbone(config: ml_collections.ConfigDict) -> list[Row]:
    is_resnet = config.model.backbone.name == "resnet"
    table = resnet.resnet if is_resnet else swin.hugging_face
    return _within(table(config), "backbone.")


def _hugging_face_layer(cross: str, rows: list[Row]) -> list[Row]:
    theirs, ours = "queries.layers.{i}", "decoder/layers/{i}"
    return [
        *rows,
        *vit.separate_attention(f"{theirs}.self_attn", f"{ours}/self_attention"),
        *norm(f"{theirs}.self_attn_layer_norm", f"{ours}/self_norm"),
        *norm(f"{theirs}.{cross}_layer_norm", f"{ours}/cross_norm"),
        *linear(f"{theirs}.fc1", f"{ours}/mlp_in"),
        *linear(f"{theirs}.fc2", f"{ours}/mlp_out"),
        *norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm"),
    ]


def hugging_face_mask2former(config: ml_collections.ConfigDict) -> list[Row]:
    names = {
        "attention_norm": "self_attn_layer_norm",
        "mlp_in": "fc1",
        "mlp_out": "fc2",
        "mlp_norm": "final_layer_norm",
    }
    cross = fused_attention(
        "queries.layers.{i}.cross_attn", "decoder/layers/{i}/cross_attention"
    )
    return [
        *_hugging_face_backbone(config),
        *_mask2former(config, names),
        *_hugging_face_layer("cross_attn", cross),
    ]


def hugging_face_maskformer(config: ml_collections.ConfigDict) -> list[Row]:
    cross = vit.separate_attention(
        "queries.layers.{i}.encoder_attn", "decoder/layers/{i}/cross_attention"
    )
    fpn = "pixels.fpn.layers.{}"
    return [
        *_hugging_face_backbone(config),
        *_pyramid(f"{fpn}.proj", f"{fpn}.block", "pixels.fpn.stem"),
        *_conv("queries.input_projection", "decoder/input_projection"),
        *_hugging_face_layer("encoder_attn", cross),
        *_classes(config),
    ]


_MODEL = r"^(model\.)?(pixel_level_module|transformer_module)\."
# Files have the names of transformers 4, modules those of 5.
_HUGGING_FACE_NAMES = (
    (_MODEL.replace("|transformer_module", "") + r"decoder\.", "pixels."),
    (_MODEL.replace("pixel_level_module|", ""), "queries."),
    (r"^pixels\.mask_projection", "pixels.mask_features"),
    (r"^pixels\.encoder\.layers", "pixels.layers"),
    (r"^queries\.decoder\.layers", "queries.layers"),
    (r"^queries\.decoder\.layernorm", "queries.norm"),
    (r"^queries\.decoder\.mask_predictor\.mask_embedder", "mask_embedder"),
    (r"^mask_embedder\.(\d)\.0", r"queries.mask_embed.\1"),
    (r"^queries\.queries_embedder\.weight", "queries.positions"),
    (r"^queries\.queries_features\.weight", "queries.features"),
    (r"^queries\.level_embed\.weight", "queries.level_embed"),
    (r"^class_predictor", "classes"),
    (r"^(queries\.layers\..*)\.mlp\.fc", r"\1.fc"),
    (r"(self_attn|encoder_attn)\.out_proj", r"\1.o_proj"),
)  # fmt: skip


def hugging_face_names(arrays: Arrays) -> Arrays:
    encoder, backbone, renamed = "pixel_level_module.encoder.", {}, {}
    for name, array in arrays.items():
        before, found, rest = name.partition(encoder)
        if found and before in ("", "model."):
            # A backbone of MaskFormer's is a model in one more.
            rest = re.sub(r"^model\.", "", rest)
            number = re.fullmatch(r"hidden_states_norms\.(\d)\.(\w+)", rest)
            if number:
                rest = f"hidden_states_norms.stage{int(number[1]) + 1}.{number[2]}"
            for pattern, new in resnet.HUGGING_FACE_NAMES:
                rest = re.sub(pattern, new, rest)
            backbone[rest] = array
            continue
        for pattern, new in _HUGGING_FACE_NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    backbone = swin.hugging_face_names(backbone)
    renamed |= {f"backbone.{name}": array for name, array in backbone.items()}
    return without_no_object(renamed)


def without_no_object(arrays: Arrays) -> Arrays:
    """The last row of the classifier is no class of the data's."""
    for leaf in ("weight", "bias"):
        rows = arrays.pop(f"classes.{leaf}", None)
        if rows is not None:
            arrays |= {f"classes.{leaf}": rows[:-1], f"no_object.{leaf}": rows[-1:]}
    return arrays


# ----------------------------------------------------------------------- Detectron2


def _detectron2_backbone(config: ml_collections.ConfigDict) -> list[Row]:
    if config.model.backbone.name == "resnet":
        return _within(resnet.resnet(config), "backbone.")
    rows = [
        row for row in swin.own(config) if not row.ours.startswith("backbone/norms")
    ]
    return _within([*rows, *norm("norm{s}", "backbone/norms/{s}")], "backbone.")


def detectron2_mask2former(config: ml_collections.ConfigDict) -> list[Row]:
    names = {
        "attention_norm": "norm1",
        "mlp_in": "linear1",
        "mlp_out": "linear2",
        "mlp_norm": "norm2",
    }
    layer, ours = "queries.transformer_{}_layers.{{i}}", "decoder/layers/{i}"
    cross, own, mlp = map(layer.format, ("cross_attention", "self_attention", "ffn"))
    return [
        *_detectron2_backbone(config),
        *_mask2former(config, names),
        *fused_attention(f"{cross}.multihead_attn", f"{ours}/cross_attention"),
        *norm(f"{cross}.norm", f"{ours}/cross_norm"),
        *fused_attention(f"{own}.self_attn", f"{ours}/self_attention"),
        *norm(f"{own}.norm", f"{ours}/self_norm"),
        *linear(f"{mlp}.linear1", f"{ours}/mlp_in"),
        *linear(f"{mlp}.linear2", f"{ours}/mlp_out"),
        *norm(f"{mlp}.norm", f"{ours}/mlp_norm"),
    ]


def detectron2_maskformer(config: ml_collections.ConfigDict) -> list[Row]:
    layer, ours = "queries.transformer.decoder.layers.{i}", "decoder/layers/{i}"
    encoder, ours_too = "pixels.layers.{i}", f"{OURS}/layers/{{i}}"
    return [
        *_detectron2_backbone(config),
        *_pyramid("pixels.adapter_{}", "pixels.layer_{}", "pixels.layer_4"),
        # The encoder, where there is one.
        *_conv("pixels.input_proj", f"{OURS}/input_projection"),
        *fused_attention(f"{encoder}.self_attn", f"{ours_too}/attention"),
        *norm(f"{encoder}.norm1", f"{ours_too}/attention_norm"),
        *linear(f"{encoder}.linear1", f"{ours_too}/mlp_in"),
        *linear(f"{encoder}.linear2", f"{ours_too}/mlp_out"),
        *norm(f"{encoder}.norm2", f"{ours_too}/mlp_norm"),
        *_conv("queries.input_proj", "decoder/input_projection"),
        *fused_attention(f"{layer}.self_attn", f"{ours}/self_attention"),
        *norm(f"{layer}.norm1", f"{ours}/self_norm"),
        *fused_attention(f"{layer}.multihead_attn", f"{ours}/cross_attention"),
        *norm(f"{layer}.norm2", f"{ours}/cross_norm"),
        *linear(f"{layer}.linear1", f"{ours}/mlp_in"),
        *linear(f"{layer}.linear2", f"{ours}/mlp_out"),
        *norm(f"{layer}.norm3", f"{ours}/mlp_norm"),
        *_classes(config),
    ]


_PIXELS = "sem_seg_head.pixel_decoder."
_DETECTRON2_NAMES = (
    (rf"^{re.escape(_PIXELS)}", "pixels."),
    (r"^sem_seg_head\.predictor\.", "queries."),
    # Before the second version of the module.
    (r"^sem_seg_head\.", "pixels."),
    (r"^pixels\.transformer\.level_embed", "pixels.level_embed"),
    (r"^pixels\.transformer\.encoder\.layers", "pixels.layers"),
    (r"^pixels\.input_proj\.(\d)", r"pixels.input_projections.\1"),
    (r"^pixels\.(adapter|layer)_(\d)\.weight", r"pixels.\1_\2.0.weight"),
    (r"^pixels\.(adapter|layer)_(\d)\.norm", r"pixels.\1_\2.1"),
    (r"^queries\.(static_query|query_feat)\.weight", "queries.features"),
    (r"^queries\.query_embed\.weight", "queries.positions"),
    (r"^queries\.level_embed\.weight", "queries.level_embed"),
    (r"^queries\.(decoder_norm|transformer\.decoder\.norm)", "queries.norm"),
    (r"^queries\.mask_embed\.layers", "queries.mask_embed"),
    (r"^queries\.class_embed", "classes"),
    *resnet.detectron2_names(r"backbone\."),
)  # fmt: skip


def detectron2_names(arrays: Arrays) -> Arrays:
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in _DETECTRON2_NAMES:
            name = re.sub(pattern, new, name)
        if name == "ml_head.cls_emb":
            array = array.reshape(1, *array.shape[-2:])
        renamed[name] = array
    return without_no_object(renamed)


DROPPED = (
    Dropped(r"criterion\.empty_weight", "a constant of the loss"),
    Dropped(r"backbone\.layernorm\..*", "every stage has its own norm"),
    Dropped(
        r".*(relative_position_index|attn_mask)",
        "a constant that follows from the window",
    ),
    Dropped(r".*\.num_batches_tracked", "a counter"),
    Dropped(r"pixel_(mean|std)", "constants of the data"),
)
