"""DINOv3 of its own code, of Hugging Face and of timm (masks.md 7.3, 8.3).

Keys have no bias. Its own code has one all the same, under a mask that is 0.
"""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained.beit import HALF_BIASES, HALVES
from mlseg_jax.pretrained.mapping import (
    FUSED_KERNELS,
    PATCHES,
    SAME,
    TOKEN,
    TRANSPOSED,
    UNBATCHED,
    Dropped,
    Row,
    linear,
    norm,
)
from mlseg_jax.pretrained.vit import BLOCK

Arrays = dict[str, np.ndarray]

ATTENTION = f"{BLOCK}/attention"
STEM = "backbone/patch_projection"


def gated_mlp(theirs: str, names: tuple[str, str, str], is_gated: bool) -> list[Row]:
    """``names``: of the gate, the values and what comes after them."""
    gate, values, out = (f"{theirs}.{name}" for name in names)
    if not is_gated:
        hidden = linear(values, f"{BLOCK}/mlp_in")
    else:
        hidden = [
            Row((f"{gate}.weight", f"{values}.weight"),
                f"{BLOCK}/mlp_in/kernel", HALVES),
            Row((f"{gate}.bias", f"{values}.bias"),
                f"{BLOCK}/mlp_in/bias", HALF_BIASES),
        ]  # fmt: skip
    return [*hidden, *linear(out, f"{BLOCK}/mlp_out")]


def hugging_face(
    config: ml_collections.ConfigDict,
    *,
    patches: str = "embeddings.patch_embeddings",
    last_norm: str = "norm",
) -> list[Row]:
    """Names of transformers; files have ``layer.`` where the table has ``layers.``."""
    theirs = "layers.{i}"
    weights = tuple(f"{theirs}.attention.{name}_proj.weight" for name in "qkv")
    is_gated = config.model.backbone.get("gated", False)
    return [
        Row("embeddings.cls_token", "backbone/class_token", TOKEN),
        Row("embeddings.register_tokens", "backbone/register_tokens", UNBATCHED),
        Row(f"{patches}.weight", f"{STEM}/kernel", PATCHES),
        Row(f"{patches}.bias", f"{STEM}/bias", SAME),
        *norm(f"{theirs}.norm1", f"{BLOCK}/attention_norm"),
        Row(weights, f"{ATTENTION}/query_key_value/kernel", FUSED_KERNELS),
        Row(f"{theirs}.attention.q_proj.bias", f"{ATTENTION}/query_bias", SAME),
        Row(f"{theirs}.attention.v_proj.bias", f"{ATTENTION}/value_bias", SAME),
        *linear(f"{theirs}.attention.o_proj", f"{ATTENTION}/out"),
        Row(f"{theirs}.layer_scale1.lambda1", f"{BLOCK}/attention_scale", SAME),
        *norm(f"{theirs}.norm2", f"{BLOCK}/mlp_norm"),
        *gated_mlp(f"{theirs}.mlp", ("gate_proj", "up_proj", "down_proj"), is_gated),
        Row(f"{theirs}.layer_scale2.lambda1", f"{BLOCK}/mlp_scale", SAME),
        *norm(last_norm, "backbone/norm"),
    ]


def hugging_face_names(arrays: Arrays) -> Arrays:
    return {
        re.sub(r"^(model\.|dinov3_vit\.)?(model\.)?layer\.", "layers.", name): x
        for name, x in arrays.items()
    }


def own(config: ml_collections.ConfigDict) -> list[Row]:
    """Names of its own code, to which `own_names` brings timm's, too."""
    theirs = "blocks.{i}"
    is_gated = config.model.backbone.get("gated", False)
    names = ("w1", "w2" if is_gated else "fc1", "w3" if is_gated else "fc2")
    return [
        Row("cls_token", "backbone/class_token", TOKEN),
        Row("storage_tokens", "backbone/register_tokens", UNBATCHED),
        Row("patch_embed.proj.weight", f"{STEM}/kernel", PATCHES),
        Row("patch_embed.proj.bias", f"{STEM}/bias", SAME),
        *norm(f"{theirs}.norm1", f"{BLOCK}/attention_norm"),
        Row(f"{theirs}.attn.qkv.weight",
            f"{ATTENTION}/query_key_value/kernel", TRANSPOSED),
        Row(f"{theirs}.attn.q_bias", f"{ATTENTION}/query_bias", SAME),
        Row(f"{theirs}.attn.v_bias", f"{ATTENTION}/value_bias", SAME),
        *linear(f"{theirs}.attn.proj", f"{ATTENTION}/out"),
        Row(f"{theirs}.ls1.gamma", f"{BLOCK}/attention_scale", SAME),
        *norm(f"{theirs}.norm2", f"{BLOCK}/mlp_norm"),
        *gated_mlp(f"{theirs}.mlp", names, is_gated),
        Row(f"{theirs}.ls2.gamma", f"{BLOCK}/mlp_scale", SAME),
        *norm("norm", "backbone/norm"),
    ]  # fmt: skip


_TIMM = (
    (r"^reg_token$", "storage_tokens"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
)


def own_names(arrays: Arrays) -> Arrays:
    """With biases of queries and values apart; timm's smaller files have none."""
    # With positions it is timm's DINOv2, whose keys do have biases.
    if "pos_embed" in arrays:
        return arrays
    is_timm = "reg_token" in arrays
    is_gated = any(".mlp.fc1_g." in name for name in arrays)
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in _TIMM if is_timm else ():
            name = re.sub(pattern, new, name)
        if is_timm and is_gated:
            name = name.replace(".mlp.fc2.", ".mlp.w3.")
        if name.endswith(".attn.qkv.bias"):
            query, _, value = np.split(array, 3)
            start = name.removesuffix("qkv.bias")
            renamed |= {f"{start}q_bias": query, f"{start}v_bias": value}
            continue
        renamed[name] = array
    for name, array in list(renamed.items()):
        start, found, _ = name.partition("qkv.weight")
        if is_timm and found and f"{start}q_bias" not in renamed:
            none = np.zeros(array.shape[1], array.dtype)
            renamed |= {f"{start}q_bias": none, f"{start}v_bias": none}
    return renamed


DROPPED = (
    Dropped(r"(embeddings\.)?mask_token", "only for pretraining with masked patches"),
    Dropped(r"(local_)?cls_norm\..*", "only for pretraining"),
    Dropped(r".*\.bias_mask", "a constant: keys have no bias"),
    Dropped(r".*\.attn\.k_bias", "a constant: keys have no bias"),
    Dropped(r"(rope_embed\.periods|.*inv_freq)", "a constant of rotary positions"),
    Dropped(r"head\..*", "scores of the pretraining's own classes"),
)

LICENCE = (
    "code and weights: DINOv3 License (facebookresearch/dinov3), which derived weights "
    "fall under, too"
)
