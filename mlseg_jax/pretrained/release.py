"""The release's DeepLabv3 and UPerNet, with label selection and without (method.md 9).

The baselines have the same names in mmsegmentation. Which of the two a file is follows
from the configuration: a baseline selects the complete label.
"""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained import beit, resnet, swin, upernet, vit
from mlseg_jax.pretrained.mapping import CONV, SAME, UNBATCHED, Change, Dropped, Row
from mlseg_jax.pretrained.mapping import norm as norm_rows

HEAD = "decode_head"
LABELS = f"{HEAD}.img_cls_head"

COLUMN = Change(lambda x: x.T, lambda x: x.T)
"""[1, C] and a column [C, 1]."""


def _with_bias(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/kernel", CONV),
        Row(f"{theirs}.bias", f"{ours}/bias", SAME),
    ]


def _classes(config: ml_collections.ConfigDict) -> list[Row]:
    """Rows of the classes, and what selects among them."""
    if config.selection.name == "complete":
        return upernet.classes(HEAD)
    ours = "multilabel_head"
    return [
        Row(f"{HEAD}.cls_emb", "class_embeddings", UNBATCHED),
        Row(f"{HEAD}.cls_bias_emb", "class_biases", COLUMN),
        *norm_rows(f"{HEAD}.norm", "rank_norm"),
        *_with_bias(f"{LABELS}.proj_dec.depthwise_conv.conv", f"{ours}/depthwise"),
        *_with_bias(f"{LABELS}.proj_dec.pointwise_conv.conv", f"{ours}/pointwise"),
        Row(f"{LABELS}.cls_emb", f"{ours}/class_embeddings", UNBATCHED),
        *vit.fused_block(f"{LABELS}.block", f"{ours}/encoder/blocks/blocks/0"),
        *norm_rows(f"{LABELS}.norm", f"{ours}/encoder/norm"),
        Row(f"{LABELS}.fc.W", f"{ours}/encoder/classifier/weight", UNBATCHED),
        Row(f"{LABELS}.fc.b", f"{ours}/encoder/classifier/bias", UNBATCHED),
    ]


def deeplabv3(config: ml_collections.ConfigDict) -> list[Row]:
    backbone = resnet.resnet(config)
    return [
        *(row._replace(theirs=f"backbone.{row.theirs}") for row in backbone),
        *upernet.unit(f"{HEAD}.image_pool.1", "decoder/image_pool"),
        *upernet.unit(f"{HEAD}.aspp_modules.{{i}}", "decoder/branches/{i}"),
        *upernet.unit(f"{HEAD}.bottleneck", "decoder/bottleneck"),
        *_classes(config),
        *upernet.auxiliary(),
    ]


def deeplabv3_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A stem of one convolution as the first of V1c's three."""
    pairs = ((r"^backbone\.conv1\.", "stem.0."), (r"^backbone\.bn1\.", "stem.1."))
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in pairs:
            name = re.sub(pattern, f"backbone.{new}", name)
        renamed[name] = array
    return renamed


def swin_upernet(config: ml_collections.ConfigDict) -> list[Row]:
    return [*swin.mmsegmentation(config), *_upernet(config)]


def beit_upernet(config: ml_collections.ConfigDict) -> list[Row]:
    return [*beit.own(config, "backbone."), *_upernet(config)]


def _upernet(config: ml_collections.ConfigDict) -> list[Row]:
    return [*upernet.decoder(HEAD), *_classes(config), *upernet.auxiliary()]


DROPPED = (
    Dropped(r".*\.num_batches_tracked", "a counter"),
    Dropped(r".*\.relative_position_index", "a constant that follows from the window"),
)
