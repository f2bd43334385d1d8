"""Multiply-accumulates of a model, counted from its configuration.

Every matrix product is counted once; elementwise work, norms and softmax are not. One
multiply-accumulate is two floating-point operations.
"""

import ml_collections

from mlseg_jax.models.build import num_ranks

PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 operations a second, by the start of ``device_kind``."""


def peak_flops(device_kind: str) -> float | None:
    """The device's peak, where it is known."""
    matches = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def _block(tokens: int, width: int, hidden: int) -> int:
    """Projections, the two attention products, the MLP."""
    linear = tokens * (4 * width * width + 2 * width * hidden)
    return linear + 2 * tokens * tokens * width


def count_macs(config: ml_collections.ConfigDict, num_classes: int) -> dict[str, int]:
    """Multiply-accumulates of one picture of ``data.crop_size``, by part."""
    model, backbone = config.model, config.model.backbone
    height, width = config.data.crop_size
    patches = -(-height // backbone.patch_size) * -(-width // backbone.patch_size)
    dim, ranks = backbone.embed_dim, num_ranks(config, num_classes)
    per_patch = backbone.patch_size**2 * 3 * dim
    macs = {
        "backbone": patches * per_patch
        + backbone.depth * _block(patches + 1, dim, backbone.mlp_dim)
    }
    macs["decoder"] = (
        patches * dim * dim  # feature projection
        + model.decoder.depth * _block(patches + ranks, dim, 4 * dim)
        + (patches + ranks) * dim * dim  # patch and class projections
        + patches * ranks * dim  # cosines
    )
    macs["multilabel_head"] = 0
    if model.multilabel_head.name == "transformer_encoder":
        bins = model.multilabel_head.downsample
        tokens = (bins * bins if bins else patches) + num_classes
        macs["multilabel_head"] = _block(tokens, dim, 4 * dim) + num_classes * dim
    return macs


def training_flops(config: ml_collections.ConfigDict, num_classes: int) -> int:
    """Operations of a training step per picture: forward, and twice that backward.

    What rematerialisation repeats is not counted (model FLOPs, not hardware FLOPs).
    """
    return 6 * sum(count_macs(config, num_classes).values())
