"""What training carries from step to step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mlseg_jax.distributed.sharding import state_sharding
from mlseg_jax.models.build import initial_parameters
from mlseg_jax.training.optimizer import make_optimizer
from mlseg_jax.typing import Array

TrainState = dict[str, Any]
"""``step`` int32 []; ``opt_state``; and flat: ``params``, ``stats`` (what batch norms
measured; may be empty), ``ema`` (averages of both; may be empty).
"""


def create_state(
    config: ml_collections.ConfigDict, num_classes: int, seed: int | Array
) -> TrainState:
    """The state at step 0, from the configuration's seed alone."""
    params, stats = initial_parameters(config, num_classes, jax.random.key(seed))
    averages = config.optimizer.ema_decay > 0
    ema = jax.tree.map(jnp.copy, params | stats) if averages else {}
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt_state": make_optimizer(config).init(params),
        "ema": ema,
    }


def abstract_state(
    config: ml_collections.ConfigDict, num_classes: int, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state; makes no array."""
    shapes = jax.eval_shape(lambda: create_state(config, num_classes, 0))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=state_sharding(mesh, x)
        ),
        shapes,
    )


def initialise(
    config: ml_collections.ConfigDict, num_classes: int, mesh: Mesh
) -> TrainState:
    """Makes the state where it belongs: no device ever holds an unsplit copy."""
    abstract = abstract_state(config, num_classes, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    make = functools.partial(create_state, config, num_classes)
    # The seed is an argument, so that runs with other seeds find the same program.
    create = jax.jit(make, out_shardings=shardings, compiler_options=_options(config))
    return create(np.asarray(config.seed))


def _options(config: ml_collections.ConfigDict) -> dict[str, int] | None:
    """Of the compiler. Where minutes count, a program that runs once is not optimised:
    for configs/own_data.py on a processor, compiling takes 3.1 in place of 15.2 CPU
    seconds. Last bits of the weights differ, so other recipes keep theirs.
    """
    is_cpu = jax.devices()[0].platform == "cpu"
    hurries = is_cpu and config.choose_settings
    return {"xla_backend_optimization_level": 0} if hurries else None
