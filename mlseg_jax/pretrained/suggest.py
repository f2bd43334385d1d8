"""The shipped configuration that fits a weight file."""

import math
import re

from configs import backbones, segmenter
from mlseg_jax.pretrained.formats import Arrays, Format, recognise
from mlseg_jax.pretrained.read import WeightFile


def suggest(file: WeightFile) -> str:
    """``--config=...`` and overrides; "" where no shipped model has the file's size."""
    key, source, arrays = recognise(file)
    return SUGGESTIONS.get(key, _nothing)(source, arrays)


_BLOCK = re.compile(r"(?:backbone\.|encoder\.)?(?:blocks|layers)\.(\d+)\..*")
_FLAX_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/.*")
_PATCHES = re.compile(r"(.*patch_embed.*|embedding/kernel)")


def _vit(arrays: Arrays) -> str | None:
    """The row of ``backbones.VITS`` with this width, depth and patch."""
    (kernel,) = (x for n, x in arrays.items() if _PATCHES.fullmatch(n) and x.ndim == 4)
    if "embedding/kernel" in arrays:
        kernel = kernel.transpose(3, 2, 0, 1)
    matches = [_BLOCK.fullmatch(n) or _FLAX_BLOCK.fullmatch(n) for n in arrays]
    depth = len({match[1] for match in matches if match})
    size = kernel.shape[0], depth, kernel.shape[2]
    for name, (embed_dim, depth, _, patch_size) in backbones.VITS.items():
        if (embed_dim, depth, patch_size) == size:
            return name
    return None


def _recipe(num_classes: int | None) -> str:
    for name, recipe in segmenter.RECIPES.items():
        if recipe["classes"] == num_classes:
            return name
    return "folder"


def _suggest_backbone(source: Format, arrays: Arrays) -> str:
    name = _vit(arrays)
    if not name:
        return ""
    return f"--config=configs/segmenter.py:dataset=ade20k,backbone={name}"


HEAD_MARKS = {
    "decode_head.ml_fc.W": "transformer_encoder",
    "decode_head.img_cls_head.fc.W": "transformer_decoder",
    "decode_head.img_cls_head.2.weight": "global_pooling",
}
"""What only the release's models with the head have."""


def _suggest_segmenter(source: Format, arrays: Arrays) -> str:
    name = _vit(arrays)
    if not name:
        return ""
    num_classes = source.num_classes(arrays)
    parts = {"dataset": _recipe(num_classes), "backbone": name, "selection": "complete"}
    norm = arrays.get("decode_head.mask_norm.weight")
    if "decode_head.mask_norm.gamma" in arrays:
        parts["selection"] = "oracle"
    for mark, head in HEAD_MARKS.items():
        if mark in arrays:
            parts |= {"selection": "top_k", "head": head}
    if "backbone.cls_emb" in arrays:
        parts["oce"] = "1"
    argument = ",".join(f"{key}={value}" for key, value in parts.items())
    config = segmenter.get_config(argument)
    more = {}
    is_mlseg = parts["selection"] == "top_k"
    if is_mlseg and norm is not None and config.selection.k != len(norm):
        more["selection.k"] = len(norm)
    table = next(x for n, x in arrays.items() if n.endswith("pos_embed"))
    side = math.isqrt(table.shape[1] - 1) * config.model.backbone.patch_size
    if tuple(config.model.backbone.image_size) != (side, side):
        more["model.backbone.image_size"] = f"({side},{side})"
    flags = [f"--config.{key}={value}" for key, value in more.items()]
    return " ".join([f"--config=configs/segmenter.py:{argument}", *flags])


def _nothing(source: Format, arrays: Arrays) -> str:
    return ""


SUGGESTIONS = {
    "release": _suggest_segmenter,
    "mmseg": _suggest_segmenter,
    "official_segmenter": _suggest_segmenter,
    "augreg": _suggest_backbone,
    "timm_vit": _suggest_backbone,
    "hugging_face_vit": _suggest_backbone,
}
"""By the keys of `formats.FORMATS`."""
