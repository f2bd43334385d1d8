"""Learning rates by step (method.md sections 8.2 and 12.1)."""

import jax.numpy as jnp
import ml_collections
import optax

CYCLE_START = 0.2
"""Share of the steps in which a one-cycle schedule rises."""
FALL = 0.1
"""Factor of the learning rate where ``steps`` falls."""


def make_schedule(
    config: ml_collections.ConfigDict, *, of_backbone: bool = False
) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then ``poly``, ``cosine``, others.

    That ``of_backbone`` may stand still in the warm-up of the others and have its own
    after that (``backbone_warmup_steps``; masks.md section 7.2).

    poly: (start - end) (1 - step / steps)^power + end (method.md section 12.1).
    ``one_cycle`` has its own warm-up (method.md section 8.2): half a cosine from a 25th
    of the learning rate up to it, another down to a ten-thousandth of where it began.
    ``steps`` falls to a tenth at each of ``falls_at`` (masks.md section 5.3).
    """
    optimizer = config.optimizer
    if optimizer.schedule == "one_cycle":
        peak = optimizer.learning_rate
        return one_cycle(config.train.steps, peak / 25, peak, peak / 25e4)
    start, end = optimizer.learning_rate, optimizer.end_learning_rate
    still = optimizer.warmup_steps if of_backbone else 0
    warm = optimizer.backbone_warmup_steps if of_backbone else optimizer.warmup_steps
    before = still + warm
    steps = max(1, config.train.steps - before)
    if optimizer.schedule == "poly":
        decay = optax.polynomial_schedule(start, end, optimizer.poly_power, steps)
    elif optimizer.schedule == "cosine":
        decay = optax.cosine_decay_schedule(start, steps, alpha=end / start)
    elif optimizer.schedule == "steps":
        falls = [round(share * config.train.steps) for share in optimizer.falls_at]
        falls = {step - before: FALL for step in falls}
        decay = optax.piecewise_constant_schedule(start, falls)
    else:
        decay = optax.constant_schedule(start)
    if before == 0:
        return decay
    warmup = optax.linear_schedule(0.0, start, warm, transition_begin=still)
    return optax.join_schedules([warmup, decay], [before])


def one_cycle(steps: int, start: float, peak: float, end: float) -> optax.Schedule:
    """PyTorch's ``OneCycleLR``, whose last step (not the one after) is at ``end``."""
    top, last = max(CYCLE_START * steps - 1, 1.0), max(steps - 1.0, 1.0)

    def value(step):
        up = jnp.clip(step / top, 0.0, 1.0)
        down = jnp.clip((step - top) / max(last - top, 1e-6), 0.0, 1.0)
        rising = peak + (start - peak) / 2 * (1 + jnp.cos(jnp.pi * up))
        falling = end + (peak - end) / 2 * (1 + jnp.cos(jnp.pi * down))
        return jnp.where(step <= top, rising, falling)

    return value
