"""Swin transformers of others (method.md section 9.2)."""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained import vit
from mlseg_jax.pretrained.mapping import (
    PATCHES,
    SAME,
    TRANSPOSED,
    Change,
    Dropped,
    Row,
    linear,
    norm,
)
from mlseg_jax.pretrained.vit import CLASSIFIER, separate_attention

# Our blocks come in pairs: plain windows, then shifted ones.
PAIRS = (("{b*2}", "plain"), ("{b*2+1}", "shifted"))


def _ours(which: str) -> str:
    return f"backbone/stages/{{s}}/blocks/{{b}}/{which}"


def _stem(patches: str, patch_norm: str) -> list[Row]:
    return [
        Row(f"{patches}.weight", "backbone/patch_projection/kernel", PATCHES),
        Row(f"{patches}.bias", "backbone/patch_projection/bias", SAME),
        *norm(patch_norm, "backbone/patch_norm"),
    ]


def _table(theirs: str, ours: str) -> Row:
    return Row(theirs, f"{ours}/attention/relative_position_bias_table", SAME)


def _merging(theirs: str) -> list[Row]:
    """As Swin's own: the four cells by column, then row, then channel."""
    ours = "backbone/mergings/{s}"
    return [
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        Row(f"{theirs}.reduction.weight", f"{ours}/reduction/kernel", TRANSPOSED),
    ]


# --------------------------------------------------------------------- Hugging Face


def hugging_face(config: ml_collections.ConfigDict) -> list[Row]:
    backbone = config.model.backbone
    # Our norms are those of the coarsest stages.
    first = len(backbone.depths) - backbone.get("num_norms", 4) + 1
    rows = _stem("embeddings.patch_embeddings.projection", "embeddings.norm")
    for number, which in PAIRS:
        block, ours = f"encoder.layers.{{s}}.blocks.{number}", _ours(which)
        rows += [
            *norm(f"{block}.layernorm_before", f"{ours}/attention_norm"),
            *separate_attention(f"{block}.attention", f"{ours}/attention"),
            _table(
                f"{block}.relative_position_bias.relative_position_bias_table", ours
            ),
            *norm(f"{block}.layernorm_after", f"{ours}/mlp_norm"),
            *linear(f"{block}.mlp.fc1", f"{ours}/mlp_in"),
            *linear(f"{block}.mlp.fc2", f"{ours}/mlp_out"),
        ]
    return [
        *rows,
        *_merging("encoder.layers.{s}.downsample"),
        *norm(f"hidden_states_norms.stage{{s+{first}}}", "backbone/norms/{s}"),
    ]


def hugging_face_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A classifier's norm as what it is in a backbone: that of the last stage."""
    renamed = vit.hugging_face_names(arrays)
    if any(name.startswith("hidden_states_norms.") for name in renamed):
        return renamed
    stages = {m[1] for m in map(_STAGE.match, renamed) if m}
    last = f"hidden_states_norms.stage{len(stages)}."
    return {re.sub(r"^layernorm\.", last, name): x for name, x in renamed.items()}


_STAGE = re.compile(r"encoder\.layers\.(\d+)\.")


# --------------------------------------------------------------- Swin's own, and timm


def own(config: ml_collections.ConfigDict) -> list[Row]:
    last = config.model.backbone.get("num_norms", 4) - 1
    rows = _stem("patch_embed.proj", "patch_embed.norm")
    for number, which in PAIRS:
        block, ours = f"layers.{{s}}.blocks.{number}", _ours(which)
        rows += [
            *norm(f"{block}.norm1", f"{ours}/attention_norm"),
            *linear(f"{block}.attn.qkv", f"{ours}/attention/query_key_value"),
            *linear(f"{block}.attn.proj", f"{ours}/attention/out"),
            _table(f"{block}.attn.relative_position_bias_table", ours),
            *norm(f"{block}.norm2", f"{ours}/mlp_norm"),
            *linear(f"{block}.mlp.fc1", f"{ours}/mlp_in"),
            *linear(f"{block}.mlp.fc2", f"{ours}/mlp_out"),
        ]
    return [
        *rows,
        *_merging("layers.{s}.downsample"),
        *norm("norm", f"backbone/norms/{last}"),
    ]


def own_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm merges at the beginning of a stage, Swin's own code at the end."""
    merging = re.compile(r"layers\.(\d+)\.(downsample\..*)")
    if any(name.startswith("layers.0.downsample.") for name in arrays):
        return arrays
    return {
        merging.sub(lambda m: f"layers.{int(m[1]) - 1}.{m[2]}", name): array
        for name, array in arrays.items()
    }


DROPPED = (
    Dropped(r"head\..*|classifier\..*", CLASSIFIER),
    Dropped(r"pooler\..*|.*mask_token", "only for pretraining"),
    Dropped(r"layernorm\..*", "every stage has its own norm"),
    Dropped(
        r".*(relative_position_index|attn_mask)",
        "a constant that follows from the window",
    ),
)
OPTIONAL = r"backbone/norms/\d+/.*"
"""Classifiers have a norm after the last stage alone; others start as identity."""


# ------------------------------------------------------------------- mmsegmentation


def _unfolded(x):
    """[C 2 2] (channel, row, column) to (column, row, channel), on the first axis."""
    dim = x.shape[0] // 4
    return x.reshape(dim, 2, 2, *x.shape[1:]).swapaxes(0, 2).reshape(x.shape)


def _folded(x):
    dim = x.shape[0] // 4
    return x.reshape(2, 2, dim, *x.shape[1:]).swapaxes(0, 2).reshape(x.shape)


UNFOLDED = Change(_unfolded, _folded)
UNFOLDED_KERNEL = Change(lambda x: _unfolded(x.T), lambda x: _folded(x).T)


def mmsegmentation(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    rows = _stem("backbone.patch_embed.projection", "backbone.patch_embed.norm")
    for number, which in PAIRS:
        block, ours = f"backbone.stages.{{s}}.blocks.{number}", _ours(which)
        attention = f"{block}.attn.w_msa"
        rows += [
            *norm(f"{block}.norm1", f"{ours}/attention_norm"),
            *linear(f"{attention}.qkv", f"{ours}/attention/query_key_value"),
            *linear(f"{attention}.proj", f"{ours}/attention/out"),
            _table(f"{attention}.relative_position_bias_table", ours),
            *norm(f"{block}.norm2", f"{ours}/mlp_norm"),
            *linear(f"{block}.ffn.layers.0.0", f"{ours}/mlp_in"),
            *linear(f"{block}.ffn.layers.1", f"{ours}/mlp_out"),
        ]
    merging, ours = "backbone.stages.{s}.downsample", "backbone/mergings/{s}"
    return [
        *rows,
        Row(f"{merging}.norm.weight", f"{ours}/norm/scale", UNFOLDED),
        Row(f"{merging}.norm.bias", f"{ours}/norm/bias", UNFOLDED),
        Row(f"{merging}.reduction.weight", f"{ours}/reduction/kernel", UNFOLDED_KERNEL),
        *norm("backbone.norm{s}", "backbone/norms/{s}"),
    ]
