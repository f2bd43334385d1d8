"""How many steps fit into the time that is left, once some have been measured."""

import dataclasses

import jax

from mlseg_jax.fitting.choices import Choices
from mlseg_jax.fitting.measure import Timing

EVALUATIONS = 8
"""During training, where there is a validation part to choose a checkpoint by."""

PATIENCE = 4
"""Of these, without a better score, after which training ends."""

SECONDS_BETWEEN_CHECKPOINTS = 180.0
"""At most, for a run that is stopped loses what came after the last one."""

MAX_EVALUATION_SHARE = 0.15
"""Of the time left, that evaluations during training may take."""

WARMUP = (0.05, 100)
"""Of a schedule that is chosen: share of the steps, and most steps."""

CACHED = 0.8
"""Of the seconds to trace and compile, that the loop takes again with a cache: its step
has another schedule, and so is another program.
"""

SLOWER = 0.9
"""How fast later steps may be beside those that were measured: a training whose time
is over before its schedule ends with a learning rate that is not down, which costs more
than some steps less.
"""

MARGIN = 0.03
"""Of the minutes, kept for what was not measured: starting, saving, writing."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the seconds go that are left after measuring.

    Attributes:
      steps: of training.
      evaluations: during training.
      reserve: seconds for the evaluation at the end.
    """

    steps: int
    evaluations: int
    reserve: float


def plan(
    timing: Timing,
    *,
    left: float,
    total: float,
    reading: float,
    num_validation: int,
    num_test: int,
    keeps_best: bool,
    evaluates: bool,
) -> Plan:
    """Divides ``left`` of ``total`` seconds among steps and evaluations.

    ``reading``: seconds in which the loop reads examples before its first step.
    ``evaluates``: whether evaluations during training are wanted if there is time; one
    at least is made where the best checkpoint is kept.
    """
    cached = jax.config.jax_compilation_cache_dir is not None
    again = timing.compiling * (CACHED if cached else 1.0)
    one, last = num_validation * timing.example, num_test * timing.example
    # The evaluation at the end makes its engine anew; compiling it is most often a
    # third of all compiling.
    reserve = last + again / 3 + MARGIN * total
    free = max(0.0, left - reserve - again - reading - timing.preparing)
    affordable = int(MAX_EVALUATION_SHARE * free / max(one, 1e-9))
    wanted = EVALUATIONS if evaluates or keeps_best else 0
    evaluations = max(int(keeps_best), min(wanted, affordable))
    free -= evaluations * one
    steps = max(1, int(SLOWER * free / timing.step))
    return Plan(steps, evaluations, reserve + keeps_best * one)


def set_schedule(choices: Choices, planned: Plan, timing: Timing, epoch: int) -> None:
    """Steps, and all that is counted in them, of the configuration.

    ``epoch``: number of training pictures.
    """
    config, steps = choices.config, planned.steps
    old = config.train.steps
    choices.set(train={"steps": steps})
    steps = config.train.steps
    every = max(1, -(-steps // max(planned.evaluations, 1)))
    if config.choose_settings:
        share, most = WARMUP
        choices.set(
            optimizer={"warmup_steps": min(most, round(share * steps))},
            # The loop ends after one more than it is told to be patient for.
            train={"patience": PATIENCE - 1 if planned.evaluations > PATIENCE else 0},
        )
    elif old:
        scaled = {
            key: round(config.optimizer[key] * steps / old)
            for key in ("warmup_steps", "backbone_warmup_steps")
        }
        choices.set(optimizer=scaled)
    soon = max(1, int(SECONDS_BETWEEN_CHECKPOINTS / timing.step))
    choices.set(
        train={
            "eval_every": every if planned.evaluations else 0,
            "checkpoint_every": min(every, soon, config.train.checkpoint_every or soon),
        }
    )
    crops = steps * config.train.batch_size
    choices.say(
        "schedule",
        f"{steps:,} steps of {config.train.batch_size} crops ({crops / epoch:,.0f} "
        f"epochs), measured {timing.step:.2f} s a step, "
        f"{config.optimizer.schedule} from {config.optimizer.learning_rate:g}, "
        f"{planned.evaluations} evaluations on the way",
    )
