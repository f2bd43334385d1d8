"""How other toolboxes name and lay out the parameters of their backbones, and we do.

Tables as in ``release_names``.
"""

from release_names import _linear, _norm, _patch_kernel, _same


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

__all__ = ["SWIN"]
