"""What a configuration costs, and what a device could do.

One multiply-accumulate is two floating-point operations; how they are counted is in
``models/macs.py``, and every part of a model counts its own.
"""

import ml_collections
from flax import nnx

from mlseg_jax.models.build import FunctionalModel, num_ranks
from mlseg_jax.models.macs import Macs

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
    "TPU7x": 1153.5e12,  # of one of the two devices that JAX makes of a chip
}
"""Dense bfloat16 operations a second, by the start of ``device_kind``."""


def peak_flops(device_kind: str) -> float | None:
    """The device's peak, where it is known."""
    matches = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def count_macs(
    config: ml_collections.ConfigDict, model: FunctionalModel
) -> dict[str, Macs]:
    """Multiply-accumulates of one picture of ``data.crop_size``, by part; of one clip
    of such frames where that is an example.
    """
    bound = nnx.merge(model.graph, model.abstract)
    frames = config.data.get("num_frames", 0)
    return bound.macs(
        tuple(config.data.crop_size),
        num_ranks(config, model.num_classes),
        *((frames,) if frames else ()),
    )


def training_flops(config: ml_collections.ConfigDict, model: FunctionalModel) -> int:
    """Operations of a training step per picture (or clip): forward, twice backward.

    What rematerialisation repeats is not counted (model FLOPs, not hardware FLOPs).
    """
    return 6 * sum(part.exact for part in count_macs(config, model).values())
