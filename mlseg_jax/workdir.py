"""A trained model out of its work directory: configuration, classes, weights."""

import json

import ml_collections
from etils import epath

from configs import saved
from input_pipeline.datasets.info import DatasetInfo
from mlseg_jax.checkpoint import Checkpoints
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.sharding import make_mesh
from mlseg_jax.train_state import abstract_state


def load_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration that the work directory was trained with."""
    try:
        return saved.get_config(workdir)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_info(workdir: str) -> DatasetInfo:
    """The classes that the model was trained on."""
    load_config(workdir)  # Says it where this is no work directory.
    facts = json.loads((epath.Path(workdir) / "dataset.json").read_text())
    return DatasetInfo(
        facts["name"], tuple(facts["class_names"]), tuple(facts["is_thing"])
    )


def load_parameters(
    workdir: str, config: ml_collections.ConfigDict, checkpoint: str = "latest"
) -> tuple[FunctionalModel, Parameters, int]:
    """The model, its (averaged) weights and the step they are of.

    ``checkpoint`` is ``latest``, ``best`` or a step.
    """
    num_classes = load_info(workdir).num_classes
    # What the weights look like is the training's business, not an override's.
    trained = load_config(workdir)
    mesh = make_mesh(config)
    wanted = abstract_state(trained, num_classes, mesh)
    part = "ema" if wanted["ema"] else "params"
    checkpoints = Checkpoints(workdir)
    try:
        step = checkpoints.find(checkpoint)
        parameters = checkpoints.restore_part(step, {part: wanted[part]})[part]
    finally:
        checkpoints.close()
    return FunctionalModel.build(trained, num_classes), parameters, step
