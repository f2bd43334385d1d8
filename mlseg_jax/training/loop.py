"""The training loop: the only one."""

import contextlib
import logging

import jax
import ml_collections

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.bad_examples import Skips, drop_bad, replace_bad
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import read_some, train_batches
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
from mlseg_jax.pretrained.initialise import start_from
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.progress import MetricWriter, log_line, progress_bar
from mlseg_jax.runs.sole import SoleTraining
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.runs.workdir import claim_workdir, write_config
from mlseg_jax.settings.resolve import AUTO, resolve
from mlseg_jax.tasks.evaluation import evaluate
from mlseg_jax.tasks.given_selection import add_given_labels
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
from mlseg_jax.training.kept import kept_state, open_validation, scores_last_step
from mlseg_jax.training.reports import Reports
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step, put_lengths
from mlseg_jax.training.watch import ProfileWindow, Stopped, StopRequest
from mlseg_jax.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def train(
    config: ml_collections.ConfigDict, workdir: str, clock=None
) -> dict[str, float]:
    """Trains, or takes up where the work directory stands; ends with an evaluation.

    ``clock``: says with ``is_over()`` when there is time for the evaluation alone, with
    ``fitted(step, steps)`` how many steps there is time for.
    Returns the metrics that are also in ``metrics.json``.
    """
    check_config(config)
    preflight.check(config, workdir)
    watchdog = Watchdog(config.train.hang_minutes, workdir)
    with StopRequest() as stop, watchdog, SoleTraining(workdir) as sole:
        try:
            return _train(config, workdir, stop, clock, watchdog, sole)
        except Stopped:
            return {}


def _train(
    config, workdir: str, stop: StopRequest, clock, watchdog, sole: SoleTraining
) -> dict[str, float]:
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
        sole.take()
        claim_workdir(config, workdir, train_source.info)
        return long_tail.training_presence(
            config, train_source, workdir, count=long_tail.is_used(config)
        )

    presence = first_process_first("claim", claim)
    train_source = replace_bad(train_source, config.data.on_bad_example)
    train_source = add_given_labels(config, workdir, train_source, part="train")
    train_source = long_tail.resample(config, train_source, presence)
    eval_source = add_given_labels(config, workdir, eval_source, part="eval")
    validation = open_validation(config, eval_source, workdir)

    model = FunctionalModel.build(config, num_classes)
    with contextlib.ExitStack() as opened:
        watchdog.at(0, "restore")
        checkpoints = Checkpoints(workdir, keep_best=config.train.keep_best)
        opened.callback(checkpoints.close)
        if clock is None:  # Else steps fit the time there is.
            refuse_what_cannot_end(config, model, max(checkpoints.steps(), default=0))
        state = _start(config, num_classes, mesh, checkpoints)
        if frozen_features.is_used(config):

            def computing(done: int) -> None:
                watchdog.at(int(state["step"]), "read", done)
                stop.check()
                if clock is not None and clock.is_over():
                    raise UserError(frozen_features.TOO_LATE)

            counts = long_tail.class_examples(presence, num_classes)
            augment = make_augment(config.data, counts, train_source.info)
            train_source = frozen_features.kept_features(
                config, model, mesh, state, train_source, augment, workdir, computing
            )
        writer = MetricWriter(workdir, int(state["step"]), config)
        opened.callback(writer.close)
        reports = Reports(config, model, train_source, checkpoints, writer, watchdog)
        loop = _Loop(config, model, mesh, reports, validation, presence, workdir)
        loop.clock = clock
        profile = ProfileWindow(workdir, config.train)
        state = loop.run(state, skips, stop, profile)
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
            on_progress=_evaluating(watchdog, stop, step, "final"),
        )
        if not config.data.validation_split:
            checkpoints.score(step, scores)
            writer.forget_evaluation(step)
            writer.write(step, evaluation_scalars(metrics))
        writer.finish()
        return metrics


def _evaluating(watchdog: Watchdog, stop: StopRequest, step: int, name: str):
    """What an evaluation calls with how many examples are done, and at how many one of
    its passes ends.

    Raises (as it is called):
      Stopped: the run was asked to stop.
    """

    def evaluating(done: int, end: int) -> None:
        watchdog.at(step, "evaluate", done)
        stop.check_together(f"{name}/{step}/{end}", is_over=done == end)

    return evaluating


def _is_due(step: int, every: int) -> bool:
    """True every so many steps; 0 is never."""
    return every > 0 and step % every == 0


class _Loop:
    """Save, evaluate, fetch, step, log: in this order, so that a checkpoint and an
    evaluation see the same weights, a stop in the evaluation loses nothing, and a
    fetched batch is always used."""

    def __init__(self, config, model, mesh, reports, eval_source, presence, workdir):
        self.config, self.workdir = config, workdir
        self.model = model
        self.mesh = mesh
        self.reports, self.watchdog = reports, reports.watchdog
        self.checkpoints, self.writer = reports.checkpoints, reports.writer
        self.source = reports.source
        self.eval_source = eval_source
        self.task = find_task(config)
        # One engine for all evaluations: its compiled functions stay.
        self.engine = self.task.make_engine(config, model, {}, own_mesh(config))
        self.engine.apart = True  # As the last evaluation, whose oracle needs it.
        priors = long_tail.loss_priors(config, presence, model.num_classes)
        self.step_function = make_train_step(config, model, mesh, priors)
        self.lengths = put_lengths(config, mesh)
        self.class_examples = long_tail.class_examples(presence, model.num_classes)
        self.stopped_early = False
        self.clock = None
        self.planned = config.train.copy_and_resolve_references()

    def run(self, state, skips, stop, profile):
        settings, source, reports = self.config.train, self.source, self.reports
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
        timed = reports.watch.timed(batches)
        bar = progress_bar(settings.steps, first, "training")

        metrics = None
        try:
            while step < settings.steps:
                if self._saves(step, first):
                    reports.check_finite()  # Waits for steps, so it is not paused.
                with reports.watch.paused():
                    self._save_and_evaluate(step, first, state, stop)
                if has_converged(self.checkpoints.scores(step), settings.patience):
                    gainless = float(settings.patience + 1)
                    log_line(step, {"evaluations without a gain": gainless})
                    break
                if self._is_over():
                    left = float(settings.steps - step)
                    log_line(step, {"steps without time": left})
                    break
                done = settings.stop_after and step - first >= settings.stop_after
                if done or stop.is_due(step):
                    self.stopped_early = True
                    break
                profile.at(step, metrics)
                self.watchdog.at(step + 1, "read")
                batch = put_batch(self.mesh, next(timed))
                self.watchdog.at(step + 1, "step")
                # What is copied to or from a device by mistake stops the run.
                with reports.watch.devices(), jax.transfer_guard("disallow"):
                    state, metrics = self.step_function(state, batch, self.lengths)
                step += 1
                bar.update()
                reports.add(step, metrics)
                if step == first + 1:
                    reports.say_first_step(metrics)
                if self.clock is not None:
                    reports.keep_up()
                    self._refit(step, bar)
                if _is_due(step, settings.log_every) or step == settings.steps:
                    reports.log(step, bar)
            reports.check_finite()
            self._save(step, state)
            # Without time for it, there is no other checkpoint to compare this with.
            is_only = self._is_over() and not self.checkpoints.scores(step)
            if scores_last_step(self.config) and not (self.stopped_early or is_only):
                self._evaluate(step, state, stop)
        finally:
            profile.close(metrics)
            bar.close()
            batches.close()
        return state

    def _is_over(self) -> bool:
        return self.clock is not None and self.clock.is_over()

    def _refit(self, step: int, bar) -> None:
        """From here on the schedule is that of the steps that there is time for."""
        settings, planned = self.config.train, self.planned
        steps = self.clock.fitted(step, settings.steps)
        if steps == settings.steps:
            return
        for name in ("eval_every", "checkpoint_every"):
            if planned[name] and f"train.{name}" in self.clock.chosen:
                settings[name] = max(1, planned[name] * steps // planned.steps)
        settings.steps = bar.total = steps
        log_line(step, {"steps that there is time for": float(steps)})
        self.lengths = put_lengths(self.config, self.mesh)
        write_config(self.config, self.workdir)

    def _augment(self, source):
        if frozen_features.is_used(self.config):
            return source.augment
        return make_augment(self.config.data, self.class_examples, source.info)

    def _save(self, step: int, state) -> None:
        self.watchdog.at(step, "save")
        self.checkpoints.save(step, state)

    def _save_and_evaluate(self, step: int, first: int, state, stop) -> None:
        """Saves where it is due, then evaluates, also what a stop has prevented."""
        evaluates = self._evaluates(step)
        if self._saves(step, first):
            self._save(step, state)
        if evaluates:
            self._evaluate(step, state, stop)

    def _evaluates(self, step: int) -> bool:
        is_due = _is_due(step, self.config.train.eval_every) and step > 0
        return is_due and not self.checkpoints.is_scored(step)

    def _saves(self, step: int, first: int) -> bool:
        is_due = _is_due(step, self.config.train.checkpoint_every)
        return step > first and (is_due or self._evaluates(step))

    def _evaluate(self, step: int, state, stop) -> None:
        if self.checkpoints.is_scored(step):
            return

        evaluating = _evaluating(self.watchdog, stop, step, "evaluation")
        before, total = 0, len(self.eval_source)
        results = {}
        weights = evaluation_parameters(state, self.config.eval.weights)
        for name, parameters in weights.items():
            self.watchdog.at(step, "evaluate", before)
            # All processes together, so nobody may stop alone before it.
            self.engine.parameters = to_own_mesh(parameters, self.engine.mesh)
            evaluation = self.task.make_evaluation(
                self.config, self.eval_source.info, class_examples=self.class_examples
            )
            results[name] = evaluate(
                evaluation,
                self.engine,
                self.eval_source,
                self.config,
                on_progress=lambda done, _, b=before: evaluating(b + done, b + total),
            )
            before += total
        self.engine.parameters = {}  # the step is about to donate them
        metrics, scores = better_weights(self.task, results)
        scalars = evaluation_scalars(metrics)
        shown = (self.task.best_metric, "mAP")
        log_line(step, {k: scalars[k] for k in scalars if k.endswith(shown)})
        self.writer.write(step, scalars)
        self.checkpoints.score(step, scores)


def _start(config, num_classes, mesh, checkpoints: Checkpoints):
    """A new state, or the newest one of the work directory."""
    if not checkpoints.steps():
        state = initialise(config, num_classes, mesh)
        return start_from(config, num_classes, state)
    step, state = checkpoints.restore_newest(abstract_state(config, num_classes, mesh))
    logger.info("resuming from checkpoint %d of %s", step, checkpoints.path)
    return state
