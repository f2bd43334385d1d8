"""A work directory: whose run it is, and the trained model out of it."""

import dataclasses
import json
from collections.abc import Collection

import jax
import ml_collections
from etils import epath

from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.runs.checkpoint import SCORES, Checkpoints, write_json
from mlseg_jax.runs.weights import abstract_weights, evaluation_parameters
from mlseg_jax.settings import saved
from mlseg_jax.settings.resolve import resolve

CARD = "model_card.json"
"""In work directories that `convert` wrote: where the weights are from."""

FREE_TO_CHANGE = (
    "eval.batch_size",
    "eval.checkpoint",
    "eval.font",
    "eval.oracle_k",
    "eval.oracle_labels",
    "mesh",
    "train.log_every",
    "train.logger",
    "train.stop_after",
    "train.keep_best",
    "train.hang_minutes",
    "train.max_hours",
    "train.profile_start",
    "train.profile_steps",
    "data.path",
    "data.cache",
    "data.num_threads",
    "data.num_workers",
    "data.on_bad_example",
)
"""Keys that may differ when a run is taken up again: they change no weight, and no
score that weights are compared by."""

FREE_WITHOUT_EARLY_STOPPING = ("train.eval_every", "train.patience")
"""As those, unless evaluations without a better score are counted."""

FREE_WITHOUT_COMPARISONS = ("eval",)
"""As those, unless scores of before are compared with those to come: to stop early, or
to end with the best checkpoint."""


def load_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration that the work directory was trained with."""
    try:
        return saved.get_config(workdir)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_info(workdir: str) -> DatasetInfo:
    """The classes that the model was trained on."""
    load_config(workdir)  # Says it where this is no work directory.
    path = epath.Path(workdir) / "dataset.json"
    try:
        facts = json.loads(path.read_text())
        raw_values = facts.get("raw_values")  # Runs of before do not have them.
        return DatasetInfo(
            facts["name"],
            tuple(facts["class_names"]),
            tuple(facts["is_thing"]),
            raw_values and tuple(raw_values),
        )
    except (FileNotFoundError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path}, the names of the run's classes, is missing or damaged "
            f"({type(error).__name__}); copy it again from where the run was trained."
        ) from error


def load_parameters(
    workdir: str, config: ml_collections.ConfigDict, checkpoint: str = "kept"
) -> tuple[FunctionalModel, Parameters, int]:
    """The model, its (averaged) weights and the step they are of.

    ``checkpoint`` is ``latest``, ``best`` or a step; ``kept`` is what
    ``eval.checkpoint`` says.

    Raises:
      UserError: ``config`` is of another model, or selects otherwise than by
        ``selection.eval_name``.
    """
    num_classes = load_info(workdir).num_classes
    # What the weights look like is the training's business, not an override's.
    trained = load_config(workdir)
    _check_same_model(workdir, trained, config)
    model = FunctionalModel.build(trained, num_classes)
    wanted = abstract_weights(trained, model, make_mesh(config))
    checkpoints = Checkpoints(workdir)
    try:
        if checkpoint == "kept":
            checkpoint = config.eval.checkpoint
        step = checkpoints.find(checkpoint)
        weights = evaluation_parameters(wanted, config.eval.weights)
        better = checkpoints.better_weights(step)
        average = (better if better in weights else next(iter(weights))) == "average"
        parts = ("ema",) if average else ("params", "stats")
        restored = checkpoints.restore_part(
            step, {part: wanted[part] for part in parts}
        )
    finally:
        checkpoints.close()
    parameters = {path: x for part in parts for path, x in restored[part].items()}
    return model, parameters, step


def _check_same_model(workdir: str, trained, config) -> None:
    for part in sorted({*trained.model, *config.model}):
        ours, theirs = trained.model.get(part), config.model.get(part)
        sections = [isinstance(x, ml_collections.ConfigDict) for x in (ours, theirs)]
        if all(sections) and ours.get("name") == theirs.get("name"):
            continue
        if any(sections):
            raise UserError(
                f"The configuration is of another model than the run {workdir}: "
                f"model.{part} differs. A run knows its own; leave --config out."
            )
    if config.selection.name != trained.selection.name:
        raise UserError(
            f"selection.name is how a run was trained, {trained.selection.name} for "
            f"{workdir}; set selection.eval_name to select otherwise now."
        )


def claim_workdir(
    config: ml_collections.ConfigDict, workdir: str, info: DatasetInfo
) -> None:
    """Writes configuration and classes, or checks that they are the same.

    Before its first checkpoint a directory holds nothing that could be spoilt: whoever
    corrects a setting that did not work may use it again.

    Raises:
      UserError: the directory belongs to a run with other settings, or cannot be
      written.
    """
    path = epath.Path(workdir) / "config.json"
    if (path.parent / CARD).exists():
        raise UserError(
            f"{workdir} holds converted weights and no run; train from them with "
            f"--config.init={workdir} and another --workdir."
        )
    config = resolve(config, info.num_classes)
    wanted = json.loads(config.to_json_best_effort())
    if not path.exists() or not _holds_checkpoint(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                write_json(path.parent / "dataset.json", dataclasses.asdict(info))
                write_config(config, workdir)
                # Of checkpoints that are gone.
                (path.parent / "checkpoints" / SCORES).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to the work directory {workdir} ({error.strerror}); "
                f"choose another --workdir."
            ) from error
        return
    if load_info(workdir).class_names != tuple(info.class_names):
        raise UserError(
            f"The work directory {workdir} was trained on other classes than the data "
            f"has now; restore the data's classes or choose another --workdir."
        )
    # Not the file: it may lack keys that are newer than the run, and name files from
    # where it was started.
    before = resolve(load_config(workdir), info.num_classes)
    free = set(FREE_TO_CHANGE)
    if before.train.patience == config.train.patience == 0:
        free.update(FREE_WITHOUT_EARLY_STOPPING)
        if "best" not in (before.eval.checkpoint, config.eval.checkpoint):
            free.update(FREE_WITHOUT_COMPARISONS)
    differences = _differences(json.loads(before.to_json_best_effort()), wanted, free)
    if differences:
        more = (
            f" To train on for more steps, start a run from this one "
            f"(--config.init={workdir})."
        )
        raise UserError(
            f"The work directory {workdir} holds a run with another configuration "
            f"({'; '.join(differences[:5])}{' ...' if len(differences) > 5 else ''}); "
            f"choose another --workdir, or the same settings to take it up."
            f"{more if any(x.startswith('train.steps ') for x in differences) else ''}"
        )
    if jax.process_index() == 0:
        write_config(config, workdir)  # Where the data is, how it is evaluated.


def write_config(config: ml_collections.ConfigDict, workdir: str) -> None:
    """``config.json`` of a run, whose configuration is resolved."""
    path = epath.Path(workdir) / "config.json"
    write_json(path, json.loads(config.to_json_best_effort()))


def _holds_checkpoint(workdir: epath.Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def _differences(old, new, free: Collection[str], path: str = "") -> list[str]:
    """Leaves that are not equal, as ``key was x, is y``."""
    if path in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in _differences(
                old.get(key), new.get(key), free, f"{path}.{key}" if path else key
            )
        ]
    return [] if old == new else [f"{path} was {old}, is {new}"]
