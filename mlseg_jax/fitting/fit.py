"""The front door: completes a configuration, then trains it within its minutes."""

import json
import logging
import math
import time
from collections.abc import Collection

import jax
import ml_collections
from etils import epath

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.processes import gather
from mlseg_jax.errors import UserError
from mlseg_jax.fitting.choices import FILE, Choices, put, value_of
from mlseg_jax.fitting.clock import FILE as TIME
from mlseg_jax.fitting.clock import Clock
from mlseg_jax.fitting.facts import (
    NUM_LOOKED_AT,
    Data,
    look_at_data,
    look_at_machine,
)
from mlseg_jax.fitting.measure import measure
from mlseg_jax.fitting.rules import choose, choose_precision, keep_back
from mlseg_jax.fitting.schedule import MAX_TEST, plan, set_schedule
from mlseg_jax.fitting.weights import ON_VITS
from mlseg_jax.models.build import check_config
from mlseg_jax.runs.checkpoint import write_json
from mlseg_jax.runs.sole import SoleTraining
from mlseg_jax.settings import saved
from mlseg_jax.training import loop
from mlseg_jax.training.forecast import machine_flops
from mlseg_jax.training.kept import validation_config

logger = logging.getLogger(__name__)

OF_SCENES = frozenset(
    f"data.{key}"
    for key in (
        *("crop_size", "base_size", "scale_range", "flip_rate", "photometric"),
        *("max_class_share", "cache"),
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
    if not 0 <= minutes < math.inf:
        raise UserError(f"--minutes is {minutes:g}; give a finite number above 0.")
    decoder = config.model.get("decoder", {}).get("name")
    sections = ("model.backbone", "model.decoder")
    is_given = any(key == "model" or key.startswith(sections) for key in given)
    is_known = decoder in ("upernet", *ON_VITS) or (decoder and is_given)
    if config.choose_settings and not is_known:
        raise UserError(
            "choose_settings=True is of configs/own_data.py, whose model and schedule "
            "can be chosen; start from it, or leave it out and give --minutes."
        )
    if (minutes or config.choose_settings) and config.selection.name == "given":
        raise UserError(
            "Neither --minutes nor configs/own_data.py fit trainings with "
            "selection.name=given, whose labels are looked up before; take another "
            "recipe and give train.steps."
        )
    if not config.choose_settings and not minutes:
        return loop.train(config, workdir)
    if config.choose_settings and not minutes:
        minutes = _minutes_before(workdir) or DEFAULT_MINUTES
        logger.info("--minutes is not given: %g minutes", minutes)
    with SoleTraining(workdir) as sole:
        sole.take()  # Before any file of a run that is under way is touched.
        return _fit_and_train(config, workdir, frozenset(given), minutes, already)


def _fit_and_train(
    config: ml_collections.ConfigDict,
    workdir: str,
    given: frozenset[str],
    minutes: float,
    already: float,
) -> dict[str, float]:
    path = epath.Path(workdir) / FILE
    goes_on = gather(_goes_on(config, path, given, minutes))[0]
    if not goes_on and jax.process_index() == 0:
        (path.parent / TIME).unlink(missing_ok=True)
    clock = Clock(workdir, minutes, already, stops=jax.process_count() == 1)
    if goes_on:
        config, chosen = _chosen_before(config, workdir, path, given)
        clock.write()
    else:
        config, chosen = _choose(config, path, given, clock)
    if jax.process_count() == 1:
        clock.chosen = frozenset(chosen)
    return loop.train(config, workdir, clock=clock)


def _goes_on(config, path: epath.Path, given: frozenset[str], minutes: float) -> bool:
    """Whether the run goes on with what was chosen for it: it has a checkpoint, or
    nobody has changed what it was chosen for.
    """
    checkpoints = path.parent / "checkpoints"
    if not path.exists() or not (path.parent / "config.json").exists():
        return False
    if checkpoints.exists() and any(x.name.isdigit() for x in checkpoints.iterdir()):
        return True
    before = json.loads(path.read_text())
    wanted = {"given": _values(config, given), "minutes": minutes}
    return {key: before.get(key) for key in wanted} == wanted and (
        before["looked_at"]["of"] == len(open_dataset(config.data, train=True))
    )


def _values(config, keys: frozenset[str]) -> dict[str, str]:
    return {key: repr(value_of(config, key)) for key in sorted(keys)}


def _minutes_before(workdir: str) -> float:
    path = epath.Path(workdir) / FILE
    return json.loads(path.read_text())["minutes"] if path.exists() else 0.0


def _chosen_before(config, workdir: str, path: epath.Path, given: frozenset[str]):
    """The configuration with what the run's first command has chosen, and the keys."""
    before = saved.get_config(workdir)
    record = json.loads(path.read_text())
    now, told = _values(config, given), record.get("given", {})
    # What was given and chosen a part of, stays so unless it is given anew.
    chosen = [key for key in record["keys"] if now.get(key) == told.get(key)]
    anew = [key for key in now if now[key] != told.get(key)]
    anew = {key: value_of(config, key) for key in anew}
    config = config.copy_and_resolve_references().unlock()
    for key in chosen:
        put(config, key, value_of(before, key))
    for key, value in anew.items():  # Perhaps in a section that was chosen.
        put(config, key, value)
    config.lock()
    logger.info("settings as they were chosen when %s began", workdir)
    return config, chosen


def _choose(config, path: epath.Path, given: frozenset[str], clock: Clock):
    """Looks, chooses, measures; says what was chosen and keeps it. As above."""
    told = _values(config, given)
    if config.data.name == "sign_scenes":
        given |= OF_SCENES
    choices = Choices(config, given)
    begin = time.perf_counter()
    data = look_at_data(config, LOOKING * clock.seconds)
    reading = (time.perf_counter() - begin) / len(data.sizes)
    if config.choose_settings:
        # All processes choose by what the first one found.
        machine = gather(look_at_machine(str(path.parent)))[0]
        choose_precision(choices, machine)
        speed = machine_flops(choices.config.model.dtype)
        data, *facts = gather((data, clock.left(), speed))[0]
        choose(choices, data, machine, *facts)
        if data.num_classes == 1:
            logger.warning(
                "There is one class, %r, and every pixel will be given it; name what "
                "is none of it, too: a class for the rest, such as background.",
                data.class_names[0],
            )
    check_config(choices.config)
    _fit_schedule(choices, data, clock, reading)
    for line in choices.lines:
        logger.info("%s", line)
    clock.write()  # First: choices without a reserve would be taken up.
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _record(choices, data, told, clock.seconds / 60))
    choices.config.lock()
    return choices.config, choices.values


def _fit_schedule(choices: Choices, data: Data, clock: Clock, reading: float) -> None:
    """Measures, and fits steps and evaluations into what is left; ``reading``: seconds
    a picture.
    """
    config = choices.config
    timing = measure(config, data.num_classes, MEASURING * clock.seconds)
    num_test = len(open_dataset(config.data, train=False))
    validation = config
    if config.data.validation_split:
        validation = validation_config(config)
    num_validation = len(open_dataset(validation.data, train=False))
    reads = sum(min(NUM_LOOKED_AT, n) for n in (data.num_pictures, num_test))
    chooses = config.choose_settings
    planned = plan(
        timing,
        left=clock.left(),
        total=clock.seconds,
        reading=reading * reads,
        num_validation=num_validation,
        num_test=num_test,
        keeps_best=config.eval.checkpoint == "best",
        evaluates=not chooses and config.train.eval_every > 0,
        cuts_validation="data.validation_split" in choices.values,
        cuts_test=chooses and not choices.is_given("data.eval_examples"),
    )
    planned, timing = gather((planned, timing))[0]
    clock.reserve = planned.reserve
    if planned.num_validation < num_validation:
        keep_back(choices, data, planned.num_validation)
    if planned.num_test < num_test:
        choices.set(data={"eval_examples": planned.num_test})
        choices.say(
            "scores",
            f"of the first {planned.num_test} of {num_test:,} pictures, for all take "
            f"too long; `evaluate --config.data.eval_examples=0` scores all",
        )
    trained_on = len(open_dataset(config.data, train=True))
    set_schedule(choices, planned, timing, trained_on)
    evaluation = planned.num_test * timing.example
    if evaluation > MAX_TEST * clock.seconds:
        fits = max(1, int(MAX_TEST * clock.seconds / timing.example))
        logger.warning(
            "The evaluation of %d pictures at the end takes about %.0f of the %g "
            "minutes; look at fewer with --config.data.eval_examples=%d.",
            *(planned.num_test, evaluation / 60, clock.seconds / 60, fits),
        )
    elif planned.steps == 1:
        logger.warning(
            "%g minutes are over before there is time for steps; give more with "
            "--minutes, or smaller crops with --config.data.crop_size.",
            clock.seconds / 60,
        )


def _record(
    choices: Choices, data: Data, told: dict[str, str], minutes: float
) -> dict[str, object]:
    """What `FILE` holds; ``looked_at`` for the report, which says what limits the
    result.
    """
    counts = data.present.sum(axis=0).tolist()
    return {
        "minutes": minutes,
        "given": told,
        "keys": sorted(choices.values),
        "lines": choices.lines,
        "looked_at": {
            "pictures": len(data.sizes),
            "of": data.num_pictures,
            "class_pictures": dict(zip(data.class_names, counts, strict=True)),
        },
    }
