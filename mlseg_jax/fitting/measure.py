"""A few real steps and a few real evaluations, to know how long the others take."""

import dataclasses
import itertools
import time

import jax
import ml_collections

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.bad_examples import replace_bad
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.distributed.processes import gather
from mlseg_jax.distributed.sharding import (
    make_mesh,
    own_mesh,
    own_rows,
    put_batch,
    to_own_mesh,
)
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.settings.resolve import resolve
from mlseg_jax.tasks.evaluation import evaluate
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training import frozen_features
from mlseg_jax.training.state import initialise
from mlseg_jax.training.step import make_train_step, put_lengths

MAX_STEPS = 60
NUM_EVALUATED = 2
"""Batches of examples of an evaluation, if there is time, after two that are alone: the
first compiles.
"""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes:
      compiling: of the step and of the evaluation, before the first one ends.
      step: of one step, with the data it waits for.
      example: of the evaluation of one example.
      preparing: of what comes before the first step: features of a frozen backbone.
    """

    compiling: float
    step: float
    example: float
    preparing: float = 0.0


def measure(
    config: ml_collections.ConfigDict, num_classes: int, max_seconds: float
) -> Timing:
    """Trains for some steps and throws the result away, then evaluates examples.

    ``max_seconds`` are for steps, after the first one, which compiles, and again for
    examples; one of each is measured at least. All processes do as many.
    """
    config = resolve(config, num_classes)
    # Classes are counted where rare ones are drawn more often; not for this.
    config.data.rare_crop_rate = 0.0
    config.loss.update(class_weighting="none", logit_adjustment=0.0)
    mesh = make_mesh(config)
    begin = time.perf_counter()
    model = FunctionalModel.build(config, num_classes)
    state = initialise(config, num_classes, mesh)
    step, lengths = make_train_step(config, model, mesh), put_lengths(config, mesh)
    source = open_dataset(config.data, train=True)
    batches, preparing = _batches(config, model, mesh, state, source)
    try:
        # The first compiles, and in the second memory is new to the process.
        times = []
        while len(times) < 2 + MAX_STEPS:
            state, _ = step(state, put_batch(mesh, next(batches)), lengths)
            jax.block_until_ready(state)
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            if len(times) > 1 and gather(sum(times[1:]) > max_seconds)[0]:
                break
    finally:
        batches.close()
    usual = times[2:] or times[1:]
    first, example = _evaluation(config, model, state, max_seconds)
    compiling = sum(times) - sum(usual) + first
    return Timing(compiling, sum(usual) / len(usual), example, preparing)


def _batches(config, model: FunctionalModel, mesh, state, source):
    """Training batches as the loop has them, and seconds until it has the first."""
    if frozen_features.is_used(config):
        seconds, batch = frozen_features.sample(config, model, mesh, state, source)
        return (dict(batch) for _ in itertools.count()), seconds
    batches = train_batches(
        replace_bad(source, config.data.on_bad_example),
        seed=config.seed,
        batch_size=config.train.batch_size,
        augment=make_augment(config.data, None, source.info),
        rows=own_rows(mesh, config.train.batch_size),
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
    )
    return batches, 0.0


class _First:
    """The first examples of a source."""

    def __init__(self, source, count: int):
        self.info, self._source = source.info, source
        self._count = min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        return self._source[index]


def _evaluation(
    config, model: FunctionalModel, state, max_seconds: float
) -> tuple[float, float]:
    """Seconds of the first examples, which compile, and of one of the next; each as
    often as there are weights to evaluate.
    """
    source = open_dataset(config.data, train=False)
    task, mesh = find_task(config), own_mesh(config)
    engine = task.make_engine(config, model, {}, mesh)
    weights = evaluation_parameters(state, config.eval.weights)
    engine.parameters = to_own_mesh(next(iter(weights.values())), mesh)
    seconds = []
    for batches in (1, 1, NUM_EVALUATED):
        few = _First(source, config.eval.batch_size * batches)
        evaluation = task.make_evaluation(config, source.info, with_oracle=True)
        begin = time.perf_counter()
        evaluate(evaluation, engine, few, config)
        seconds.append(time.perf_counter() - begin)
        if gather(len(seconds) > 1 and seconds[-1] > max_seconds / NUM_EVALUATED)[0]:
            break
    return seconds[0], len(weights) * seconds[-1] / len(few)
