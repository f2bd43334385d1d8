"""Evaluations of the weights that a run has, and which of them are the better ones."""

from collections.abc import Callable

import jax

from input_pipeline.preparation.class_statistics import Presence
from mlseg_jax.distributed.sharding import own_mesh, to_own_mesh
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.runs.checkpoint import best_of, without_nan
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.tasks.evaluation import evaluate, write_evaluation
from mlseg_jax.tasks.table import Task, find_task
from mlseg_jax.training import long_tail


def evaluate_and_write(
    config,
    workdir: str,
    model: FunctionalModel,
    weights: dict[str, Parameters],
    step: int,
    source,
    presence: Presence | None = None,
    on_progress=lambda done, end: None,
    on_segments: Callable | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """An evaluation with the oracle of each of ``weights``; writes ``metrics.json`` and
    what the report needs of the better one. ``presence``: classes of the training
    examples, where they are known. ``on_segments`` is called with each example and what
    was found in it, where a task finds segments (of videos also with None, where what
    it got of one is to be forgotten), ``on_progress`` with how many examples are done,
    over all weights, and at how many the pass with these ends. Returns the metrics, and
    how good each is.
    """
    task, mesh = find_task(config), own_mesh(config)
    engine = task.make_engine(config, model, {}, mesh)
    weights = {name: to_own_mesh(each, mesh) for name, each in weights.items()}
    evaluations, results, before = {}, {}, 0
    for name, engine.parameters in weights.items():
        end = before + len(source)
        on_progress(before, end)
        with progress_bar(len(source), 0, "evaluating") as bar:

            def show(done: int, _, bar=bar, before=before, end=end) -> None:
                bar.update(done - bar.n)
                on_progress(before + done, end)

            evaluations[name] = task.make_evaluation(
                config,
                source.info,
                with_oracle=True,
                class_examples=long_tail.class_examples(presence, model.num_classes),
            )
            if on_segments is not None:
                evaluations[name].on_segments = on_segments
            results[name] = evaluate(
                evaluations[name], engine, source, config, on_progress=show
            )
        before = end
    metrics, scores = better_weights(task, results)
    metrics["step"] = step
    metrics["parameters"] = model.num_parameters
    better = best_of(scores)
    if jax.process_index() == 0:
        bound = model.bind(weights[better])
        write_evaluation(workdir, evaluations[better], metrics, bound)
    return metrics, scores


def better_weights(
    task: Task, results: dict[str, dict[str, float]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Of the metrics by weights the better ones, and how good each is.

    Where there are two, the better one's metrics also say how good both are.
    """
    scores = {name: metrics[task.best_metric] for name, metrics in results.items()}
    metrics = dict(results[best_of(scores)])
    if len(scores) > 1:
        for name, score in scores.items():
            metrics[f"{task.best_metric}_{name}"] = score
    return metrics, scores


def evaluation_scalars(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics as curves of the training, without those that are undefined."""
    finite = without_nan(metrics).items()
    return {f"eval/{key}": value for key, value in finite if value is not None}
