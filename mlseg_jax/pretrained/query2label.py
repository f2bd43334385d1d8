"""Query2Label's release (method.md section 8.1), of which we have the Swin models."""

import ml_collections

from mlseg_jax.pretrained import swin
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


def query2label(config: ml_collections.ConfigDict) -> list[Row]:
    backbone = [
        row._replace(theirs=f"{BACKBONE}{row.theirs}") for row in swin.own(config)
    ]
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


DROPPED = (
    *swin.DROPPED,
    Dropped(r"backbone\.1\..*", "a constant: positions of the grid"),
)
