"""UPerNet's decoder and auxiliary head in mmsegmentation (method.md section 9.1)."""

import ml_collections

from mlseg_jax.pretrained.mapping import CONV, SAME, Change, Row, norm

CLASS_ROWS = Change(lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None])
"""A 1x1 convolution [C, D, 1, 1] and a row for each class [C, D]."""

CLASS_BIASES = Change(lambda x: x[:, None], lambda x: x[:, 0])


def _unit(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.conv.weight", f"{ours}/conv/kernel", CONV),
        *norm(f"{theirs}.bn", f"{ours}/norm"),
        Row(f"{theirs}.bn.running_mean", f"{ours}/norm/mean", SAME),
        Row(f"{theirs}.bn.running_var", f"{ours}/norm/var", SAME),
    ]


def mmsegmentation(config: ml_collections.ConfigDict) -> list[Row]:
    del config
    head = "decode_head"
    return [
        *_unit(f"{head}.psp_modules.{{i}}.1", "decoder/pools/{i}"),
        *_unit(f"{head}.bottleneck", "decoder/bottleneck"),
        *_unit(f"{head}.lateral_convs.{{i}}", "decoder/laterals/{i}"),
        *_unit(f"{head}.fpn_convs.{{i}}", "decoder/smoothings/{i}"),
        *_unit(f"{head}.fpn_bottleneck", "decoder/fusion"),
        Row(f"{head}.conv_seg.weight", "class_embeddings", CLASS_ROWS),
        Row(f"{head}.conv_seg.bias", "class_biases", CLASS_BIASES),
        *_unit("auxiliary_head.convs.0", "auxiliary_head/conv"),
        Row(
            "auxiliary_head.conv_seg.weight", "auxiliary_head/class_weights", CLASS_ROWS
        ),
        Row("auxiliary_head.conv_seg.bias", "auxiliary_head/class_biases", SAME),
    ]
