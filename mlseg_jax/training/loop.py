"""The training loop: the only one."""

import contextlib
import logging

import jax
import ml_collections
import numpy as np

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.bad_examples import Skips, drop_bad, replace_bad
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import names_of_batch, read_some, train_batches
from mlseg_jax.distributed.processes import first_process_first
from mlseg_jax.distributed.sharding import (
    check_batch_size,
    make_mesh,
    own_mesh,
    own_rows,
    put_batch,
    to_own_mesh,
)
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, check_config
from mlseg_jax.models.flops import peak_flops, training_flops
from mlseg_jax.pretrained.initialise import start_from
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.progress import MetricWriter, Stopwatch, log_line, progress_bar
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.settings.resolve import AUTO, resolve
from mlseg_jax.tasks.evaluation import evaluate
from mlseg_jax.tasks.given_selection import add_given_labels
from mlseg_jax.tasks.regions import bad_rows
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training import frozen_features, long_tail, preflight
from mlseg_jax.training.checks import check_labels
from mlseg_jax.training.data_remarks import say_oddities
from mlseg_jax.training.early_stopping import has_converged
from mlseg_jax.training.final_evaluation import (
    better_weights,
    evaluate_and_write,
    evaluation_scalars,
)
from mlseg_jax.training.forecast import refuse_what_cannot_end
from mlseg_jax.training.kept import kept_state, open_validation
from mlseg_jax.training.schedule import make_schedule
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step
from mlseg_jax.training.watch import (
    ProfileWindow,
    Stopped,
    StopRequest,
    Watchdog,
    peak_memory,
    seconds_since_start,
)

logger = logging.getLogger(__name__)

MAX_INPUT_WAIT = 0.05
"""Share of the time waiting for data above which the run says so."""


def train(
    config: ml_collections.ConfigDict, workdir: str, clock=None
) -> dict[str, float]:
    """Trains, or takes up where the work directory stands; ends with an evaluation.

    ``clock``: says with ``is_over()`` when there is time for the evaluation alone.
    Returns the metrics that are also in ``metrics.json``.
    """
    check_config(config)
    preflight.check(config, workdir)
    with StopRequest() as stop:
        try:
            return _train(config, workdir, stop, clock)
        except Stopped:
            return {}


def _train(config, workdir: str, stop: StopRequest, clock) -> dict[str, float]:
    train_source = open_dataset(config.data, train=True)
    eval_source = open_dataset(config.data, train=False)
    num_classes = train_source.info.num_classes
    is_auto = config.loss.multilabel_weight == AUTO
    config = resolve(config, num_classes)
    if is_auto:
        weight = config.loss.multilabel_weight
        logger.info("loss.multilabel_weight: %g for %d classes", weight, num_classes)
    check_labels(config, train_source.info, eval_source.info)
    skips = Skips()
    for source in (train_source, eval_source):
        source = drop_bad(source, config.data.on_bad_example, skips)
        read_some(source, config.data.num_threads)
    say_oddities(config, train_source)
    mesh = make_mesh(config)
    check_batch_size(mesh, config.train.batch_size, config.train.accumulate)

    def claim():
        claim_workdir(config, workdir, train_source.info)
        return long_tail.training_presence(
            config, train_source, workdir, count=long_tail.is_used(config)
        )

    presence = first_process_first("claim", claim)
    train_source = replace_bad(train_source, config.data.on_bad_example)
    train_source = add_given_labels(config, workdir, train_source, train=True)
    train_source = long_tail.resample(config, train_source, presence)
    eval_source = add_given_labels(config, workdir, eval_source, train=False)
    validation = open_validation(config, eval_source)

    model = FunctionalModel.build(config, num_classes)
    with contextlib.ExitStack() as opened:
        checkpoints = Checkpoints(workdir, keep_best=config.train.keep_best)
        opened.callback(checkpoints.close)
        state = _start(config, num_classes, mesh, checkpoints)
        refuse_what_cannot_end(config, model, int(state["step"]))
        if frozen_features.is_used(config):
            augment = make_augment(config.data, None, train_source.info)
            where = train_source, augment, workdir
            train_source = frozen_features.kept_features(
                config, model, mesh, state, *where, stop.check
            )
        writer = MetricWriter(workdir, int(state["step"]), config)
        opened.callback(writer.close)
        loop = _Loop(config, model, mesh, checkpoints, writer, validation, presence)
        if clock is not None:
            loop.is_over = clock.is_over
        profile = ProfileWindow(
            workdir, config.train.profile_start, config.train.profile_steps
        )
        with Watchdog(config.train.hang_minutes) as watchdog:
            state = loop.run(state, train_source, skips, stop, watchdog, profile)
        checkpoints.wait()
        skips.log("training")
        if loop.stopped_early:
            return {}
        state = kept_state(config, num_classes, mesh, checkpoints, state)
        step = int(state["step"])
        metrics, scores = evaluate_and_write(
            config,
            workdir,
            model,
            evaluation_parameters(state, config.eval.weights),
            step,
            eval_source,
            presence,
            on_progress=stop.check,
        )
        if not config.data.validation_split:
            checkpoints.score(step, scores)
            writer.forget_evaluation(step)
            writer.write(step, evaluation_scalars(metrics))
        return metrics


def _is_due(step: int, every: int) -> bool:
    """True every so many steps; 0 is never."""
    return every > 0 and step % every == 0


class _Loop:
    """Save, evaluate, fetch, step, log: in this order, so that a checkpoint and an
    evaluation see the same weights, a stop in the evaluation loses nothing, and a
    fetched batch is always used."""

    def __init__(self, config, model, mesh, checkpoints, writer, eval_source, presence):
        self.config = config
        self.model = model
        self.mesh = mesh
        self.checkpoints = checkpoints
        self.writer = writer
        self.eval_source = eval_source
        self.task = find_task(config)
        # One engine for all evaluations: its compiled functions stay.
        self.engine = self.task.make_engine(config, model, {}, own_mesh(config))
        self.watch = Stopwatch()
        self.flops_per_image = training_flops(config, model)
        self.schedule = make_schedule(config)
        priors = long_tail.loss_priors(config, presence, model.num_classes)
        self.step_function = make_train_step(config, model, mesh, priors)
        self.class_examples = long_tail.class_examples(presence, model.num_classes)
        self.pending = []
        self.warned = False
        self.stopped_early = False
        self.is_over = lambda: False

    def run(self, state, source, skips, stop, watchdog, profile):
        settings, self.source = self.config.train, source
        first = step = int(state["step"])
        batches = train_batches(
            source,
            seed=self.config.seed,
            batch_size=settings.batch_size,
            start_example=first * settings.batch_size,
            augment=self._augment(source),
            rows=own_rows(self.mesh, settings.batch_size),
            num_threads=self.config.data.num_threads,
            num_workers=self.config.data.num_workers,
            skips=skips,
        )
        timed = self.watch.timed(batches)
        bar = progress_bar(settings.steps, first, "training")

        def alive(*_):
            watchdog.beat()
            stop.check()

        metrics = None
        try:
            while step < settings.steps:
                with self.watch.paused():
                    self._save_and_evaluate(step, first, state, alive)
                if has_converged(self.checkpoints.scores(step), settings.patience):
                    log_line(step, {"evaluations without a gain": settings.patience})
                    break
                if self.is_over():
                    log_line(step, {"steps without time": settings.steps - step})
                    break
                done = settings.stop_after and step - first >= settings.stop_after
                if done or stop.is_due(step):
                    self.stopped_early = True
                    break
                profile.at(step, metrics)
                batch = put_batch(self.mesh, next(timed))
                # What is copied to or from a device by mistake stops the run.
                with jax.transfer_guard("disallow"):
                    state, metrics = self.step_function(state, batch)
                step += 1
                watchdog.beat()
                bar.update()
                self.pending.append((step, metrics))
                if step == first + 1:
                    self._say_first_step(metrics)
                if _is_due(step, settings.log_every) or step == settings.steps:
                    self._log(step, bar)
            self._check_finite()
            self.checkpoints.save(step, state)
            if self.config.data.validation_split and not self.stopped_early:
                self._evaluate(step, state, alive)
        finally:
            profile.close(metrics)
            bar.close()
            batches.close()
        return state

    def _augment(self, source):
        if frozen_features.is_used(self.config):
            return source.augment
        return make_augment(self.config.data, self.class_examples, source.info)

    def _say_first_step(self, metrics) -> None:
        """Compiling is over; from here on, time is counted."""
        jax.block_until_ready(metrics)
        logger.info("first step after %.1f s of this process", seconds_since_start())
        self.watch.read()

    def _save_and_evaluate(self, step: int, first: int, state, alive) -> None:
        """Saves where it is due, then evaluates, also what a stop has prevented."""
        settings = self.config.train
        evaluates = _is_due(step, settings.eval_every) and step > 0
        evaluates &= not self.checkpoints.is_scored(step)
        if step > first and (evaluates or _is_due(step, settings.checkpoint_every)):
            self._check_finite()
            self.checkpoints.save(step, state)
        if evaluates:
            self._evaluate(step, state, alive)

    def _evaluate(self, step: int, state, alive) -> None:
        if self.checkpoints.is_scored(step):
            return
        results = {}
        weights = evaluation_parameters(state, self.config.eval.weights)
        for name, parameters in weights.items():
            self.engine.parameters = to_own_mesh(parameters, self.engine.mesh)
            evaluation = self.task.make_evaluation(
                self.config, self.eval_source.info, class_examples=self.class_examples
            )
            results[name] = evaluate(
                evaluation,
                self.engine,
                self.eval_source,
                self.config,
                on_progress=alive,
            )
        self.engine.parameters = {}  # the step is about to donate them
        metrics, scores = better_weights(self.task, results)
        scalars = evaluation_scalars(metrics)
        shown = (self.task.best_metric, "mAP")
        log_line(step, {k: scalars[k] for k in scalars if k.endswith(shown)})
        self.writer.write(step, scalars)
        self.checkpoints.score(step, scores)

    def _check_finite(self) -> list[dict[str, np.ndarray]]:
        """Fetches what the last steps measured; stops where it is not a number."""
        steps = [step for step, _ in self.pending]
        fetched = jax.device_get([metrics for _, metrics in self.pending])
        self.pending.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            self._check_costs(step, metrics)
            bad = [key for key, value in metrics.items() if not np.isfinite(value)]
            if bad:
                saved = self.checkpoints.steps()
                last = f"checkpoint {saved[-1]}" if saved else "no checkpoint yet"
                raise UserError(
                    f"Training diverged at step {step}: {', '.join(sorted(bad))} is "
                    f"not finite; the last good state is {last}, so lower "
                    f"optimizer.learning_rate or set optimizer.clip_norm and start "
                    f"from there."
                )
        return fetched

    def _check_costs(self, step: int, metrics) -> None:
        """Names the picture whose segments cannot be matched with queries."""
        settings = self.config.train
        rows = bad_rows(metrics, settings.batch_size, settings.accumulate)
        if rows:
            where = self.config.seed, settings.batch_size, step - 1, rows
            names = ", ".join(names_of_batch(self.source, *where))
            raise UserError(
                f"Training diverged at step {step}: costs of matching are not finite "
                f"in {'one of ' if len(rows) > 1 else ''}{names}; look at the picture "
                "and its masks, or lower optimizer.learning_rate."
            )

    def _log(self, step: int, bar) -> None:
        fetched = self._check_finite()
        if not fetched:
            return
        scalars = {
            key: float(np.mean([metrics[key] for metrics in fetched]))
            for key in fetched[0]
        }
        scalars["train/learning_rate"] = float(self.schedule(step - 1))
        scalars["train/memory_peak_gib"] = peak_memory()
        scalars |= self._speed(step)
        bar.set_postfix(
            loss=f"{scalars['loss/total']:.3f}",
            recall=f"{scalars['train/image_recall_at_k']:.2f}",
            refresh=False,
        )
        log_line(step, scalars)
        self.writer.write(step, scalars)

    def _speed(self, step: int) -> dict[str, float]:
        """How fast the steps since the last reading were; nothing after the first."""
        steps, seconds, waiting, goodput = self.watch.read()
        if steps == 0:
            return {}
        if waiting > MAX_INPUT_WAIT and not self.warned:
            self.warned = True
            logger.warning(
                "The devices wait for data %.0f %% of the time: raise "
                "data.num_threads or data.num_workers.",
                100 * waiting,
            )
        images = steps * self.config.train.batch_size / seconds
        speed = {
            "train/step_seconds": seconds / steps,
            "train/images_per_second": images,
            "train/input_wait": waiting,
            "train/goodput": goodput,
            "train/hours_left": (self.config.train.steps - step)
            * (seconds / steps / 3600),
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            achieved = self.flops_per_image * images
            speed["train/mfu"] = achieved / (peak * jax.device_count())
        return speed


def _start(config, num_classes, mesh, checkpoints: Checkpoints):
    """A new state, or the newest one of the work directory."""
    if not checkpoints.steps():
        state = initialise(config, num_classes, mesh)
        return start_from(config, num_classes, state)
    step, state = checkpoints.restore_newest(abstract_state(config, num_classes, mesh))
    logger.info("resuming from checkpoint %d of %s", step, checkpoints.path)
    return state
