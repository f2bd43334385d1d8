"""How the release names and lays out its parameters, and how we do.

One table: a pattern of a torch state-dict name, our path, and what becomes of it.
Every step is linear, so gradients go the same way.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np


def _same(x):
    return x


def _transposed(x):
    """torch Linear [out, in] to kernel [in, out]."""
    return x.T


def _patch_kernel(x):
    """Convolution [D, 3, p, p] to [p p 3, D], flattened as (row, column, channel)."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _without_batch(x):
    """[1, ...] to [...]; the class token [1, 1, D] to [D]."""
    return x.reshape([n for n in x.shape[:-1] if n != 1] + [x.shape[-1]])


def _linear(torch: str, ours: str):
    return [
        (rf"{torch}\.weight", f"{ours}/kernel", _transposed),
        (rf"{torch}\.bias", f"{ours}/bias", _same),
    ]


def _norm(torch: str, ours: str):
    return [
        (rf"{torch}\.weight", f"{ours}/scale", _same),
        (rf"{torch}\.bias", f"{ours}/bias", _same),
    ]


def _head_block(torch: str, ours: str):
    return [
        *_norm(rf"{torch}\.norm1", f"{ours}/attention_norm"),
        *_linear(rf"{torch}\.attn\.qkv", f"{ours}/attention/query_key_value"),
        *_linear(rf"{torch}\.attn\.proj", f"{ours}/attention/out"),
        *_norm(rf"{torch}\.norm2", f"{ours}/mlp_norm"),
        *_linear(rf"{torch}\.mlp\.fc1", f"{ours}/mlp_in"),
        *_linear(rf"{torch}\.mlp\.fc2", f"{ours}/mlp_out"),
    ]


_LAYER, _OUR_LAYER = r"backbone\.layers\.(\d+)", r"backbone/blocks/blocks/{0}"

BACKBONE = [
    (r"backbone\.cls_token", "backbone/class_token", _without_batch),
    (r"backbone\.pos_embed", "backbone/position_table", _without_batch),
    (
        r"backbone\.patch_embed\.projection\.weight",
        "backbone/patch_projection/kernel",
        _patch_kernel,
    ),
    (
        r"backbone\.patch_embed\.projection\.bias",
        "backbone/patch_projection/bias",
        _same,
    ),
    *_norm(rf"{_LAYER}\.ln1", f"{_OUR_LAYER}/attention_norm"),
    (
        rf"{_LAYER}\.attn\.attn\.in_proj_weight",
        f"{_OUR_LAYER}/attention/query_key_value/kernel",
        _transposed,
    ),
    (
        rf"{_LAYER}\.attn\.attn\.in_proj_bias",
        f"{_OUR_LAYER}/attention/query_key_value/bias",
        _same,
    ),
    *_linear(rf"{_LAYER}\.attn\.attn\.out_proj", f"{_OUR_LAYER}/attention/out"),
    *_norm(rf"{_LAYER}\.ln2", f"{_OUR_LAYER}/mlp_norm"),
    *_linear(rf"{_LAYER}\.ffn\.layers\.0\.0", f"{_OUR_LAYER}/mlp_in"),
    *_linear(rf"{_LAYER}\.ffn\.layers\.1", f"{_OUR_LAYER}/mlp_out"),
    *_norm(r"backbone\.ln1", "backbone/norm"),
]

HEAD = [
    (r"decode_head\.cls_emb", "class_embeddings", _without_batch),
    # The release multiplies from the left with these two: no transposition.
    (r"decode_head\.proj_patch", "decoder/patch_projection/kernel", _same),
    (r"decode_head\.proj_classes", "decoder/class_projection/kernel", _same),
    *_linear(r"decode_head\.proj_dec", "decoder/feature_projection"),
    *_norm(r"decode_head\.decoder_norm", "decoder/norm"),
    *_norm(r"decode_head\.mask_norm", "rank_norm"),
]

SEGMENTER = [
    *BACKBONE,
    *HEAD,
    *_head_block(r"decode_head\.blocks\.(\d+)", "decoder/blocks/blocks/{0}"),
]

MLSEG = [
    *BACKBONE,
    *HEAD,
    # The release's first block is the multi-label head's.
    *_head_block(r"decode_head\.blocks\.0", "multilabel_head/blocks/blocks/0"),
    *_head_block(r"decode_head\.blocks\.1", "decoder/blocks/blocks/0"),
    *_head_block(r"decode_head\.blocks\.2", "decoder/blocks/blocks/1"),
    *_norm(r"decode_head\.decoder_norm2", "multilabel_head/norm"),
    (r"decode_head\.ml_fc\.W", "multilabel_head/classifier/weight", _without_batch),
    (r"decode_head\.ml_fc\.b", "multilabel_head/classifier/bias", _without_batch),
]


def from_release(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], table
) -> dict[str, np.ndarray]:
    """Renames and lays out a torch state dict; every problem in one error.

    Raises:
      ValueError: a name without a row, a path of ours that nothing fills or that is
        filled twice, or a shape that differs.
    """
    found, problems = {}, []
    for name, array in arrays.items():
        rows = [
            (match, path, change)
            for pattern, path, change in table
            if (match := re.fullmatch(pattern, name))
        ]
        if len(rows) != 1:
            problems.append(f"{name} matches {len(rows)} rows")
            continue
        match, path, change = rows[0]
        groups = match.groups()
        # Swin's blocks come in pairs.
        number = int(groups[1]) if "{pair}" in path else 0
        pair = f"blocks/{number // 2}/{('plain', 'shifted')[number % 2]}"
        path = path.format(*groups, pair=pair)
        if path in found:
            problems.append(f"{path} is filled twice")
        found[path] = np.ascontiguousarray(change(np.asarray(array)))
        if path in shapes and found[path].shape != tuple(shapes[path]):
            problems.append(f"{path}: {found[path].shape} is not {shapes[path]}")
    problems += _missing("nothing fills", shapes, found)
    problems += _missing("we have no", found, shapes)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _missing(what: str, wanted: Iterable[str], there) -> list[str]:
    return [f"{what} {path}" for path in wanted if path not in there]
