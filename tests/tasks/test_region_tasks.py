"""Tasks of regions: from batches to losses, from splits to scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_regions import CLASSES, region_config

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.distributed.sharding import AXES, make_mesh, put_batch, within
from mlseg_jax.errors import UserError
from mlseg_jax.losses.reduce import counts_of, total_loss
from mlseg_jax.models.build import FunctionalModel, initial_parameters
from mlseg_jax.tasks import regions
from mlseg_jax.tasks.table import find_task
from mlseg_jax.training.state import initialise
from mlseg_jax.training.step import make_train_step
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")


def batches_of(config, count=2):
    source = open_dataset(config.data, train=True)
    batches = train_batches(
        source,
        seed=0,
        batch_size=config.train.batch_size,
        augment=make_augment(config.data, None, source.info),
    )
    result = [next(batches) for _ in range(count)]
    batches.close()
    return result


def devices(data, fsdp):
    types = (jax.sharding.AxisType.Auto,) * 2
    chosen = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, axis_types=types, devices=chosen)


@functools.cache
def compiled(decoder="mask2former", task="panoptic", selection="top_k", mesh=(1, 1)):
    """Loss, logs and gradients of a batch, and the parameters at the start."""
    config = region_config(decoder, task, selection)
    model = FunctionalModel.build(config, CLASSES)
    make = functools.partial(initial_parameters, config, CLASSES)
    parameters, _ = jax.jit(make)(jax.random.key(0))
    mesh = devices(*mesh)

    def loss(parameters, batch):
        with within(mesh):
            bound = model.bind(parameters)
            key = jax.random.key(3)
            return total_loss(regions.means(bound, batch, config, key))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(batch):
        (_, logs), grads = step(parameters, put_batch(mesh, batch))
        return jax.device_get((logs, grads))

    return config, run


# --------------------------------------------------------------------------- losses


def with_given(batch, class_ids):
    scores = np.zeros((len(batch["image"]), CLASSES), np.float32)
    scores[:, list(class_ids)] = np.arange(len(class_ids), 0, -1)
    return batch | {"given": scores}


def test_nothing_selected_and_nothing_there_are_finite():
    """One program: labels that are there, labels that are not, crops without any."""
    config, run = compiled(selection="given")
    batch, _ = batches_of(config)
    present = np.unique(batch["segment_classes"])
    present = present[present != IGNORE]
    absent = [i for i in range(CLASSES) if i not in present][:6]
    absent += [19 - i for i in range(6 - len(absent))]
    empty = batch | {
        "masks": np.full_like(batch["masks"], IGNORE),
        "segment_classes": np.full_like(batch["segment_classes"], IGNORE),
    }
    usual, _ = run(with_given(batch, present[:6]))
    assert usual["train/segments_left_out"] < usual["train/segments"]
    one_class = batch | {
        "segment_classes": np.where(batch["segment_classes"] == IGNORE, IGNORE, 0)
    }
    for other in (with_given(one_class, range(1, 7)), with_given(empty, range(6))):
        logs, grads = run(other)
        assert all(np.isfinite(value) for value in logs.values())
        assert all(np.isfinite(grad).all() for grad in grads.values())
        assert logs["loss/masks"] == 0.0 and logs["loss/class"] > 0.0
        assert logs["train/bad_costs"] == 0.0
    assert logs["train/segments"] == 0.0


def test_meshes_have_equal_losses_and_gradients():
    config, one = compiled()
    _, many = compiled(mesh=(2, 4))
    batch, _ = batches_of(config)
    (logs, grads), (logs_many, grads_many) = one(batch), many(batch)
    assert logs.keys() == logs_many.keys()
    for key, value in logs.items():
        np.testing.assert_allclose(logs_many[key], value, rtol=2e-5, atol=1e-6)
    scale = max(np.abs(grad).max() for grad in grads.values())
    for key, grad in grads.items():
        np.testing.assert_allclose(grads_many[key], grad, atol=2e-5 * scale)


@pytest.mark.parametrize("task", ["semantic", "instance"])
@pytest.mark.parametrize("selection", ["complete", "oracle"])
def test_other_tasks_and_selections_trace(task, selection):
    config = region_config("mask2former", task, selection)
    model = FunctionalModel.build(config, CLASSES)
    (batch,) = batches_of(config, 1)

    def loss(parameters, batch):
        return regions.loss(model.bind(parameters), batch, config, jax.random.key(0))

    total, logs = jax.eval_shape(loss, model.shapes, batch)
    assert total.shape == () and "loss/masks" in logs


# --------------------------------------------------------------------------- training


def test_the_loss_falls_and_steps_are_repeatable():
    """Of MaskFormer."""
    config = region_config("maskformer")
    mesh = make_mesh(config, jax.devices()[:1])
    model = FunctionalModel.build(config, CLASSES)
    step = make_train_step(config, model, mesh)
    batches = [put_batch(mesh, batch) for batch in batches_of(config)]
    start = functools.partial(initialise, config, CLASSES, mesh)

    def run(state, count):
        losses = []
        for i in range(count):
            state, logs = step(state, batches[i % 2])
            losses.append(float(logs["loss/total"]))
        return state, losses

    _, losses = run(start(), 12)
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    # A run that is resumed: the state is all there is.
    state, first = run(start(), 2)
    state = jax.tree.map(lambda x: jax.device_put(jax.device_get(x), x.sharding), state)
    _, rest = run(state, 2)
    assert first + rest == losses[:4]


def test_a_batch_in_parts_has_the_same_losses():
    """Of MaskFormer, which draws no points."""
    config = region_config("maskformer")
    model = FunctionalModel.build(config, CLASSES)
    make = functools.partial(initial_parameters, config, CLASSES)
    parameters, _ = jax.jit(make)(jax.random.key(0))
    batch, _ = batches_of(config)

    @jax.jit
    def means(parameters, batch):
        bound = model.bind(parameters)
        return regions.means(bound, batch, config, jax.random.key(3))

    _, whole = total_loss(means(parameters, batch))
    parts = [
        means(parameters, jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in (0, 1)
    ]
    counts = jax.tree.map(jnp.add, *(counts_of(part) for part in parts))
    logs = [total_loss(part, counts)[1] for part in parts]
    for key, value in whole.items():
        both = float(logs[0][key] + logs[1][key])
        np.testing.assert_allclose(both, float(value), rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"task": "instance"}, "data.segments=instances"),
        ({"eval.flip": True}, "looks at a picture once"),
        ({"eval.scales": (0.5, 1.0)}, "looks at a picture once"),
        ({"eval.mode": "slide"}, "looks at a picture once"),
        ({"loss.logit_adjustment": 0.5}, "are of pixels"),
        ({"loss.missed_weight": 0.5}, "are of pixels"),
        ({"model.auxiliary_head.name": "fcn"}, "are of pixels"),
        ({"loss.pixel": "nearest_classes"}, "is of pixels"),
        ({"data.augmentation": "whole"}, "look at whole pictures"),
        ({"task": "instance", "data.segments": "instances"}, "max_instances, which"),
    ],
)
def test_keys_that_do_not_go_together(overrides, words):
    with pytest.raises(UserError, match=words):
        find_task(region_config(overrides=overrides))


def test_void_is_not_known_among_instances():
    ignore_void = {"loss.regions.ignore_void": True}
    for task in ("semantic", "panoptic"):
        find_task(region_config(task=task, overrides=ignore_void))
    with pytest.raises(UserError, match="are all of stuff and background"):
        find_task(region_config(task="instance", overrides=ignore_void))


def test_a_decoder_of_pixels_finds_no_segments():
    config = region_config()
    config.model.decoder.name = "linear"
    with pytest.raises(UserError, match="choose one of eomt, mask2former"):
        find_task(config)
    config.task = "semantic"
    with pytest.raises(UserError, match="set data.segments to none"):
        find_task(config)
    config.data.segments, config.selection.last_prediction_only = "none", True
    with pytest.raises(UserError, match="linear does once; set it to False"):
        find_task(config)


def test_windows_are_for_label_maps():
    task = find_task(region_config(task="semantic", overrides={"eval.mode": "slide"}))
    assert task.best_metric == "mIoU"
