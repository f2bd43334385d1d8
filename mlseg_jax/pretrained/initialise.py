"""``config.init``: the weights that a training starts from."""

import dataclasses
import logging

import jax
import ml_collections
from etils import epath

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import eomt
from mlseg_jax.pretrained.convert import describe_rest
from mlseg_jax.pretrained.download import weight_file
from mlseg_jax.pretrained.export import apart
from mlseg_jax.pretrained.format import Arrays, Format
from mlseg_jax.pretrained.formats import own_format, recognise
from mlseg_jax.pretrained.load import (
    load_arrays,
    stack_blocks,
    with_facts,
)
from mlseg_jax.pretrained.read import read_weights
from mlseg_jax.runs.workdir import load_config, load_parameters

logger = logging.getLogger(__name__)


def start_from(config: ml_collections.ConfigDict, num_classes: int, state):
    """The state at step 0 with the weights of ``config.init`` where it has any."""
    init, part = config.init, config.init_part
    if not init:
        return state
    source, arrays = _read(init)
    # The facts are the architecture's: here they can only be reported.
    _, notes = with_facts(config, source, part)
    for note in notes:
        logger.warning("init: %s; set it with --config.", note)
    try:
        loaded = load_arrays(config, num_classes, source, arrays, part=part)
    except UserError as error:
        raise UserError(
            f"init {init} ({source.title}) does not fit the configuration: "
            f"{str(error).removesuffix('.')}."
        ) from error
    for note in [*loaded.notes, *describe_rest(loaded)]:
        logger.info("init: %s", note)
    paths = FunctionalModel.build(config, num_classes).shapes
    given = stack_blocks(loaded.arrays, paths)
    new = dict(state)
    for part in ("params", "stats", "ema"):
        new[part] = {
            path: jax.device_put(given[path], x.sharding) if path in given else x
            for path, x in state[part].items()
        }
    return new


def _read(init: str) -> tuple[Format, Arrays]:
    """A weight file, or published weights, by its names; a work directory by ours."""
    if not epath.Path(init).is_dir():
        key, source, arrays = recognise(read_weights(weight_file(init)))
        if key in eomt.KINDS and eomt.is_difference(arrays):
            raise UserError(
                f"init {init} ({source.title}) holds differences from DINOv3's "
                f"weights; convert it first (convert --base=FILE), and name the work "
                f"directory that this makes."
            )
        return source, arrays
    config = load_config(init)
    config.mesh.update(data=-1, fsdp=1)
    model, parameters, _ = load_parameters(init, config)
    arrays = apart(config, model, jax.device_get(parameters))
    # No array says it, and a recipe of today may have it otherwise.
    facts = {
        f"model.{name}.classes_apart": part.classes_apart
        for name, part in config.model.items()
        if isinstance(part, ml_collections.ConfigDict) and "classes_apart" in part
    }
    return dataclasses.replace(own_format(list(arrays)), facts=facts), arrays
