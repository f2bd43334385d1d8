"""Vision transformers of others (method.md section 2)."""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained.mapping import (
    FLAX_PATCHES,
    FUSED_BIASES,
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

BLOCK = "backbone/blocks/blocks/{i}"


def fused_block(theirs: str, ours: str) -> list[Row]:
    """A block as timm and both Segmenters name it."""
    return [
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm"),
        *linear(f"{theirs}.attn.qkv", f"{ours}/attention/query_key_value"),
        *linear(f"{theirs}.attn.proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp_in"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp_out"),
    ]


def mmcv_block(theirs: str, ours: str) -> list[Row]:
    """A block as mmsegmentation names it."""
    qkv = f"{ours}/attention/query_key_value"
    return [
        *norm(f"{theirs}.ln1", f"{ours}/attention_norm"),
        Row(f"{theirs}.attn.attn.in_proj_weight", f"{qkv}/kernel", TRANSPOSED),
        Row(f"{theirs}.attn.attn.in_proj_bias", f"{qkv}/bias", SAME),
        *linear(f"{theirs}.attn.attn.out_proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.ln2", f"{ours}/mlp_norm"),
        *linear(f"{theirs}.ffn.layers.0.0", f"{ours}/mlp_in"),
        *linear(f"{theirs}.ffn.layers.1", f"{ours}/mlp_out"),
    ]


def separate_attention(theirs: str, ours: str) -> list[Row]:
    """Queries, keys and values as three projections, as Hugging Face names them."""
    qkv, names = f"{ours}/query_key_value", ("q_proj", "k_proj", "v_proj")
    weights = tuple(f"{theirs}.{name}.weight" for name in names)
    biases = tuple(f"{theirs}.{name}.bias" for name in names)
    return [
        Row(weights, f"{qkv}/kernel", FUSED_KERNELS),
        Row(biases, f"{qkv}/bias", FUSED_BIASES),
        *linear(f"{theirs}.o_proj", f"{ours}/out"),
    ]


def _embedding(token: str, positions: str, patches: str) -> list[Row]:
    return [
        Row(token, "backbone/class_token", TOKEN),
        Row(positions, "backbone/position_table", UNBATCHED),
        Row(f"{patches}.weight", "backbone/patch_projection/kernel", PATCHES),
        Row(f"{patches}.bias", "backbone/patch_projection/bias", SAME),
    ]


# ------------------------------------------------------------------- timm, official


def timm(config: ml_collections.ConfigDict, prefix: str = "") -> list[Row]:
    del config
    return [
        *_embedding(
            f"{prefix}cls_token", f"{prefix}pos_embed", f"{prefix}patch_embed.proj"
        ),
        *fused_block(f"{prefix}blocks.{{i}}", BLOCK),
        *norm(f"{prefix}norm", "backbone/norm"),
    ]


CLASSIFIER = "scores of the pretraining's own classes"
TIMM_DROPPED = (
    Dropped(r"head(_dist)?\.(weight|bias)", CLASSIFIER),
    Dropped(r"pre_logits\.fc\.(weight|bias)", CLASSIFIER),
)

# -------------------------------------------------------- mmsegmentation, the release


def mmcv(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    return [
        *_embedding(
            "backbone.cls_token",
            "backbone.pos_embed",
            "backbone.patch_embed.projection",
        ),
        *mmcv_block("backbone.layers.{i}", BLOCK),
        *norm("backbone.ln1", "backbone/norm"),
    ]


# --------------------------------------------------------------------- Hugging Face


def hugging_face(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    return [
        *_embedding(
            "embeddings.cls_token",
            "embeddings.position_embeddings",
            "embeddings.patch_embeddings.projection",
        ),
        *norm("layers.{i}.layernorm_before", f"{BLOCK}/attention_norm"),
        *separate_attention("layers.{i}.attention", f"{BLOCK}/attention"),
        *norm("layers.{i}.layernorm_after", f"{BLOCK}/mlp_norm"),
        *linear("layers.{i}.mlp.fc1", f"{BLOCK}/mlp_in"),
        *linear("layers.{i}.mlp.fc2", f"{BLOCK}/mlp_out"),
        *norm("layernorm", "backbone/norm"),
    ]


HUGGING_FACE_DROPPED = (
    Dropped(r"classifier\.(weight|bias)", CLASSIFIER),
    Dropped(r"pooler\..*", "the pooler, which scores whole images"),
    Dropped(r".*mask_token", "only for pretraining with masked patches"),
    Dropped(r".*relative_position_index", "a constant that follows from the window"),
)

# Files have the first name of each pair; the modules of transformers 5 the second.
_HUGGING_FACE_NAMES = (
    (r"^(vit|beit|swin|dinov2|dinov2_with_registers|backbone)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.(attention|self)\.query\.", ".attention.q_proj."),
    (r"\.attention\.(attention|self)\.key\.", ".attention.k_proj."),
    (r"\.attention\.(attention|self)\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.attention\.(attention|self)\.relative_", ".relative_"),
    (r"\.attention\.relative_position_bias\.", ".relative_position_bias."),
    (r"(?<!bias)\.relative_position_bias_table",
     ".relative_position_bias.relative_position_bias_table"),
)  # fmt: skip


def hugging_face_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of both generations of transformers as those of the second."""
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in _HUGGING_FACE_NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    return renamed


# --------------------------------------------------------------------------- AugReg


def _flax_block(theirs: str, config, names: tuple[str, str, str, str]) -> list[Row]:
    """Kernels are as ours are, but heads stand apart: [D, heads, D / heads]."""
    heads = config.model.backbone.num_heads
    attention_norm, attention, mlp_norm, mlp = (f"{theirs}/{name}" for name in names)
    projections = ("query", "key", "value")
    kernels = tuple(f"{attention}/{name}/kernel" for name in projections)
    biases = tuple(f"{attention}/{name}/bias" for name in projections)

    def apart(x):
        return tuple(
            part.reshape(*part.shape[:-1], heads, -1) for part in np.split(x, 3, -1)
        )

    def fused(*parts):
        return np.concatenate([x.reshape(*x.shape[:-2], -1) for x in parts], axis=-1)

    out = Change(
        lambda x: x.reshape(-1, x.shape[-1]),
        lambda x: x.reshape(heads, -1, x.shape[-1]),
    )
    qkv = f"{BLOCK}/attention/query_key_value"
    rows = [
        Row(kernels, f"{qkv}/kernel", Change(fused, apart)),
        Row(biases, f"{qkv}/bias", Change(fused, apart)),
        Row(f"{attention}/out/kernel", f"{BLOCK}/attention/out/kernel", out),
        Row(f"{attention}/out/bias", f"{BLOCK}/attention/out/bias", SAME),
    ]
    pairs = [
        (attention_norm, "attention_norm", ("scale", "bias")),
        (mlp_norm, "mlp_norm", ("scale", "bias")),
        (f"{mlp}/Dense_0", "mlp_in", ("kernel", "bias")),
        (f"{mlp}/Dense_1", "mlp_out", ("kernel", "bias")),
    ]
    return rows + [
        Row(f"{source}/{leaf}", f"{BLOCK}/{ours}/{leaf}", SAME)
        for source, ours, leaves in pairs
        for leaf in leaves
    ]


BLOCK_NAMES = (
    *("LayerNorm_0", "MultiHeadDotProductAttention_1"),
    *("LayerNorm_2", "MlpBlock_3"),
)


def augreg(config: ml_collections.ConfigDict) -> list[Row]:
    table = "Transformer/posembed_input/pos_embedding"
    return [
        Row("cls", "backbone/class_token", TOKEN),
        Row(table, "backbone/position_table", UNBATCHED),
        Row("embedding/kernel", "backbone/patch_projection/kernel", FLAX_PATCHES),
        Row("embedding/bias", "backbone/patch_projection/bias", SAME),
        *_flax_block("Transformer/encoderblock_{i}", config, BLOCK_NAMES),
        Row("Transformer/encoder_norm/scale", "backbone/norm/scale", SAME),
        Row("Transformer/encoder_norm/bias", "backbone/norm/bias", SAME),
    ]


AUGREG_DROPPED = (
    Dropped(r"(head|pre_logits)/(kernel|bias)", CLASSIFIER),
    Dropped(r"opt/(state/.*|target/(head|pre_logits)/.*)", "the optimiser's state"),
)


def augreg_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefixes of saved optimisers, and big_vision's names as the older.

    big_vision adds positions before the class token, which therefore has none.
    """
    renamed = {
        re.sub(r"^(opt/target|params)/", "", name): x for name, x in arrays.items()
    }
    if "pos_embedding" in renamed:
        table = renamed.pop("pos_embedding")
        none = np.zeros((1, 1, table.shape[-1]), table.dtype)
        table = np.concatenate([none, table], axis=1)
        renamed["Transformer/posembed_input/pos_embedding"] = table
    newer = (
        *("LayerNorm_0", "MultiHeadDotProductAttention_0"),
        *("LayerNorm_1", "MlpBlock_0"),
    )
    if not any("/MlpBlock_0/" in name for name in renamed):
        return renamed
    names = dict(zip(newer, BLOCK_NAMES, strict=True))
    return {
        "/".join(names.get(part, part) for part in name.split("/")): x
        for name, x in renamed.items()
    }
