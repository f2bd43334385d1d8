"""The update rule of a configuration: decay, frozen parts, learning rates by path."""

import re
from collections.abc import Iterable

import jax.numpy as jnp
import ml_collections
import optax

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import Parameters
from mlseg_jax.models.encoder_only import held_back
from mlseg_jax.training.schedule import (
    Lengths,
    make_schedule,
    one_cycle,
    schedule_lengths,
)
from mlseg_jax.typing import Array, Float, Int

BLOCKS = r"backbone/blocks/blocks/(?:(\d+)/)?"
BEFORE_BLOCKS = r"backbone/(patch_projection|.*_tokens?$|position_table)"
"""Paths that layer-wise decay of the learning rate knows."""

CYCLE_BETA1 = (0.95, 0.85)
"""Adam's first decay where the learning rate is lowest and where it is highest: PyTorch
turns it the other way round along with the learning rate.
"""


def average_decay(
    config: ml_collections.ConfigDict, step: int | Int[Array, ""]
) -> float | Float[Array, ""]:
    """What is kept of the averaged weights in a step, from 0.

    With ``optimizer.ema_warmup`` at most (1 + step) / (10 + step): until that reaches
    the decay, the average is of about the last ninth of the steps, and soon nothing of
    the random start is left in it. `settings.saved` says it for older runs.
    """
    decay = config.optimizer.ema_decay
    if not config.optimizer.ema_warmup:
        return decay
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _scale_by_adam(
    config: ml_collections.ConfigDict, lengths: Lengths
) -> optax.GradientTransformation:
    if config.optimizer.schedule != "one_cycle":
        return optax.scale_by_adam()
    low, high = CYCLE_BETA1
    adam = optax.inject_hyperparams(
        optax.scale_by_adam, static_args=("b2", "eps", "eps_root", "nesterov")
    )
    return adam(b1=one_cycle(lengths["steps"], low, high, low))


def make_optimizer(
    config: ml_collections.ConfigDict, lengths: Lengths | None = None
) -> optax.GradientTransformation:
    """The update rule: SGD with decay in the gradient, or AdamW with it decoupled.

    ``lengths``: as `make_schedule`.
    """
    optimizer, lengths = config.optimizer, lengths or schedule_lengths(config)
    steps = []
    if optimizer.clip_norm > 0:
        steps.append(optax.clip_by_global_norm(optimizer.clip_norm))
    decay = _weight_decay(
        optimizer.weight_decay, tuple(map(tuple, optimizer.weight_decay_factors))
    )
    if optimizer.name == "sgd":
        steps += [decay, optax.trace(decay=optimizer.momentum)]
    else:
        steps += [_scale_by_adam(config, lengths), decay]
    factors = tuple(map(tuple, optimizer.learning_rate_factors))
    joint = _joint(config)
    if factors or optimizer.layer_decay != 1.0:
        steps.append(_scale_by_path(factors, optimizer.layer_decay, joint))
    if optimizer.backbone_warmup_steps:
        steps.append(_scale_by_two_rates(config, lengths))
    else:
        steps.append(optax.scale_by_learning_rate(make_schedule(config, lengths)))
    update_rule = optax.chain(*steps)
    return _train_the_rest(config, update_rule) if optimizer.frozen else update_rule


def _joint(config: ml_collections.ConfigDict) -> int | None:
    """Blocks at the full rate by ``joint``, 0 by ``last``; None by BEiT's rule."""
    rule = config.optimizer.layer_decay_rule
    if rule != "joint":
        return None if rule == "beit" else 0
    return held_back(config).get("held_back", 0)


def _scale_by_two_rates(
    config: ml_collections.ConfigDict, lengths: Lengths
) -> optax.GradientTransformation:
    """One learning rate for the backbone, one for what follows it."""
    rates = [make_schedule(config, lengths, of_backbone=x) for x in (False, True)]

    def update(updates: Parameters, state, parameters: Parameters):
        del parameters
        now = [rate(state.count) for rate in rates]
        scaled = {
            path: -now[path.startswith("backbone/")] * x for path, x in updates.items()
        }
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    def init(parameters: Parameters) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)


def _train_the_rest(
    config: ml_collections.ConfigDict, update_rule: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The rule for what is not frozen; the rest stays as it is and has no state."""

    def rest(values: Parameters) -> Parameters:
        frozen = frozen_paths(config, values)
        return {path: x for path, x in values.items() if path not in frozen}

    def update(updates: Parameters, state, parameters: Parameters):
        # Depths of blocks are those of the whole backbone: it sees all parameters.
        trained, state = update_rule.update(rest(updates), state, parameters)
        return {path: jnp.zeros_like(x) for path, x in updates.items()} | trained, state

    return optax.GradientTransformation(lambda p: update_rule.init(rest(p)), update)


def frozen_paths(config: ml_collections.ConfigDict, paths: Iterable[str]) -> set[str]:
    """Of the parameters those that a pattern of ``optimizer.frozen`` matches.

    Raises:
      UserError: a pattern matches none.
    """
    frozen = set()
    for pattern in config.optimizer.frozen:
        matches = {path for path in paths if re.search(pattern, path)}
        if not matches:
            raise UserError(
                f"optimizer.frozen has {pattern!r}, which is in the path of no "
                f"parameter; `summary` lists them."
            )
        frozen |= matches
    return frozen


def _weight_decay(
    strength: float, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Adds strength x factor x parameter; the first pattern in the path decides."""

    def add(updates: Parameters, parameters: Parameters) -> Parameters:
        if strength == 0.0:
            return updates
        return {
            path: update + strength * _first(factors, path) * parameters[path]
            for path, update in updates.items()
        }

    return optax.stateless(add)


def _first(factors: tuple[tuple[str, float], ...], path: str) -> float:
    """The factor of the first pattern in the path; 1 without any."""
    return next((f for pattern, f in factors if re.search(pattern, path)), 1.0)


def _scale_by_path(
    factors: tuple[tuple[str, float], ...], layer_decay: float, joint: int | None
) -> optax.GradientTransformation:
    """Learning rates that differ: by pattern, times by depth in the backbone."""

    def scale(updates: Parameters, parameters: Parameters) -> Parameters:
        by_depth = depth_factors(parameters, layer_decay, joint)
        return {
            path: update * _first(factors, path) * by_depth.get(path, 1.0)
            for path, update in updates.items()
        }

    return optax.stateless(scale)


def depth_factors(
    parameters: Parameters, decay: float, joint: int | None = None
) -> dict[str, float | Array]:
    """Layer-wise decay of the learning rate, BEiT's rule (method.md section 12.1).

    Of n blocks, block i has decay^(n - i), what comes before them decay^(n + 1), and
    everything else, which is not named here, 1. Blocks under a scan are one array with
    a factor for each entry of its first axis.

    EoMT's rules (masks.md section 7.2): block i has decay^(n - 1 - i), but the last
    ``joint``, which are the decoder's, have 1; what comes before has decay^(n - 1).
    """
    if decay == 1.0:
        return {}
    blocks = {p: m[1] for p in parameters if (m := re.match(BLOCKS, p))}
    if not blocks and any(path.startswith("backbone/") for path in parameters):
        raise UserError(
            f"optimizer.layer_decay={decay} needs a backbone that is one stack of "
            f"blocks, such as a ViT; set it to 1."
        )
    depths = [
        parameters[path].shape[0] if number is None else int(number) + 1
        for path, number in blocks.items()
    ]
    depth = max(depths, default=0)

    def of_block(i: int) -> float:
        if joint is None:
            return decay ** (depth - i)
        return 1.0 if i >= depth - joint else decay ** (depth - 1 - i)

    def factor(path: str) -> float | Array:
        if path not in blocks:
            return decay ** (depth + 1 if joint is None else depth - 1)
        if blocks[path] is not None:
            return of_block(int(blocks[path]))
        shape = (-1,) + (1,) * (parameters[path].ndim - 1)
        each = [of_block(i) for i in range(depth)]
        return jnp.asarray(each, jnp.float32).reshape(shape)

    before = [path for path in parameters if re.match(BEFORE_BLOCKS, path)]
    return {path: factor(path) for path in [*before, *blocks]}
