"""Query2Label's release (method.md section 8.1), on Swin, ResNet and TResNet."""

import ml_collections
import numpy as np

from mlseg_jax.pretrained import resnet, swin, tresnet
from mlseg_jax.pretrained.mapping import (
    SAME,
    TRANSPOSED,
    UNBATCHED,
    Dropped,
    Row,
    linear,
    norm,
)
from mlseg_jax.pretrained.segmenter import post_norm_layer

BACKBONE = "backbone.0."
BODY = f"{BACKBONE}body."
"""Of convolutional backbones."""

TABLES = {
    "swin": (BACKBONE, swin.own),
    "resnet": (BODY, resnet.resnet),
    "tresnet": (BODY, tresnet.tresnet),
}
"""By `model.backbone.name`."""


def query2label(config: ml_collections.ConfigDict) -> list[Row]:
    start, table = TABLES.get(config.model.backbone.name, ("", lambda config: []))
    backbone = [row._replace(theirs=f"{start}{row.theirs}") for row in table(config)]
    theirs, ours = "transformer.encoder.layers.{i}", "transformer/encoder/{i}"
    qkv = f"{ours}/attention/query_key_value"
    encoder = [
        Row(f"{theirs}.self_attn.in_proj_weight", f"{qkv}/kernel", TRANSPOSED),
        Row(f"{theirs}.self_attn.in_proj_bias", f"{qkv}/bias", SAME),
        *linear(f"{theirs}.self_attn.out_proj", f"{ours}/attention/out"),
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm"),
        *linear(f"{theirs}.linear1", f"{ours}/mlp_in"),
        *linear(f"{theirs}.linear2", f"{ours}/mlp_out"),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm"),
    ]
    return [
        *backbone,
        *encoder,
        *post_norm_layer("transformer.decoder.layers.{i}", "transformer/decoder/{i}"),
        *norm("transformer.decoder.norm", "transformer/norm"),
        Row("query_embed.weight", "class_embeddings", SAME),
        Row("fc.W", "classifier/weight", UNBATCHED),
        Row("fc.b", "classifier/bias", UNBATCHED),
    ]


def names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone's arrays by the names of its own table."""
    body = {n.removeprefix(BODY): x for n, x in arrays.items() if n.startswith(BODY)}
    if not body:
        return arrays
    rename = tresnet.names if "body.conv1.0.weight" in body else resnet.names
    rest = {n: x for n, x in arrays.items() if not n.startswith(BODY)}
    return rest | {f"{BODY}{n}": x for n, x in rename(body).items()}


DROPPED = (
    *swin.DROPPED,
    Dropped(r".*\.num_batches_tracked", "a counter"),
    Dropped(r".*\.filt", "a constant: the blur"),
    Dropped(r"backbone\.1\..*", "a constant: positions of the grid"),
)
