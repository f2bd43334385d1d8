"""UPerNet's decoder and auxiliary head in mmsegmentation (method.md section 9.1)."""

import ml_collections

from mlseg_jax.pretrained.mapping import CONV, SAME, Change, Row, norm

CLASS_ROWS = Change(lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None])
"""A 1x1 convolution [C, D, 1, 1] and a row for each class [C, D]."""

CLASS_BIASES = Change(lambda x: x[:, None], lambda x: x[:, 0])


def unit(theirs: str, ours: str) -> list[Row]:
    """A convolution and its batch norm."""
    return [
        Row(f"{theirs}.conv.weight", f"{ours}/conv/kernel", CONV),
        *norm(f"{theirs}.bn", f"{ours}/norm"),
        Row(f"{theirs}.bn.running_mean", f"{ours}/norm/mean", SAME),
        Row(f"{theirs}.bn.running_var", f"{ours}/norm/var", SAME),
    ]


def decoder(head: str) -> list[Row]:
    return [
        *unit(f"{head}.psp_modules.{{i}}.1", "decoder/pools/{i}"),
        *unit(f"{head}.bottleneck", "decoder/bottleneck"),
        *unit(f"{head}.lateral_convs.{{i}}", "decoder/laterals/{i}"),
        *unit(f"{head}.fpn_convs.{{i}}", "decoder/smoothings/{i}"),
        *unit(f"{head}.fpn_bottleneck", "decoder/fusion"),
    ]


def classes(head: str) -> list[Row]:
    """Of a head that classifies all classes."""
    return [
        Row(f"{head}.conv_seg.weight", "class_embeddings", CLASS_ROWS),
        Row(f"{head}.conv_seg.bias", "class_biases", CLASS_BIASES),
    ]


def auxiliary() -> list[Row]:
    ours, theirs = "auxiliary_head", "auxiliary_head.conv_seg"
    return [
        *unit("auxiliary_head.convs.0", f"{ours}/conv"),
        Row(f"{theirs}.weight", f"{ours}/class_weights", CLASS_ROWS),
        Row(f"{theirs}.bias", f"{ours}/class_biases", SAME),
    ]


def mmsegmentation(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    head = "decode_head"
    return [*decoder(head), *classes(head), *auxiliary()]
