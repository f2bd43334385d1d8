"""The front door: completes a configuration, then trains it within its minutes."""

import json
import logging
import time
from collections.abc import Collection

import jax
import ml_collections
from etils import epath

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.processes import gather
from mlseg_jax.errors import UserError
from mlseg_jax.fitting.choices import FILE, Choices, put
from mlseg_jax.fitting.clock import Clock
from mlseg_jax.fitting.facts import NUM_LOOKED_AT, look_at_data, look_at_machine
from mlseg_jax.fitting.measure import measure
from mlseg_jax.fitting.rules import choose
from mlseg_jax.fitting.schedule import plan, set_schedule
from mlseg_jax.models.build import check_config
from mlseg_jax.runs.checkpoint import write_json
from mlseg_jax.settings import saved
from mlseg_jax.training import loop
from mlseg_jax.training.forecast import machine_flops

logger = logging.getLogger(__name__)

OF_SCENES = frozenset(
    f"data.{key}"
    for key in (
        *("crop_size", "base_size", "scale_range", "flip_rate", "photometric"),
        *("max_class_share", "cache", "train_split", "validation_split"),
    )
)
"""Keys that the recipe knows best for scenes, whose size is that of the crops."""

DEFAULT_MINUTES = 30.0
"""Where settings are to be chosen and nobody said how long it may take."""

LOOKING, MEASURING = 0.05, 0.03
"""Shares of the minutes for looking at the data and for measured steps."""


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    given: Collection[str] = (),
    minutes: float = 0.0,
    already: float = 0.0,
) -> dict[str, float]:
    """Trains within ``minutes``, with settings chosen where the configuration wants it.

    Args:
      config: a whole configuration.
      workdir: of the run; one that was chosen for before keeps what was chosen.
      given: dotted keys that the user has set: they stay.
      minutes: of wall time for all, from the command to the scores; 0 is no limit, or
        `DEFAULT_MINUTES` where settings are to be chosen.
      already: seconds since the command.

    Returns:
      As `loop.train`.

    Raises:
      UserError: no time is left to train in, or what `loop.train` says.
    """
    if minutes < 0:
        raise UserError(f"--minutes is {minutes:g}; give a number above 0.")
    if minutes and config.selection.name == "given":
        raise UserError(
            "--minutes does not fit trainings with selection.name=given, whose labels "
            "are looked up before; give train.steps."
        )
    if not config.choose_settings and not minutes:
        return loop.train(config, workdir)
    if config.choose_settings and not minutes:
        minutes = _minutes_before(workdir) or DEFAULT_MINUTES
        logger.info("--minutes is not given: %g minutes", minutes)
    clock = Clock(workdir, minutes, already)
    path = epath.Path(workdir) / FILE
    if path.exists() and _has_begun(workdir):
        config = _chosen_before(config, workdir, path, frozenset(given))
    else:
        config = _choose(config, path, frozenset(given), clock)
    # Several processes would each stop at a step of their own.
    alone = jax.process_count() == 1
    return loop.train(config, workdir, clock=clock if alone else None)


def _has_begun(workdir: str) -> bool:
    checkpoints = epath.Path(workdir) / "checkpoints"
    return checkpoints.exists() and any(x.name.isdigit() for x in checkpoints.iterdir())


def _minutes_before(workdir: str) -> float:
    path = epath.Path(workdir) / FILE
    return json.loads(path.read_text())["minutes"] if path.exists() else 0.0


def _chosen_before(config, workdir: str, path: epath.Path, given: frozenset[str]):
    """The configuration with what the run's first command has chosen."""
    before = saved.get_config(workdir)
    config = config.copy_and_resolve_references().unlock()
    for key in json.loads(path.read_text())["keys"]:
        if key not in given:
            value = before
            for name in key.split("."):
                value = value[name]
            put(config, key, value)
    config.lock()
    logger.info("settings as they were chosen when %s began", workdir)
    return config


def _choose(config, path: epath.Path, given: frozenset[str], clock: Clock):
    """Looks, chooses, measures; says what was chosen and keeps it."""
    if config.data.name == "sign_scenes":
        given |= OF_SCENES
    choices = Choices(config, given)
    begin = time.perf_counter()
    data = look_at_data(config, LOOKING * clock.seconds)
    looking = time.perf_counter() - begin
    if config.choose_settings:
        machine = look_at_machine()
        choose(choices, data, machine, clock.left(), machine_flops())
    config = choices.config
    check_config(config)
    timing = measure(config, data.num_classes, MEASURING * clock.seconds)
    num_test = len(open_dataset(config.data, train=False))
    validation = config.data.copy_and_resolve_references()
    if config.data.validation_split:
        validation.update(eval_split=config.data.validation_split, eval_examples=0)
    num_validation = len(open_dataset(validation, train=False))
    reads = sum(min(NUM_LOOKED_AT, n) for n in (data.num_pictures, num_test))
    planned = plan(
        timing,
        left=clock.left(),
        total=clock.seconds,
        reading=looking / len(data.sizes) * reads,
        num_validation=num_validation,
        num_test=num_test,
        keeps_best=config.eval.checkpoint == "best",
    )
    # All processes do what the first one found.
    planned, timing = gather((planned, timing))[0]
    clock.reserve = planned.reserve
    set_schedule(choices, planned, timing, data.num_pictures)
    if planned.steps == 1:
        logger.warning(
            "%g minutes are over before there is time for steps; give more with "
            "--minutes, or smaller crops with --config.data.crop_size.",
            clock.seconds / 60,
        )
    for line in choices.lines:
        logger.info("%s", line)
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "minutes": clock.seconds / 60,
            "keys": sorted(choices.values),
            "lines": choices.lines,
            # For the report, which says what limits the result.
            "looked_at": {
                "pictures": len(data.sizes),
                "of": data.num_pictures,
                "class_pictures": dict(
                    zip(
                        data.class_names,
                        data.present.sum(axis=0).tolist(),
                        strict=True,
                    )
                ),
            },
        }
        write_json(path, record)
    choices.config.lock()
    return choices.config
