"""How other toolboxes name and lay out the parameters of their backbones, and we do.

Tables as in ``release_names``.
"""

import numpy as np
from release_names import _linear, _norm, _patch_kernel, _same, _without_batch


def _unfolded(x, transpose):
    """mmsegmentation's merging takes channels first, then rows and columns; Swin's own
    takes columns, rows, channels.
    """
    rest, dim = x.shape[:-1], x.shape[-1] // 4
    x = x.reshape(*rest, dim, 2, 2)
    x = x.transpose(*range(len(rest)), -1, -2, -3).reshape(*rest, 4 * dim)
    return x.T if transpose else x


def _swin_blocks():
    block, merging = r"stages\.(\d+)\.blocks\.(\d+)", r"stages\.(\d+)\.downsample"
    ours = "stages/{0}/{pair}"
    attention = rf"{block}\.attn\.w_msa"
    return [
        (
            rf"{attention}\.relative_position_bias_table",
            f"{ours}/attention/relative_position_bias_table",
            _same,
        ),
        *_norm(rf"{block}\.norm1", f"{ours}/attention_norm"),
        *_linear(rf"{attention}\.qkv", f"{ours}/attention/query_key_value"),
        *_linear(rf"{attention}\.proj", f"{ours}/attention/out"),
        *_norm(rf"{block}\.norm2", f"{ours}/mlp_norm"),
        *_linear(rf"{block}\.ffn\.layers\.0\.0", f"{ours}/mlp_in"),
        *_linear(rf"{block}\.ffn\.layers\.1", f"{ours}/mlp_out"),
        (
            rf"{merging}\.norm\.weight",
            "mergings/{0}/norm/scale",
            lambda x: _unfolded(x, False),
        ),
        (
            rf"{merging}\.norm\.bias",
            "mergings/{0}/norm/bias",
            lambda x: _unfolded(x, False),
        ),
        (
            rf"{merging}\.reduction\.weight",
            "mergings/{0}/reduction/kernel",
            lambda x: _unfolded(x, True),
        ),
    ]


SWIN = [
    (r"patch_embed\.projection\.weight", "patch_projection/kernel", _patch_kernel),
    (r"patch_embed\.projection\.bias", "patch_projection/bias", _same),
    *_norm(r"patch_embed\.norm", "patch_norm"),
    *_swin_blocks(),
    *_norm(r"norm(\d)", "norms/{0}"),
]


def fused(arrays):
    """Projections that stand side by side in one of ours are joined: query, key and
    value; gate and values.
    """
    arrays = dict(arrays)
    for names, joined in (
        (("q_proj", "k_proj", "v_proj"), "qkv"),
        (("gate_proj", "up_proj"), "fc1"),
    ):
        for name in [n for n in arrays if f".{names[0]}." in n]:
            parts = [name.replace(names[0], other) for other in names]
            # BEiT's keys have no bias.
            if all(part in arrays for part in parts):
                whole = np.concatenate([arrays.pop(part) for part in parts])
                arrays[name.replace(names[0], joined)] = whole
    return arrays


def _transformer_block(layer, ours, first_norm, second_norm, scales):
    return [
        *_norm(rf"{layer}\.{first_norm}", f"{ours}/attention_norm"),
        *_linear(rf"{layer}\.attention\.qkv", f"{ours}/attention/query_key_value"),
        *_linear(rf"{layer}\.attention\.o_proj", f"{ours}/attention/out"),
        (rf"{layer}\.{scales[0]}", f"{ours}/attention_scale", _same),
        *_norm(rf"{layer}\.{second_norm}", f"{ours}/mlp_norm"),
        *_linear(rf"{layer}\.mlp\.fc1", f"{ours}/mlp_in"),
        *_linear(rf"{layer}\.mlp\.(?:fc2|down_proj)", f"{ours}/mlp_out"),
        (rf"{layer}\.{scales[1]}", f"{ours}/mlp_scale", _same),
    ]


def _embeddings(start):
    projection = rf"{start}\.patch_embeddings\.projection"
    return [
        (rf"{start}\.cls_token", "class_token", _without_batch),
        (rf"{projection}\.weight", "patch_projection/kernel", _patch_kernel),
        (rf"{projection}\.bias", "patch_projection/bias", _same),
    ]


def _doubling(x):
    """A transposed convolution's [in out 2 2] to [2 2 in out]."""
    return x.transpose(2, 3, 0, 1)


DINOV2 = [
    *_embeddings("embeddings"),
    (r"embeddings\.position_embeddings", "position_table", _without_batch),
    (r"embeddings\.register_tokens", "register_tokens", _without_batch),
    *_transformer_block(
        r"encoder\.layer\.(\d+)",
        "blocks/blocks/{0}",
        "norm1",
        "norm2",
        (r"layer_scale1\.lambda1", r"layer_scale2\.lambda1"),
    ),
    *_norm("layernorm", "norm"),
]

_BEIT_ATTENTION = r"beit\.layers\.(\d+)\.attention"

BEIT = [
    *_embeddings(r"beit\.embeddings"),
    *_transformer_block(
        r"beit\.layers\.(\d+)",
        "blocks/blocks/{0}",
        "layernorm_before",
        "layernorm_after",
        ("lambda_1", "lambda_2"),
    ),
    (
        rf"{_BEIT_ATTENTION}\.q_proj\.bias",
        "blocks/blocks/{0}/attention/query_bias",
        _same,
    ),
    (
        rf"{_BEIT_ATTENTION}\.v_proj\.bias",
        "blocks/blocks/{0}/attention/value_bias",
        _same,
    ),
    (
        r"beit\.layers\.(\d+)\.relative_position_bias\.relative_position_bias_table",
        "blocks/blocks/{0}/attention/relative_position_bias_table",
        _same,
    ),
    (r"fpn\.fpn1\.conv_transpose1\.weight", "pyramid/up4_first/kernel", _doubling),
    (r"fpn\.fpn1\.conv_transpose1\.bias", "pyramid/up4_first/bias", _same),
    *_norm(r"fpn\.fpn1\.normalization", "pyramid/up4_norm"),
    (r"fpn\.fpn1\.normalization\.running_mean", "pyramid/up4_norm/mean", _same),
    (r"fpn\.fpn1\.normalization\.running_var", "pyramid/up4_norm/var", _same),
    (r"fpn\.fpn1\.conv_transpose2\.weight", "pyramid/up4_second/kernel", _doubling),
    (r"fpn\.fpn1\.conv_transpose2\.bias", "pyramid/up4_second/bias", _same),
    (r"fpn\.fpn2\.weight", "pyramid/up2/kernel", _doubling),
    (r"fpn\.fpn2\.bias", "pyramid/up2/bias", _same),
]
