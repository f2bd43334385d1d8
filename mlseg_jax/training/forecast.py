"""How long a training will take, from its operations, before anything is compiled."""

import logging
import time

import jax
import jax.numpy as jnp
import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs, peak_flops, training_flops

logger = logging.getLogger(__name__)

SHARE = 0.5
"""Of a large matrix product's speed that a training step reaches on processors: 0.75
to 0.85 with ViTs (docs/label_selection.md), half of that with narrow convolutions.
"""

SHARE_OF_PEAK = 0.3
"""The same of an accelerator's peak. A guess; this project has measured none."""

SLOWEST = 1e9
"""Operations a second of any machine: what is less than that needs no measuring."""

SIDE = {"cpu": 768, "gpu": 4096}
"""Of the matrices that are multiplied to see how fast a machine is."""


def machine_flops(dtype: str = "float32") -> float | None:
    """Operations a second that a training will have; None where that is not known.

    ``dtype``: of the model, for accelerators whose peak nobody has written down.
    """
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    if peak is not None:
        return SHARE_OF_PEAK * peak * jax.device_count()
    if device.platform not in SIDE:
        return None
    is_cpu, side = device.platform == "cpu", SIDE[device.platform]
    matrix = jnp.ones((side, side), jnp.float32 if is_cpu else dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        times.append(time.perf_counter() - begin)
    seconds = min(times)  # Others may have had the cores meanwhile.
    # Devices of one processor share its cores.
    share, count = SHARE, jax.process_count()
    if not is_cpu:
        share, count = SHARE_OF_PEAK, jax.device_count()
    return share * 2 * side**3 / seconds * count


def hours_of_steps(
    config: ml_collections.ConfigDict, model: FunctionalModel
) -> float | None:
    """Of all steps, evaluations not counted."""
    speed = machine_flops(config.model.dtype)
    if speed is None:
        return None
    return operations(config, model) / speed / 3600


def operations(config: ml_collections.ConfigDict, model: FunctionalModel) -> int:
    """Of all steps; features that are kept are not counted again."""
    pictures = config.train.steps * config.train.batch_size
    if not config.data.feature_variants:
        return pictures * training_flops(config, model)
    parts = count_macs(config, model)
    rest = sum(part.exact for name, part in parts.items() if name != "backbone")
    return pictures * 6 * rest


def refuse_what_cannot_end(
    config: ml_collections.ConfigDict, model: FunctionalModel, steps_done: int
) -> None:
    """Before the first step.

    Raises:
      UserError: on processors it would take more than ``train.max_hours``. On
        accelerators, whose speed is known less well, a warning says so.
    """
    limit = config.train.max_hours
    if limit <= 0 or config.train.steps <= steps_done:
        return
    if operations(config, model) < 3600 * limit * SLOWEST:
        return
    hours = hours_of_steps(config, model)
    if hours is None:
        return
    hours *= 1 - steps_done / config.train.steps
    if hours <= limit:
        return
    sentence = (
        f"The {config.train.steps - steps_done:,} steps of {config.train.batch_size} "
        f"crops of {' x '.join(map(str, config.data.crop_size))} would take about "
        f"{hours:,.0f} hours on this machine; give the time there is (--minutes=60), "
        f"take --config=configs/own_data.py, which fits a model to it, or start it all "
        f"the same with --config.train.max_hours=0."
    )
    if jax.devices()[0].platform == "cpu":
        raise UserError(sentence)
    logger.warning("%s", sentence)
