"""Learning rates by step (method.md sections 8.2 and 12.1)."""

from collections.abc import Mapping

import jax.numpy as jnp
import ml_collections
import optax

from mlseg_jax.typing import Array, Int

Lengths = Mapping[str, int | Int[Array, ""]]

CYCLE_START = 0.2
"""Share of the steps in which a one-cycle schedule rises."""
FALL = 0.1
"""Factor of the learning rate where ``steps`` falls."""


def schedule_lengths(config: ml_collections.ConfigDict) -> Lengths:
    """All that schedules count in steps."""
    return {
        "steps": config.train.steps,
        "warmup_steps": config.optimizer.warmup_steps,
        "backbone_warmup_steps": config.optimizer.backbone_warmup_steps,
    }


def make_schedule(
    config: ml_collections.ConfigDict,
    lengths: Lengths | None = None,
    *,
    of_backbone: bool = False,
) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then ``poly``, ``cosine``, others.

    That ``of_backbone`` may stand still in the warm-up of the others and have its own
    after that (``backbone_warmup_steps``; masks.md section 7.2). ``lengths``: of
    another training than the configuration's, or the same as arguments of a program.

    poly: (start - end) (1 - step / steps)^power + end (method.md section 12.1), which
    the warm-up multiplies, as mmcv and Detectron2 do; EoMT's, which has a warm-up of
    the backbone, counts steps after both (masks.md section 7.2), as cosine does.
    ``one_cycle`` has its own warm-up (method.md section 8.2): half a cosine from a 25th
    of the learning rate up to it, another down to a ten-thousandth of where it began.
    ``steps`` falls to a tenth at each of ``falls_at`` (masks.md section 5.3).
    """
    optimizer, lengths = config.optimizer, lengths or schedule_lengths(config)
    steps, start, end = (
        lengths["steps"],
        optimizer.learning_rate,
        optimizer.end_learning_rate,
    )
    if optimizer.schedule == "one_cycle":
        return one_cycle(steps, start / 25, start, start / 25e4)
    still = lengths["warmup_steps"] if of_backbone else 0
    warm = lengths["backbone_warmup_steps" if of_backbone else "warmup_steps"]
    before = still + warm
    if optimizer.schedule == "poly" and not optimizer.backbone_warmup_steps:
        before = 0

    def after_warmup(step):
        done = jnp.clip((step - before) / jnp.maximum(steps - before, 1), 0.0, 1.0)
        if optimizer.schedule == "poly":
            return (start - end) * (1.0 - done) ** optimizer.poly_power + end
        if optimizer.schedule == "cosine":
            return (start - end) / 2 * (1.0 + jnp.cos(jnp.pi * done)) + end
        if optimizer.schedule == "steps":
            falls = [jnp.round(share * steps) for share in optimizer.falls_at]
            return start * FALL ** sum(step >= fall for fall in falls)
        return start

    def value(step):
        risen = jnp.where(
            step < still + warm, (step - still) / jnp.maximum(warm, 1), 1.0
        )
        return jnp.maximum(risen, 0.0) * after_warmup(step)

    return value


def one_cycle(
    steps: int | Int[Array, ""], start: float, peak: float, end: float
) -> optax.Schedule:
    """PyTorch's ``OneCycleLR``, whose last step (not the one after) is at ``end``."""
    top = jnp.maximum(CYCLE_START * steps - 1, 1.0)
    last = jnp.maximum(steps - 1.0, 1.0)

    def value(step):
        up = jnp.clip(step / top, 0.0, 1.0)
        down = jnp.clip((step - top) / jnp.maximum(last - top, 1e-6), 0.0, 1.0)
        rising = peak + (start - peak) / 2 * (1 + jnp.cos(jnp.pi * up))
        falling = end + (peak - end) / 2 * (1 + jnp.cos(jnp.pi * down))
        return jnp.where(step <= top, rising, falling)

    return value
