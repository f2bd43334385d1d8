"""What training carries from step to step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from mlseg_jax.errors import UserError
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.models.build import FunctionalModel, initial_parameters, statistics
from mlseg_jax.optimizer import frozen_paths, make_optimizer
from mlseg_jax.sharding import state_sharding, within
from mlseg_jax.tasks.table import find_task
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
    return jax.jit(make, out_shardings=shardings)(np.asarray(config.seed))


EVALUATED_WEIGHTS = ("average", "latest", "better")
"""Which weights ``eval.weights`` can name: of the average over steps (where there is
one), of the last step, or whichever of the two scores better."""


def evaluation_parameters(
    state: TrainState, which: str = "average"
) -> dict[str, dict[str, Any]]:
    """The weights to evaluate, by what they are: ``average``, ``latest`` or both."""
    if which not in EVALUATED_WEIGHTS:
        raise UserError(
            f"Unknown eval.weights {which!r}; choose one of "
            f"{', '.join(EVALUATED_WEIGHTS)}."
        )
    latest = {"latest": state["params"] | state["stats"]}
    if which == "latest" or not state["ema"]:
        return latest
    average = {"average": state["ema"]}
    return average if which == "average" else average | latest


def make_train_step(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    mesh: Mesh,
    priors: ClassPriors = NO_PRIORS,
):
    """The jitted step: ``(state, batch) -> (state, metrics)``; the state is donated."""
    task = find_task(config)
    optimizer = make_optimizer(config)
    num_parts = config.train.accumulate
    dropout_key = jax.random.key(config.seed + 1)

    frozen = frozen_paths(config, model.learned)

    def loss(params, stats, batch, rng):
        still = {path: jax.lax.stop_gradient(params[path]) for path in frozen}
        bound = model.bind(params | still | stats)
        total, metrics = task.loss(bound, batch, config, rng, priors)
        return total, (metrics, statistics(bound))

    def gradients(params, stats, batch, rng):
        """Mean over ``num_parts`` equal parts, one after the other; metrics; stats."""
        differentiate = jax.grad(loss, has_aux=True)
        if num_parts == 1:
            grads, (metrics, stats) = differentiate(params, stats, batch, rng)
            return grads, metrics, stats
        # Every part takes its share of each device's examples, so nothing moves.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(carry, part):
            sums, stats = carry
            grads, (metrics, stats) = differentiate(params, stats, *part)
            return (jax.tree.map(jnp.add, sums, (grads, metrics)), stats), None

        rngs = jax.random.split(rng, num_parts)
        grads, (metrics, _) = jax.eval_shape(
            differentiate, params, stats, jax.tree.map(lambda x: x[0], parts), rng
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))
        (sums, stats), _ = jax.lax.scan(add, (zeros, stats), (parts, rngs))
        return *jax.tree.map(lambda x: x / num_parts, sums), stats

    def train_step(state: TrainState, batch: dict[str, Array]):
        rng = jax.random.fold_in(dropout_key, state["step"])
        with within(mesh):
            grads, metrics, stats = gradients(
                state["params"], state["stats"], batch, rng
            )
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        params = optax.apply_updates(state["params"], updates)
        decay = config.optimizer.ema_decay
        latest = params | stats
        ema = {
            path: decay * average + (1.0 - decay) * latest[path]
            for path, average in state["ema"].items()
        }
        metrics["train/gradient_norm"] = optax.tree.norm(grads)
        # Also so that no state is ever saved whose parameters are not finite.
        metrics["train/parameter_norm"] = optax.tree.norm(params)
        step = state["step"] + 1
        new = dict(step=step, params=params, stats=stats, opt_state=opt_state, ema=ema)
        return new, metrics

    shardings = jax.tree.map(
        lambda x: x.sharding,
        abstract_state(config, model.num_classes, mesh),
    )
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
