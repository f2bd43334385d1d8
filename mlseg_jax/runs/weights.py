"""Which weights of a run are evaluated: of the last step, or averages over steps."""

from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from mlseg_jax.distributed.sharding import state_sharding
from mlseg_jax.models.build import FunctionalModel


def evaluation_parameters(
    state: dict[str, Any], which: str = "average"
) -> dict[str, dict[str, Any]]:
    """The weights to evaluate, by what they are: of the ``average`` over steps (where
    there is one), of the ``latest`` step, or of both where ``which`` is ``better``.
    """
    latest = {"latest": state["params"] | state["stats"]}
    if which == "latest" or not state["ema"]:
        return latest
    average = {"average": state["ema"]}
    return average if which == "average" else average | latest


def abstract_weights(
    config: ml_collections.ConfigDict, model: FunctionalModel, mesh: Mesh
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """``params``, ``stats`` and ``ema`` of a training state, without the rest of it."""
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state_sharding(mesh, x))
        for path, x in model.shapes.items()
    }
    params = {path: x for path, x in shapes.items() if path in model.learned}
    stats = {path: x for path, x in shapes.items() if path not in model.learned}
    ema = shapes if config.optimizer.ema_decay > 0 else {}
    return {"params": params, "stats": stats, "ema": ema}
