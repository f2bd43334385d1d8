"""Residual networks of torchvision, OpenMMLab, Detectron2 and transformers (method.md
section 9.2).
"""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained.mapping import CONV, SAME, Dropped, Row, norm
from mlseg_jax.pretrained.vit import CLASSIFIER


def _unit(conv: str, batch_norm: str, ours: str) -> list[Row]:
    return [
        Row(f"{conv}.weight", f"{ours}/conv/kernel", CONV),
        *norm(batch_norm, f"{ours}/norm"),
        Row(f"{batch_norm}.running_mean", f"{ours}/norm/mean", SAME),
        Row(f"{batch_norm}.running_var", f"{ours}/norm/var", SAME),
    ]


def resnet(config: ml_collections.ConfigDict) -> list[Row]:
    """A stem of one convolution, or of three as OpenMMLab's V1c has it; blocks of three
    convolutions, or of two (ResNet-18 and 34).
    """
    convs = (1, 2, 3) if config.model.backbone.get("bottleneck", True) else (1, 2)
    rows = []
    for i in range(3):
        rows += _unit(f"stem.{3 * i}", f"stem.{3 * i + 1}", f"backbone/stem/{i}")
    # The first block of a stage has another shape and stands apart.
    pairs = (("layer{s+1}.0", "first"), ("layer{s+1}.{b+1}", "blocks/{b}"))
    for theirs, which in pairs:
        ours = f"backbone/stages/{{s}}/{which}"
        for i in convs:
            rows += _unit(f"{theirs}.conv{i}", f"{theirs}.bn{i}", f"{ours}/conv{i}")
        shortcut = f"{theirs}.downsample"
        rows += _unit(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/shortcut")
    return rows


def detectron2_names(prefix: str) -> tuple[tuple[str, str], ...]:
    """Patterns of Detectron2's names, and torchvision's in their place."""
    start = rf"^({prefix})"
    return (
        (rf"{start}stem\.conv1\.norm\.", r"\1stem.1."),
        (rf"{start}stem\.conv1\.", r"\1stem.0."),
        (rf"{start}(res\d\.\d+)\.conv(\d)\.norm\.", r"\1\2.bn\3."),
        (rf"{start}(res\d\.\d+)\.shortcut\.norm\.", r"\1\2.downsample.1."),
        (rf"{start}(res\d\.\d+)\.shortcut\.", r"\1\2.downsample.0."),
        *((rf"{start}res{i + 1}\.", rf"\1layer{i}.") for i in range(1, 5)),
    )


HUGGING_FACE_NAMES = (
    (r"^embedder\.embedder\.convolution\.", "stem.0."),
    (r"^embedder\.embedder\.normalization\.", "stem.1."),
    *((rf"^encoder\.stages\.{i}\.layers\.", f"layer{i + 1}.") for i in range(4)),
    (r"^(layer.*)\.shortcut\.convolution\.", r"\1.downsample.0."),
    (r"^(layer.*)\.shortcut\.normalization\.", r"\1.downsample.1."),
    *(
        (rf"^(layer.*)\.layer\.{i}\.{theirs}\.", rf"\1.{name}{i + 1}.")
        for i in range(3)
        for theirs, name in (("convolution", "conv"), ("normalization", "bn"))
    ),
)
"""Patterns of names in transformers, and torchvision's in their place."""

TO_HUGGING_FACE = (
    (r"^(backbone\.)stem\.0\.", r"\1embedder.embedder.convolution."),
    (r"^(backbone\.)stem\.1\.", r"\1embedder.embedder.normalization."),
    *(
        (rf"^(backbone\.layer.*)\.{name}{i + 1}\.", rf"\1.layer.{i}.{theirs}.")
        for i in range(3)
        for theirs, name in (("convolution", "conv"), ("normalization", "bn"))
    ),
    (r"^(backbone\.layer.*)\.downsample\.0\.", r"\1.shortcut.convolution."),
    (r"^(backbone\.layer.*)\.downsample\.1\.", r"\1.shortcut.normalization."),
    *(
        (rf"^(backbone\.)layer{i + 1}\.", rf"\1encoder.stages.{i}.layers.")
        for i in range(4)
    ),
)
"""The way to transformers, of a backbone within a model."""

TO_DETECTRON2 = (
    (r"^(backbone\.)stem\.0\.", r"\1stem.conv1."),
    (r"^(backbone\.)stem\.1\.", r"\1stem.conv1.norm."),
    (r"^(backbone\.layer.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"^(backbone\.layer.*)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(backbone\.layer.*)\.downsample\.1\.", r"\1.shortcut.norm."),
    *((rf"^(backbone\.)layer{i}\.", rf"\1res{i + 1}.") for i in range(1, 5)),
)
"""The way back, of a backbone within a model."""


def names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without prefixes of others; torchvision's stem as the first of V1c's units."""
    pairs = (
        (r"^backbone\.", ""),
        *detectron2_names(""),
        (r"^resnet\.", ""),
        *HUGGING_FACE_NAMES,
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
    )
    renamed = {}
    for name, array in arrays.items():
        for pattern, new in pairs:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    return renamed


DROPPED = (
    # Detectron2 files it with the stem.
    Dropped(r"((head\.|stem\.)?fc|classifier\.1)\.(weight|bias)", CLASSIFIER),
    Dropped(r".*\.num_batches_tracked", "a counter"),
)
