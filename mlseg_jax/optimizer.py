"""Optimisers and learning-rate schedules of a configuration."""

import re

import ml_collections
import optax

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import Parameters


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then ``poly``, ``cosine`` or constant.

    poly: (start - end) (1 - step / steps)^power + end (method.md section 12.1).
    """
    optimizer = config.optimizer
    start, end = optimizer.learning_rate, optimizer.end_learning_rate
    steps = max(1, config.train.steps - optimizer.warmup_steps)
    if optimizer.schedule == "poly":
        decay = optax.polynomial_schedule(start, end, optimizer.poly_power, steps)
    elif optimizer.schedule == "cosine":
        decay = optax.cosine_decay_schedule(start, steps, alpha=end / start)
    elif optimizer.schedule == "constant":
        decay = optax.constant_schedule(start)
    else:
        raise UserError(
            f"Unknown optimizer.schedule {optimizer.schedule!r}; choose poly, cosine "
            f"or constant."
        )
    if optimizer.warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(0.0, start, optimizer.warmup_steps)
    return optax.join_schedules([warmup, decay], [optimizer.warmup_steps])


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The update rule: SGD with decay in the gradient, or AdamW with it decoupled."""
    optimizer = config.optimizer
    steps = []
    if optimizer.clip_norm > 0:
        steps.append(optax.clip_by_global_norm(optimizer.clip_norm))
    decay = _weight_decay(
        optimizer.weight_decay, tuple(map(tuple, optimizer.weight_decay_factors))
    )
    if optimizer.name == "sgd":
        steps += [decay, optax.trace(decay=optimizer.momentum)]
    elif optimizer.name == "adamw":
        steps += [optax.scale_by_adam(), decay]
    else:
        raise UserError(
            f"Unknown optimizer.name {optimizer.name!r}; choose sgd or adamw."
        )
    steps.append(optax.scale_by_learning_rate(make_schedule(config)))
    return optax.chain(*steps)


def _weight_decay(
    strength: float, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Adds strength x factor x parameter; the first pattern in the path decides."""

    def factor(path: str) -> float:
        return next((f for pattern, f in factors if re.search(pattern, path)), 1.0)

    def add(updates: Parameters, parameters: Parameters) -> Parameters:
        if strength == 0.0:
            return updates
        return {
            path: update + strength * factor(path) * parameters[path]
            for path, update in updates.items()
        }

    return optax.stateless(add)
