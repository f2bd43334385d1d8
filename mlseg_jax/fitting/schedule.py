"""How many steps fit into the time that is left, once some have been measured."""

import dataclasses

import jax

from mlseg_jax.fitting.choices import Choices
from mlseg_jax.fitting.measure import Timing
from mlseg_jax.fitting.rules import MIN_VALIDATION

EVALUATIONS = 8
"""During training, where there is a validation part to choose a checkpoint by."""

PATIENCE = 4
"""Of these, without a better score, after which training ends."""

SECONDS_BETWEEN_CHECKPOINTS = 180.0
"""At most, for a run that is stopped loses what came after the last one."""

MAX_EVALUATION_SHARE = 0.15
"""Of the time left, that evaluations during training may take."""

MAX_TEST = 0.3
"""Of the time, that the evaluation at the end may take."""

MIN_TEST = 8
"""Pictures that it looks at whatever the time."""

WARMUP = (0.05, 100)
"""Of a schedule that is chosen: share of the steps, and most steps."""

CACHED = 0.3
"""Of the seconds to trace and compile, that the loop takes again with a cache: its
programs are the same, also that of a step, whose schedule is an argument.
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
      num_validation, num_test: pictures of the former and of the latter.
    """

    steps: int
    evaluations: int
    reserve: float
    num_validation: int
    num_test: int


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
    cuts_validation: bool = False,
    cuts_test: bool = False,
) -> Plan:
    """Divides ``left`` of ``total`` seconds among steps and evaluations.

    ``reading``: seconds in which the loop reads examples before its first step.
    ``evaluates``: whether evaluations during training are wanted if there is time; one
    at least is made where the best checkpoint is kept. ``cuts_validation``,
    ``cuts_test``: whether they may be of fewer pictures than there are.
    """
    cached = jax.config.jax_compilation_cache_dir is not None
    again = timing.compiling * (CACHED if cached else 1.0)
    most = int(MAX_TEST * min(total, max(left - again, 0.0)) / timing.example)
    if cuts_test and num_test > most:
        num_test = min(num_test, max(MIN_TEST, most))
    # The evaluation at the end makes its engine anew; compiling it is most often a
    # third of all compiling.
    reserve = num_test * timing.example + again / 3 + MARGIN * total
    free = max(0.0, left - reserve - again - reading - timing.preparing)
    affordable = int(MAX_EVALUATION_SHARE * free / timing.example)
    if cuts_validation and num_validation > affordable // PATIENCE:
        num_validation = min(
            num_validation, max(MIN_VALIDATION, affordable // PATIENCE)
        )
    wanted = EVALUATIONS if evaluates or keeps_best else 0
    wanted = min(wanted, affordable // max(num_validation, 1))
    evaluations = max(int(keeps_best), wanted)
    one = num_validation * timing.example
    steps = max(1, int((free - evaluations * one) / timing.step))
    reserve += keeps_best * one
    return Plan(steps, evaluations, reserve, num_validation, num_test)


def set_schedule(choices: Choices, planned: Plan, timing: Timing, epoch: int) -> None:
    """Steps, and all that is counted in them, of the configuration.

    ``epoch``: number of pictures that are trained on.
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
