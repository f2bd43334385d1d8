"""BEiT and DINOv2 of Hugging Face, DINOv2's own code (method.md section 9.2)."""

import math
import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained import vit
from mlseg_jax.pretrained.mapping import (
    FUSED_KERNELS,
    PATCHES,
    SAME,
    TOKEN,
    TRANSPOSED,
    UNBATCHED,
    Change,
    Dropped,
    Row,
    linear,
    norm,
)
from mlseg_jax.pretrained.vit import BLOCK

HALVES = Change(
    lambda a, b: np.concatenate([a.T, b.T], axis=1),
    lambda x: tuple(part.T for part in np.split(x, 2, axis=1)),
)
HALF_BIASES = Change(
    lambda a, b: np.concatenate([a, b]), lambda x: tuple(np.split(x, 2))
)


def _stem(start: str) -> list[Row]:
    projection = f"{start}patch_embeddings.projection"
    return [
        Row(f"{start}cls_token", "backbone/class_token", TOKEN),
        Row(f"{projection}.weight", "backbone/patch_projection/kernel", PATCHES),
        Row(f"{projection}.bias", "backbone/patch_projection/bias", SAME),
    ]


# ----------------------------------------------------------------------------- DINOv2


def dinov2(config: ml_collections.ConfigDict) -> list[Row]:
    """Hugging Face's."""
    mlp = "layers.{i}.mlp"
    hidden = linear(f"{mlp}.fc1", f"{BLOCK}/mlp_in")
    out = linear(f"{mlp}.fc2", f"{BLOCK}/mlp_out")
    if config.model.backbone.get("gated", False):
        halves = ("gate_proj", "up_proj")
        weights = tuple(f"{mlp}.{half}.weight" for half in halves)
        biases = tuple(f"{mlp}.{half}.bias" for half in halves)
        hidden = [
            Row(weights, f"{BLOCK}/mlp_in/kernel", HALVES),
            Row(biases, f"{BLOCK}/mlp_in/bias", HALF_BIASES),
        ]
        out = linear(f"{mlp}.down_proj", f"{BLOCK}/mlp_out")
    return [
        *_stem("embeddings."),
        Row("embeddings.position_embeddings", "backbone/position_table", UNBATCHED),
        Row("embeddings.register_tokens", "backbone/register_tokens", UNBATCHED),
        *norm("layers.{i}.norm1", f"{BLOCK}/attention_norm"),
        *vit.separate_attention("layers.{i}.attention", f"{BLOCK}/attention"),
        Row("layers.{i}.layer_scale1.lambda1", f"{BLOCK}/attention_scale", SAME),
        *norm("layers.{i}.norm2", f"{BLOCK}/mlp_norm"),
        *hidden,
        *out,
        Row("layers.{i}.layer_scale2.lambda1", f"{BLOCK}/mlp_scale", SAME),
        *norm("layernorm", "backbone/norm"),
    ]


def dinov2_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files have gate and values of the giant as one projection."""
    renamed = {}
    for name, array in vit.hugging_face_names(arrays).items():
        if ".mlp.weights_in." in name:
            gate, values = np.split(array, 2)
            renamed[name.replace("weights_in", "gate_proj")] = gate
            renamed[name.replace("weights_in", "up_proj")] = values
        else:
            renamed[name.replace("weights_out", "down_proj")] = array
    return renamed


def dinov2_own(config: ml_collections.ConfigDict) -> list[Row]:
    return [
        *vit.timm(config),
        Row("register_tokens", "backbone/register_tokens", UNBATCHED),
        Row("blocks.{i}.ls1.gamma", f"{BLOCK}/attention_scale", SAME),
        Row("blocks.{i}.ls2.gamma", f"{BLOCK}/mlp_scale", SAME),
        *linear("blocks.{i}.mlp.w12", f"{BLOCK}/mlp_in"),
        *linear("blocks.{i}.mlp.w3", f"{BLOCK}/mlp_out"),
    ]


def dinov2_own_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's with registers: its class token has its position in it already."""
    if "reg_token" not in arrays or "pos_embed" not in arrays:
        return arrays
    renamed = dict(arrays)
    renamed["register_tokens"] = renamed.pop("reg_token")
    table = renamed["pos_embed"]
    if math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        renamed["pos_embed"] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    return renamed


DINOV2_OWN_DROPPED = (
    *vit.TIMM_DROPPED,
    Dropped("mask_token", "only for pretraining with masked patches"),
)

# ------------------------------------------------------------------------------- BEiT


def _transposed_conv(x):
    """[in out 2 2] to [2 2 in out]."""
    return x.transpose(2, 3, 0, 1)


DOUBLING = Change(_transposed_conv, _transposed_conv)


PATCH = "backbone/patch_projection"
HUGGING_FACE_PYRAMID = (
    "fpn1.conv_transpose1",
    "fpn1.normalization",
    "fpn1.conv_transpose2",
    "fpn2",
)
OWN_PYRAMID = ("fpn1.0", "fpn1.1", "fpn1.3", "fpn2.0")


def beit(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    theirs, ours = "layers.{i}.attention", f"{BLOCK}/attention"
    weights = tuple(f"{theirs}.{name}_proj.weight" for name in "qkv")
    table = "relative_position_bias.relative_position_bias_table"
    return [
        *_stem("embeddings."),
        *norm("layers.{i}.layernorm_before", f"{BLOCK}/attention_norm"),
        Row(weights, f"{ours}/query_key_value/kernel", FUSED_KERNELS),
        Row(f"{theirs}.q_proj.bias", f"{ours}/query_bias", SAME),
        Row(f"{theirs}.v_proj.bias", f"{ours}/value_bias", SAME),
        *linear(f"{theirs}.o_proj", f"{ours}/out"),
        Row(f"layers.{{i}}.{table}", f"{ours}/relative_position_bias_table", SAME),
        Row("layers.{i}.lambda_1", f"{BLOCK}/attention_scale", SAME),
        *norm("layers.{i}.layernorm_after", f"{BLOCK}/mlp_norm"),
        *linear("layers.{i}.mlp.fc1", f"{BLOCK}/mlp_in"),
        *linear("layers.{i}.mlp.fc2", f"{BLOCK}/mlp_out"),
        Row("layers.{i}.lambda_2", f"{BLOCK}/mlp_scale", SAME),
        *_pyramid("fpn.", HUGGING_FACE_PYRAMID),
    ]


def own(config: ml_collections.ConfigDict, start: str = "") -> list[Row]:
    """Of BEiT's own code, and of the release, which trains it further."""
    del config
    theirs, ours = f"{start}blocks.{{i}}", f"{BLOCK}/attention"
    attention = f"{theirs}.attn"
    table = "relative_position_bias_table"
    return [
        Row(f"{start}cls_token", "backbone/class_token", TOKEN),
        Row(f"{start}patch_embed.proj.weight", f"{PATCH}/kernel", PATCHES),
        Row(f"{start}patch_embed.proj.bias", f"{PATCH}/bias", SAME),
        *norm(f"{theirs}.norm1", f"{BLOCK}/attention_norm"),
        Row(f"{attention}.qkv.weight", f"{ours}/query_key_value/kernel", TRANSPOSED),
        Row(f"{attention}.q_bias", f"{ours}/query_bias", SAME),
        Row(f"{attention}.v_bias", f"{ours}/value_bias", SAME),
        *linear(f"{attention}.proj", f"{ours}/out"),
        Row(f"{attention}.{table}", f"{ours}/{table}", SAME),
        Row(f"{theirs}.gamma_1", f"{BLOCK}/attention_scale", SAME),
        *norm(f"{theirs}.norm2", f"{BLOCK}/mlp_norm"),
        *linear(f"{theirs}.mlp.fc1", f"{BLOCK}/mlp_in"),
        *linear(f"{theirs}.mlp.fc2", f"{BLOCK}/mlp_out"),
        Row(f"{theirs}.gamma_2", f"{BLOCK}/mlp_scale", SAME),
        *_pyramid(start, OWN_PYRAMID),
    ]


def own_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the table that blocks share in pretraining given to every one of them."""
    table = arrays.get("rel_pos_bias.relative_position_bias_table")
    if table is None:
        return arrays
    blocks = {m[1] for m in map(re.compile(r"blocks\.(\d+)\.").match, arrays) if m}
    rest = {k: x for k, x in arrays.items() if not k.startswith("rel_pos_bias.")}
    name = "attn.relative_position_bias_table"
    return rest | {f"blocks.{i}.{name}": table for i in blocks}


OWN_DROPPED = (
    Dropped(r"(head|lm_head)\..*", vit.CLASSIFIER),
    Dropped(r"(fc_)?norm\..*|mask_token", "of the pretraining's own outputs"),
    Dropped(r".*relative_position_index", "a constant that follows from the window"),
)


def _pyramid(start: str, layers: tuple[str, ...]) -> list[Row]:
    first, batch_norm, second, single = (f"{start}{layer}" for layer in layers)
    ours = "backbone/pyramid"
    ups = {
        first: f"{ours}/up4_first",
        second: f"{ours}/up4_second",
        single: f"{ours}/up2",
    }
    rows = []
    for theirs, path in ups.items():
        rows.append(Row(f"{theirs}.weight", f"{path}/kernel", DOUBLING))
        rows.append(Row(f"{theirs}.bias", f"{path}/bias", SAME))
    return [
        *rows,
        *norm(batch_norm, f"{ours}/up4_norm"),
        Row(f"{batch_norm}.running_mean", f"{ours}/up4_norm/mean", SAME),
        Row(f"{batch_norm}.running_var", f"{ours}/up4_norm/var", SAME),
    ]


SHARED = "encoder.relative_position_bias.relative_position_bias_table"
_LAYER = re.compile(r"layers\.(\d+)\.")


# In files the pyramid's layers have numbers.
_PYRAMID = {
    "fpn1.0.": "fpn.fpn1.conv_transpose1.",
    "fpn1.1.": "fpn.fpn1.normalization.",
    "fpn1.3.": "fpn.fpn1.conv_transpose2.",
    "fpn2.0.": "fpn.fpn2.",
}


def beit_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the table that blocks share in pretraining given to every one of them."""
    renamed = {}
    for name, array in vit.hugging_face_names(arrays).items():
        start = _PYRAMID.get(name[:7])
        renamed[start + name[7:] if start else name] = array
    if SHARED not in renamed:
        return renamed
    table = renamed.pop(SHARED)
    layers = {m[1] for m in map(_LAYER.match, renamed) if m}
    rest = SHARED.removeprefix("encoder.")
    return renamed | {f"layers.{i}.{rest}": table for i in layers}


BEIT_OPTIONAL = r"backbone/pyramid/.*"
"""Pretrained models have no pyramid."""

BEIT_DROPPED = (
    *vit.HUGGING_FACE_DROPPED,
    Dropped(r"layernorm\..*|lm_head\..*", "of the pretraining's own outputs"),
    Dropped(r".*\.num_batches_tracked", "a counter"),
    Dropped(r"(decode|auxiliary)_head\..*", "only the backbone is taken"),
)
