"""EoMT of its authors and of Hugging Face, on DINOv2 and on DINOv3 (masks.md 8.3).

Names are first made those of transformers, whatever the source, but for no-object,
which leaves the other classes.
"""

import re
from collections.abc import Mapping

import ml_collections
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import beit, dinov3, exact, regions
from mlseg_jax.pretrained.mapping import (
    CONV,
    SAME,
    UNBATCHED,
    Dropped,
    Row,
    linear,
    norm,
    to_theirs,
)
from mlseg_jax.pretrained.upernet import CLASS_BIASES

Arrays = dict[str, np.ndarray]

TRANSPOSED_CONV = beit.DOUBLING
"""[in out 2 2] and [2 2 in out]."""


def hugging_face(config: ml_collections.ConfigDict) -> list[Row]:
    upscale, ours = "upscale_block.block.{i}", "decoder/upscales/{i}"
    return [
        *_encoder(config),
        Row("query.weight", "decoder/queries", SAME),
        *linear("mask_head.fc{i+1}", "decoder/mask_layers/{i}"),
        Row(f"{upscale}.conv1.weight", f"{ours}/double/kernel", TRANSPOSED_CONV),
        Row(f"{upscale}.conv1.bias", f"{ours}/double/bias", SAME),
        Row(f"{upscale}.conv2.weight", f"{ours}/depthwise/kernel", CONV),
        *norm(f"{upscale}.layernorm2d", f"{ours}/norm"),
        Row("classes.weight", "class_embeddings", SAME),
        Row("classes.bias", "class_biases", CLASS_BIASES),
        Row("no_object.weight", "decoder/no_object", UNBATCHED),
        Row("no_object.bias", "decoder/no_object_bias", SAME),
    ]


def _encoder(config: ml_collections.ConfigDict) -> list[Row]:
    if config.model.backbone.positions == "rotary":
        return dinov3.hugging_face(config, last_norm="layernorm")
    rows = [row for row in beit.dinov2(config) if row.ours != "backbone/position_table"]
    table = "embeddings.position_embeddings.weight"
    return [*rows, Row(table, "backbone/position_table", SAME)]


def hugging_face_names(arrays: Arrays) -> Arrays:
    if "class_predictor.weight" not in arrays:
        return arrays
    renamed = {}
    for name, array in arrays.items():
        name = re.sub(r"^class_predictor\.", "classes.", name)
        # DINOv2's layers; those of DINOv3 have one name in all files.
        name = re.sub(r"(attention)\.out_proj", r"\1.o_proj", name)
        renamed[name] = array
    return regions.without_no_object(_with_gates(renamed))


def _with_gates(arrays: Arrays) -> Arrays:
    """Gate and values of the giant apart, which both sources have as one projection."""
    found = {}
    for name, array in arrays.items():
        start, is_in, kind = name.partition(".mlp.fc1.")
        out = arrays.get(f"{start}.mlp.fc2.weight")
        if is_in and out is not None and len(array) == 2 * out.shape[1]:
            is_in, kind = ".mlp.weights_in.", kind
        elif not is_in:
            start, is_in, kind = name.partition(".mlp.weights_in.")
        if is_in == ".mlp.weights_in.":
            gate, values = np.split(array, 2)
            found[f"{start}.mlp.gate_proj.{kind}"] = gate
            found[f"{start}.mlp.up_proj.{kind}"] = values
        else:
            found[name.replace(".mlp.weights_out.", ".mlp.down_proj.")] = array
    for name in [n for n in found if n.endswith(".mlp.fc2.weight")]:
        start = name.removesuffix("fc2.weight")
        if f"{start}gate_proj.weight" in found:
            for kind in ("weight", "bias"):
                found[f"{start}down_proj.{kind}"] = found.pop(f"{start}fc2.{kind}")
    return found


def to_hugging_face(config: ml_collections.ConfigDict, arrays: Arrays) -> Arrays:
    """Our weights under the names of transformers 5.

    Raises:
      UserError: transformers has no such model.
    """
    backbone = config.model.backbone
    is_rotary = backbone.get("positions") == "rotary"
    wanted = exact.PLAIN_CLASSES | {
        "model.backbone.name": ("vit",),
        "model.backbone.positions": ("patches", "rotary"),
        "model.backbone.key_bias": (not is_rotary,),
    }
    if not is_rotary:
        # One number is both sides there.
        side = backbone.get("image_size", (0,))[0]
        wanted["model.backbone.image_size"] = ((side, side),)
    exact.check(config, "EoMT", wanted)
    found = to_theirs(arrays, hugging_face(config))
    if not is_rotary:
        found = {n.replace(".o_proj", ".out_proj"): x for n, x in found.items()}
    for kind in ("weight", "bias"):
        rows = [found.pop(f"{part}.{kind}") for part in ("classes", "no_object")]
        found[f"class_predictor.{kind}"] = np.concatenate(rows)
    # Constants that strict loading asks for. Masks are off, as where it was trained.
    weights = np.ones(len(found["class_predictor.bias"]), np.float32)
    weights[-1] = config.loss.regions.no_object_weight
    zeros = np.zeros(config.model.decoder.depth, np.float32)
    return found | {"criterion.empty_weight": weights, "attn_mask_probs": zeros}


_NETWORK = "network."
_BACKBONE = f"{_NETWORK}encoder.backbone."
_OWN = (
    (r"^network\.q\.weight", "query.weight"),
    (r"^network\.class_head\.", "class_predictor."),
    (r"^network\.mask_head\.0\.", "mask_head.fc1."),
    (r"^network\.mask_head\.2\.", "mask_head.fc2."),
    (r"^network\.mask_head\.4\.", "mask_head.fc3."),
    (r"^network\.upscale\.(\d)\.norm", r"upscale_block.block.\1.layernorm2d"),
    (r"^network\.upscale\.", "upscale_block.block."),
    (r"^network\.encoder\.backbone\.", ""),
    # On DINOv3 the embeddings of transformers are what timm calls a patch_embed.
    (r"^patch_embed\.(cls_token|register_tokens|patch_embeddings)", r"embeddings.\1"),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^(reg_token|register_tokens)$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings.weight"),
    (r"^(blocks|layer|model\.layer)\.", "layers."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls([12])\.gamma", r".layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
)


def own_names(arrays: Arrays) -> Arrays:
    """Names of the authors' files as those of transformers."""
    if f"{_NETWORK}q.weight" not in arrays:
        return arrays
    renamed = {}
    for name, array in arrays.items():
        if name == f"{_BACKBONE}pos_embed":
            array = array[0]
        for pattern, new in _OWN:
            name = re.sub(pattern, new, name)
        kind = name.rpartition(".")[2]
        if ".attn.qkv." in name:
            start = name.partition(".attn.qkv.")[0]
            for part, own in zip("qkv", np.split(array, 3), strict=True):
                renamed[f"{start}.attention.{part}_proj.{kind}"] = own
            continue
        projection = "embeddings.patch_embeddings"
        # Of timm; those of DINOv3 are of transformers.
        if f"{_BACKBONE}pos_embed" in arrays:
            projection += ".projection"
        name = re.sub(r"^patch_embed\.proj", projection, name)
        renamed[name] = array
    return hugging_face_names(renamed)


KINDS = ("eomt", "hugging_face_eomt")
"""Keys of `formats.FORMATS` whose files may be differences."""

LEAST_NORM = 0.1
"""Weights of norms begin at 1 and stay above this in the mean; differences do not."""


def is_rotary(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file of `KINDS` is on DINOv3, which has no table of positions."""
    return "embeddings.position_embeddings.weight" not in arrays


def is_difference(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the encoder of a file of `KINDS` is only a difference from DINOv3's."""
    norms = [
        np.ravel(array).astype(np.float32)
        for name, array in arrays.items()
        if re.match(r"(layers\.\d+\.norm[12]|layernorm)\.weight", name)
    ]
    if not norms or not is_rotary(arrays):
        return False
    return bool(np.mean(np.concatenate(norms)) < LEAST_NORM)


def add_base(arrays: Arrays, base: Mapping[str, np.ndarray]) -> Arrays:
    """Weights on DINOv3 out of the published differences from it.

    Files of EoMT on DINOv3 hold, for the encoder, what is to be added to DINOv3's own
    weights, which their licence keeps out; everything else is as it is.

    Args:
      arrays: of a file of EoMT, by the names of `own_names` or `hugging_face_names`.
      base: of DINOv3's file, by the names of `dinov3.hugging_face_names`.

    Raises:
      UserError: one of the encoder's arrays is not in ``base``, or has another shape.
    """
    renamed = {re.sub(r"^norm\.", "layernorm.", name): x for name, x in base.items()}
    found, missing = {}, []
    for name, array in arrays.items():
        if not re.match(r"(embeddings|layers|layernorm)\.", name):
            found[name] = array
        elif name in renamed and renamed[name].shape == array.shape:
            found[name] = array.astype(np.float32) + renamed[name].astype(np.float32)
        else:
            missing.append(name)
    if missing:
        raise UserError(
            f"The base of these differences has no array of the same size for "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; "
            f"give the DINOv3 file of Hugging Face of the same size."
        )
    return found


DROPPED = (
    Dropped(r"(network\.)?attn_mask_probs", "masks are off in evaluation"),
    Dropped(r"network\.encoder\.pixel_(mean|std)", "constants of the data"),
    Dropped(r"criterion\.(empty_weight|.*)", "a constant of the loss"),
    Dropped(r".*mask_token", "only for pretraining with masked patches"),
    Dropped(r".*(inv_freq|rope_embed\.periods)", "a constant of rotary positions"),
)
