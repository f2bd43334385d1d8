"""The frame of every evaluation: one pass over a split, whatever is measured on it."""

import abc
import itertools
import time
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from input_pipeline.datasets.bad_examples import Skips, drop_bad
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.pipeline import evaluation_examples
from mlseg_jax.distributed.processes import gather
from mlseg_jax.errors import UserError
from mlseg_jax.metrics.label_recall import LabelRecall
from mlseg_jax.runs.checkpoint import write_json


class AbstractEvaluation(abc.ABC):
    """Everything one evaluation accumulates; made anew for each.

    Attributes:
      info: the data set's classes.
      num_examples: how many examples were added.
      states: names of attributes that ``merge`` with those of other processes, and
        that ``to_host`` gives as arrays of the host.
      counts: names of attributes that are added to those of other processes.
      per_clip: whether neighbouring examples are frames of a video that belong
        together.
    """

    info: DatasetInfo
    num_examples: int
    states: tuple[str, ...]
    counts: tuple[str, ...]
    per_clip: bool = False

    @abc.abstractmethod
    def groups(self, engine, examples: Iterator[dict]) -> Iterator[list[dict]]:
        """The examples in lists that `add` takes at a time."""

    @abc.abstractmethod
    def add(self, engine, examples: list[dict]) -> None:
        """Predicts for a group of examples, and counts.

        Raises:
          DataError: something that is read here is bad; then nothing was counted.
        """

    @abc.abstractmethod
    def compute(self) -> dict[str, int | float]:
        """The flat metrics of ``metrics.json``."""

    @abc.abstractmethod
    def details(self, model: nnx.Module) -> dict:
        """What ``evaluation.json`` holds: values by class and by rank."""

    @abc.abstractmethod
    def save_pictures(self, path: epath.Path) -> None:
        """Writes what the report shows of single pictures, where there are any."""

    def add_other_processes(self) -> None:
        """Adds up what all processes have counted; pictures stay this one's."""
        own = {name: getattr(self, name).to_host() for name in self.states}
        own |= {name: getattr(self, name) for name in self.counts}
        first, *others = gather(own)
        for other in others:
            first |= {name: first[name].merge(other[name]) for name in self.states}
            first |= {name: first[name] + other[name] for name in self.counts}
        for name, value in first.items():
            setattr(self, name, value)


def evaluate(
    evaluation: AbstractEvaluation,
    engine,
    source,
    config: ml_collections.ConfigDict,
    *,
    on_progress=lambda done, total: None,
) -> dict[str, int | float]:
    """One pass over ``source``; the metrics say also how long it took.

    Every process takes its share of the examples; all get the metrics of all.

    Raises:
      UserError: no example could be read.
    """
    skips = Skips()
    examples = evaluation_examples(
        drop_bad(source, config.data.on_bad_example, skips),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        side_by_side=evaluation.per_clip,
    )
    begin = time.perf_counter()
    for group in evaluation.groups(engine, examples):
        try:
            evaluation.add(engine, group)
        except DataError as error:  # of frames, which are read when their turn comes
            if config.data.on_bad_example == "fail":
                raise
            skips.add(error)
        done = evaluation.num_examples * jax.process_count()
        on_progress(min(done, len(source)), len(source))
    on_progress(len(source), len(source))  # Shares differ by one example.
    evaluation.add_other_processes()
    seconds = time.perf_counter() - begin
    skips.log("evaluation")
    if not evaluation.num_examples:
        raise UserError("No example of the evaluation split can be read; run doctor.")
    metrics = evaluation.compute()
    metrics["seconds"] = seconds
    metrics["images_per_second"] = evaluation.num_examples / seconds
    return metrics


def write_evaluation(
    workdir: str,
    evaluation: AbstractEvaluation,
    metrics: dict,
    model: nnx.Module,
) -> None:
    """``metrics.json``, and beside it what the report is made of.

    All of them replace those of an earlier evaluation together, and not before all are
    written.
    """
    path = epath.Path(workdir)
    names = "evaluation.json", "evaluation_examples.npz", "metrics.json"
    details, pictures, scores = (path / f"{name}.new" for name in names)
    write_json(details, evaluation.details(model))
    evaluation.save_pictures(pictures)
    write_json(scores, metrics)
    for name, new in zip(names, (details, pictures, scores), strict=True):
        if new.exists():
            new.replace(path / name)


def groups_of(examples: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Lists of ``size`` neighbouring examples; the last may be shorter."""
    while group := list(itertools.islice(examples, size)):
        yield group


def groups_by_shape(examples: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Runs of neighbouring examples with pictures of one size, at most ``size``
    long.
    """
    for _, run in itertools.groupby(examples, key=lambda e: e["image"].shape):
        yield from groups_of(run, size)


def groups_by_clip(examples: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """As `groups_by_shape`, of frames of one video each: ``street/0001`` is of the
    video ``street``.

    Raises:
      UserError: an example is no frame of a video.
    """

    def video_and_shape(example: dict) -> tuple:
        video = example["name"].rpartition("/")[0]
        if not video:
            raise UserError(
                f"Example {example['name']} is no frame of a video, so it has no clip; "
                f"set eval.selection_scope to per_image."
            )
        return video, example["image"].shape

    for _, run in itertools.groupby(examples, key=video_and_shape):
        yield from groups_of(run, size)


def label_details(
    info: DatasetInfo,
    k: int,
    recall: LabelRecall,
    **columns: np.ndarray | jax.Array | list,
) -> dict:
    """What evaluations of labels have to say: a row a class out of ``columns``, each
    of C values, and the recall by rank.
    """
    curve = recall.curve()
    by_class = {"name": info.class_names} | {
        key: np.asarray(column).tolist() for key, column in columns.items()
    }
    return {
        "num_classes": info.num_classes,
        "k": k,
        "classes": [
            dict(zip(by_class, row, strict=True))
            for row in zip(*by_class.values(), strict=True)
        ],
        "recall_at_k": {
            "k": np.asarray(curve["k"]).tolist(),
            "pixel": np.asarray(curve["pixel_recall"]).tolist(),
            "image": np.asarray(curve["image_recall"]).tolist(),
        },
        "ranked": True,
        "classes_per_image": np.asarray(recall.classes_per_image).tolist(),
        "inverse_temperature": None,
        "inverse_temperature_label": "",
    }
