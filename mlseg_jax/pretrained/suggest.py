"""The shipped configuration that fits a weight file."""

import functools
import math
import operator
import re
import shlex

from mlseg_jax.pretrained import backbone_sizes as sizes
from mlseg_jax.pretrained.format import Arrays, Format
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.query2label import BODY
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.settings import backbones, recipes
from mlseg_jax.settings.data_sets import DATA_SETS


def suggest(file: WeightFile) -> str:
    """``--config=...`` and overrides; "" where no shipped model has the file's size."""
    key, source, arrays = recognise(file)
    try:
        return SUGGESTIONS.get(key, _nothing)(source, arrays)
    except (LookupError, StopIteration, TypeError, ValueError):
        # What says the sizes is missing or of another shape.
        return ""


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
    rows = DATA_SETS.items()
    return next((name for name, row in rows if row[0] == num_classes), "folder")


def _suggest_backbone(source: Format, arrays: Arrays) -> str:
    name = _vit(arrays)
    if not name:
        return ""
    return f"--config=configs/segmenter.py:dataset=ade20k,backbone={name}"


CODES = "decode_head.enc_module.encoding.0.codewords"
"""What only EncNet has."""

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
    found = {}
    codes, patches = arrays.get(CODES), arrays.get("decode_head.proj_patch")
    if codes is not None:
        parts["decoder"] = "encnet"
        found["model.decoder.num_codes"] = len(codes)
    elif patches is not None and patches.shape[0] != patches.shape[1]:
        parts["decoder"] = "essnet"
        found["model.decoder.cosine_dim"] = patches.shape[1]
    if parts["selection"] == "top_k" and norm is not None:
        found["selection.k"] = len(norm)
    table = next(x for n, x in arrays.items() if n.endswith("pos_embed"))
    side = math.isqrt(table.shape[1] - 1) * backbones.VITS[name][-1]
    found["model.backbone.image_size"] = (side, side)
    return _with_flags("segmenter", parts, found)


def _with_flags(recipe: str, parts: dict[str, str], found: dict[str, object]) -> str:
    """The recipe with its arguments, and a flag for each key where the file differs.

    For a shell: what it would read as its own is quoted.
    """
    argument = ",".join(f"{key}={value}" for key, value in parts.items())
    config = recipes.get(recipe).get_config(argument)
    words = [f"--config=configs/{recipe}.py:{argument}"]
    for key, value in found.items():
        node = config
        for part in key.split("."):
            node = node[part]
        if node != value:
            text = str(value).replace(" ", "")
            words.append(shlex.quote(f"--config.{key}={text}"))
    return " ".join(words)


# ------------------------------------------------------------------- other files


def _config(file: str, backbone: str | None, flags: str = "") -> str:
    if backbone is None:
        return ""
    return f"--config=configs/{file}.py:dataset=ade20k,backbone={backbone}{flags}"


def _suggest_query2label(source: Format, arrays: Arrays) -> str:
    flags = ""
    if f"{BODY}body.conv1.conv.weight" in arrays:
        name = sizes.tresnet(arrays, BODY)
    elif any(n.startswith(BODY) for n in arrays):
        name = sizes.resnet(arrays, BODY)
    else:
        name, flags = sizes.swin(arrays)
    query2label = recipes.get("query2label")
    if name not in query2label.BACKBONES:
        return ""
    dataset = _recipe(source.num_classes(arrays))
    argument = f"dataset={dataset},backbone={name}"
    transformer = query2label.get_config(argument).model.transformer
    layers = sizes.count(arrays, r"transformer\.encoder\.layers\.(\d+)\.")
    found = {
        "num_encoder_layers": layers,
        "num_decoder_layers": sizes.count(
            arrays, r"transformer\.decoder\.layers\.(\d+)\."
        ),
        "mlp_dim": len(arrays["transformer.decoder.layers.0.linear1.weight"]),
    }
    for key, value in found.items():
        if transformer[key] != value:
            flags += f" --config.model.transformer.{key}={value}"
    return f"--config=configs/query2label.py:{argument}{flags}"


def _suggest_pixel_classifier(
    recipe: str, backbone: str | None, source: Format, arrays: Arrays, found: dict
) -> str:
    """The release's DeepLabv3 or UPerNet, or its baseline."""
    if backbone is None:
        return ""
    is_mlseg = "decode_head.cls_emb" in arrays
    parts = {
        "dataset": _recipe(source.num_classes(arrays)),
        "backbone": backbone,
        "selection": "top_k" if is_mlseg else "complete",
    }
    fused = "fpn_bottleneck" if recipe == "upernet" else "bottleneck"
    width = len(arrays[f"decode_head.{fused}.conv.weight"])
    found = found | {"model.decoder.embed_dim": width}
    if "auxiliary_head.convs.0.conv.weight" in arrays:
        width = len(arrays["auxiliary_head.convs.0.conv.weight"])
        found["model.auxiliary_head.embed_dim"] = width
    if is_mlseg:
        own = "decode_head.img_cls_head.cls_emb" in arrays
        found["selection.k"] = len(arrays["decode_head.norm.weight"])
        found["model.multilabel_head.share_embeddings"] = not own
    return _with_flags(recipe, parts, found)


def _suggest_deeplabv3(source: Format, arrays: Arrays) -> str:
    name = sizes.resnet(arrays, "backbone.")
    return _suggest_pixel_classifier("deeplabv3", name, source, arrays, {})


def _suggest_upernet(source: Format, arrays: Arrays) -> str:
    tables = (x for n, x in arrays.items() if sizes.SWIN_TABLE.fullmatch(n))
    entries = len(next(tables))
    if any(name.startswith("backbone.stages.") for name in arrays):
        name, _ = sizes.swin(arrays)
        found = {"model.backbone.window_size": (math.isqrt(entries) + 1) // 2}
    else:
        name = sizes.beit(arrays)
        # Three entries are of the class token; a patch is 16 pixels.
        side = (math.isqrt(entries - 3) + 1) // 2 * 16
        found = {"model.backbone.image_size": (side, side)}
    return _suggest_pixel_classifier("upernet", name, source, arrays, found)


_REGION_DATA = {
    133: ("coco_panoptic", "panoptic"),
    80: ("coco_json", "instance"),
    124: ("vspw", "video_semantic"),
    40: ("youtube_vis_2019", "video_instance"),
    (150, 200): ("ade20k_panoptic", "panoptic"),
}
"""Data set and task of so many labels, or of so many labels and object queries."""

_QUERY_LAYER = (
    r"queries\.(?:transformer_ffn_layers|transformer\.decoder\.layers|layers)\.(\d+)\."
)


def _suggest_regions(name: str, source: Format, arrays: Arrays) -> str:
    start, flags = "backbone.", ""
    parts = {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}
    if any(n.startswith("layer1.") for n in parts):
        backbone = sizes.resnet(parts)
    else:
        backbone, flags = sizes.swin(parts)
    if backbone is None:
        return ""
    num_classes, num_queries = (
        len(arrays[key]) for key in ("classes.weight", "queries.positions")
    )
    default = _REGION_DATA.get(num_classes, (_recipe(num_classes), "semantic"))
    dataset, task = _REGION_DATA.get((num_classes, num_queries), default)
    has_head = "ml_head.cls_emb" in arrays
    argument = f"dataset={dataset},backbone={backbone},task={task}"
    argument += f",selection={'top_k' if has_head else 'complete'}"
    config = recipes.get(name).get_config(argument)
    found = {
        "model.decoder.num_queries": num_queries,
        "model.decoder.depth": sizes.count(arrays, _QUERY_LAYER),
    }
    if name == "maskformer":
        has_encoder = "pixels.input_proj.weight" in arrays
        found["model.pixel_decoder.name"] = "encoder_fpn" if has_encoder else "fpn"
    if has_head:
        # No-object has a place in it as well.
        found["selection.k"] = len(arrays["ml_norm.weight"]) - 1
    for key, value in found.items():
        if operator.attrgetter(key)(config) != value:
            flags += f" --config.{key}={value}"
    return f"--config=configs/{name}.py:{argument}{flags}"


def _suggest_eomt(source: Format, arrays: Arrays) -> str:
    """Whether it finds classes, segments or instances is not in the file; how many
    queries there are says so of what was published.
    """
    table = arrays.get("embeddings.position_embeddings.weight")
    find = sizes.dinov3 if table is None else sizes.dinov2
    backbone, (num_classes, num_queries) = (
        find(arrays),
        (len(arrays[key]) for key in ("classes.weight", "query.weight")),
    )
    if backbone is None:
        return ""
    default = _REGION_DATA.get(num_classes, (_recipe(num_classes), "semantic"))
    dataset, task = _REGION_DATA.get((num_classes, num_queries), default)
    argument = f"dataset={dataset},backbone={backbone},task={task}"
    if table is not None:
        # A patch is 16 pixels.
        argument += f",side={16 * math.isqrt(len(table))}"
    return f"--config=configs/eomt.py:{argument}"


def _nothing(source: Format, arrays: Arrays) -> str:
    return ""


SUGGESTIONS = {
    "release": _suggest_segmenter,
    "mmseg": _suggest_segmenter,
    "release_deeplabv3": _suggest_deeplabv3,
    "release_swin": _suggest_upernet,
    "release_beit": _suggest_upernet,
    "official_segmenter": _suggest_segmenter,
    "augreg": _suggest_backbone,
    "timm_vit": _suggest_backbone,
    "hugging_face_vit": _suggest_backbone,
    "hugging_face_dinov3": lambda _, arrays: _config("linear", sizes.dinov3(arrays)),
    "dinov3": lambda _, arrays: _config("linear", sizes.dinov3(arrays)),
    "hugging_face_eomt": _suggest_eomt,
    "eomt": _suggest_eomt,
    "hugging_face_dinov2": lambda _, arrays: _config("linear", sizes.dinov2(arrays)),
    "dinov2": lambda _, arrays: _config("linear", sizes.dinov2(arrays)),
    "beit": lambda _, arrays: _config("upernet", sizes.beit(arrays)),
    "hugging_face_beit": lambda _, arrays: _config("upernet", sizes.beit(arrays)),
    "hugging_face_swin": lambda _, arrays: _config("upernet", *sizes.swin(arrays)),
    "swin": lambda _, arrays: _config("upernet", *sizes.swin(arrays)),
    "resnet": lambda _, arrays: _config("deeplabv3", sizes.resnet(arrays)),
    "tresnet": lambda _, arrays: _config("query2label", sizes.tresnet(arrays)),
    "query2label": _suggest_query2label,
    "hugging_face_mask2former": functools.partial(_suggest_regions, "mask2former"),
    "hugging_face_maskformer": functools.partial(_suggest_regions, "maskformer"),
    "mask2former": functools.partial(_suggest_regions, "mask2former"),
    "maskformer": functools.partial(_suggest_regions, "maskformer"),
}
"""By the keys of `formats.FORMATS`."""
