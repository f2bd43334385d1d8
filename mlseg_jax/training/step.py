"""One step of training: gradients of a batch, one update of the state."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlseg_jax.distributed.sharding import within
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.models.build import FunctionalModel, statistics
from mlseg_jax.settings.resolve import resolve
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training.accumulate import accumulated_gradients
from mlseg_jax.training.optimizer import average_decay, frozen_paths, make_optimizer
from mlseg_jax.training.schedule import Lengths, schedule_lengths
from mlseg_jax.training.state import TrainState, abstract_state
from mlseg_jax.typing import Array

OVERLAPPING = ("coco_json", "lvis_json")
"""Data sets whose instances may overlap, so that their masks are stacks of bits."""


def example_shapes(
    config: ml_collections.ConfigDict, num_classes: int
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of everything that a training batch holds of an example."""
    data, crop = config.data, tuple(config.data.crop_size)
    if data.get("num_frames", 0):
        crop = (data.num_frames, *crop)
    shapes = {"image": ((*crop, 3), np.uint8)}
    if config.task == "multilabel":
        return shapes | {"presence": ((num_classes,), np.bool_)}
    shapes["label_map"] = (crop, np.int32)
    shapes["image_size"] = ((2,), np.int32)
    if config.selection.name == "given":
        shapes["given"] = ((num_classes,), np.float32)
    if data.segments == "none":
        return shapes
    shapes["segment_classes"] = ((data.max_segments,), np.int32)
    shapes["masks"] = (crop, np.int32)
    if data.segments == "instances" and data.name in OVERLAPPING:
        octets = -(-crop[1] // 8)
        shapes["masks"] = ((data.max_segments, crop[0], octets), np.uint8)
    return shapes


def put_lengths(config: ml_collections.ConfigDict, mesh: Mesh) -> Lengths:
    """What a training counts in steps, on all devices, as an argument of its step."""
    lengths = {
        key: np.asarray(value, np.int32)
        for key, value in schedule_lengths(config).items()
    }
    return jax.device_put(lengths, NamedSharding(mesh, P()))


def make_train_step(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    mesh: Mesh,
    priors: ClassPriors = NO_PRIORS,
):
    """The jitted step: ``(state, batch, lengths) -> (state, metrics)``; the state is
    donated. With `put_lengths` trainings of any length are one program; without them
    the configuration's are a part of it.
    """
    config = resolve(config, model.num_classes)
    task = find_task(config)
    num_parts = config.train.accumulate
    dropout_key = jax.random.key(config.seed + 1)

    frozen = frozen_paths(config, model.learned)

    def forward(params, stats, batch, rng):
        still = {path: jax.lax.stop_gradient(params[path]) for path in frozen}
        bound = model.bind(params | still | stats)
        means = task.means(bound, batch, config, rng, priors)
        return means, statistics(bound)

    def train_step(
        state: TrainState, batch: dict[str, Array], lengths: Lengths | None = None
    ):
        lengths = lengths or schedule_lengths(config)
        optimizer = make_optimizer(config, lengths)
        rng = jax.random.fold_in(dropout_key, state["step"])
        # An example each, so that a batch can be split.
        size = len(next(iter(batch.values())))
        progress = jnp.full(size, state["step"] / lengths["steps"], jnp.float32)
        batch = batch | {"progress": progress}
        with within(mesh):
            grads, metrics, stats = accumulated_gradients(
                forward, num_parts, state["params"], state["stats"], batch, rng
            )
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        params = optax.apply_updates(state["params"], updates)
        decay = average_decay(config, state["step"])
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
