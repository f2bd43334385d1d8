"""The scores of a trained run, perhaps with another selection."""

import logging

import ml_collections
from etils import epath

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.coco_files import SegmentFiles
from mlseg_jax.prediction.video_files import VIDEO_FILES
from mlseg_jax.runs.workdir import load_info, load_parameters
from mlseg_jax.tasks.given_selection import add_given_labels
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training import long_tail
from mlseg_jax.training.final_evaluation import evaluate_and_write
from mlseg_jax.training.watchdog import Watchdog

MAX_COUNTED = 10_000
"""Training examples that are read, once, to know which classes are rare."""


def evaluate_run(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str = "kept",
    output: str | None = None,
) -> dict[str, float]:
    """Evaluates on the split ``data.eval_split`` and writes ``metrics.json``.

    Args:
      config: of the run, perhaps with another selection.
      workdir: of the run.
      checkpoint: kept, latest, best or a step; see `runs.workdir.load_parameters`.
      output: folder for the scores; None is ``workdir``.

    Raises:
      UserError: the data has other classes.
    """
    output = output or workdir
    with Watchdog(config.train.hang_minutes, output) as watchdog:
        return _evaluate(config, workdir, checkpoint, output, watchdog)


def _evaluate(
    config, workdir: str, checkpoint: str, output: str, watchdog: Watchdog
) -> dict[str, float]:
    model, parameters, step = load_parameters(workdir, config, checkpoint)
    source = open_dataset(config.data, train=False)
    if source.info.class_names != load_info(workdir).class_names:
        raise UserError(
            f"The data set {config.data.name!r} has other classes than {workdir} was "
            f"trained on; evaluate on data with the same classes."
        )
    source = add_given_labels(config, workdir, source, part="eval")
    epath.Path(output).mkdir(parents=True, exist_ok=True)
    files = on_segments = None
    if config.task in VIDEO_FILES:
        files = VIDEO_FILES[config.task](f"{output}/predictions", source.info)
        on_segments = files.add
    elif find_task(config).find_segments is not None:
        # For other tools' evaluators.
        files = SegmentFiles(config.task, f"{output}/predictions", source.info)

        def on_segments(example: dict, found) -> None:
            name, size = example["name"], example["image"].shape[:2]
            # What was prepared has forgotten the ending of its files.
            file_name = example.get("file_name", name)
            files.add(file_name, name, size, found, example.get("image_id"))

    # Only the mean IoU is told apart by it.
    is_semantic = config.task == "semantic"
    presence = _training_presence(config, workdir) if is_semantic else None
    metrics, _ = evaluate_and_write(
        config,
        output,
        model,
        {checkpoint: parameters},
        step,
        source,
        presence,
        on_progress=lambda done, _: watchdog.at(step, "evaluate", done),
        on_segments=on_segments,
    )
    if files is not None:
        files.close()
    return metrics


def _training_presence(config, workdir: str):
    """Which classes are rare in training; None where its data is not at hand."""
    try:
        source = open_dataset(config.data, train=True)
    except UserError as error:
        logging.getLogger(__name__).warning("no mIoU of rare classes: %s", error)
        return None
    few = len(source) <= MAX_COUNTED
    return long_tail.training_presence(config, source, workdir, count=few)
