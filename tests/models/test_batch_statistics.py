"""Running statistics of batch norms through a training step of a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from shrink import NUM_CLASSES, deeplabv3_config, scene_batch
from test_deeplabv3 import make_batch

from mlseg_jax.distributed.sharding import AXES, put_batch
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.mlseg import normalise
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")


def one_step(config, batch, mesh=None, start=None):
    """The state before and after a training step."""
    mesh = mesh or make_devices(1, 1)
    model = FunctionalModel.build(config, C)
    state = start or initialise(config, C, mesh)
    before = jax.device_get(state)
    after, metrics = make_train_step(config, model, mesh)(state, put_batch(mesh, batch))
    return before, jax.tree.map(np.asarray, after), jax.device_get(metrics)


def make_devices(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), AXES, axis_types=types, devices=devices)


@pytest.fixture(scope="module")
def trained():
    return one_step(deeplabv3_config(), make_batch())


def test_statistics_are_updated_in_training(trained):
    before, after, _ = trained
    assert before["stats"].keys() == after["stats"].keys()
    stem = "backbone/stem/0/"
    config = deeplabv3_config()
    start = jax.tree.map(jnp.asarray, before["params"] | before["stats"])
    model = FunctionalModel.build(config, C).bind(start)
    pixels = normalise(
        jnp.asarray(make_batch()["image"]), None, model.pixel_mean, model.pixel_std
    )
    features = jax.lax.conv_general_dilated(
        pixels,
        before["params"][f"{stem}conv/kernel"],
        (2, 2),
        [(3, 3)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    rows = np.asarray(features).reshape(-1, features.shape[-1])
    np.testing.assert_allclose(
        after["stats"][f"{stem}norm/mean"], 0.1 * rows.mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        after["stats"][f"{stem}norm/var"],
        0.9 + 0.1 * rows.var(0, ddof=1),
        rtol=1e-4,
    )
    # All of them, those of rematerialised and of equal blocks as well.
    for path, value in after["stats"].items():
        assert not np.array_equal(value, before["stats"][path]), path


def test_statistics_count_in_evaluation(trained):
    _, after, _ = trained
    model = FunctionalModel.build(deeplabv3_config(), C)
    run = jax.jit(lambda p, x: model.bind(p).encode(x).scores)
    image = make_batch(2)["image"]
    parameters = evaluation_parameters(after)["latest"]
    assert after["stats"].keys() < parameters.keys()
    scores = run(parameters, image)
    # Pictures do not depend on their neighbours, and statistics matter.
    np.testing.assert_allclose(run(parameters, image[1:])[0], scores[1], rtol=1e-4)
    other = parameters | {k: 2 * v + 0.5 for k, v in after["stats"].items()}
    assert np.abs(run(other, image) - scores).max() > 1e-4


def test_statistics_are_saved(trained, tmp_path):
    _, after, _ = trained
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, jax.tree.map(jnp.asarray, after))
    checkpoints.wait()
    abstract = abstract_state(deeplabv3_config(), C, make_devices(1, 1))
    restored = checkpoints.restore(1, abstract)
    checkpoints.close()
    assert after["stats"] and restored["stats"].keys() == after["stats"].keys()
    for path, value in after["stats"].items():
        np.testing.assert_array_equal(restored["stats"][path], value, err_msg=path)


def test_scan_and_rematerialisation_keep_the_statistics(trained):
    """The same step with the same weights, stacked or not."""
    before, after, metrics = trained
    config = deeplabv3_config(scan=True, remat="dots")
    mesh = make_devices(1, 1)
    state = initialise(config, C, mesh)
    start = state | {
        part: {
            path: jax.device_put(_stacked(before[part], path), value.sharding)
            for path, value in state[part].items()
        }
        for part in ("params", "stats")
    }
    _, again, same = one_step(config, make_batch(), mesh, start)
    for name in metrics:
        np.testing.assert_allclose(same[name], metrics[name], rtol=1e-4, err_msg=name)
    for path, value in again["stats"].items():
        np.testing.assert_allclose(
            value, _stacked(after["stats"], path), rtol=1e-3, atol=1e-5, err_msg=path
        )


def _stacked(arrays, path):
    if path in arrays:
        return arrays[path]
    start, _, end = path.partition("/blocks/")
    return np.stack(
        [v for k, v in arrays.items() if k.startswith(start) and k.endswith(f"/{end}")
         and "/blocks/" in k]
    )  # fmt: skip


ONE_STAGE = dict(depths=(1,), strides=(1,), dilations=(1,))


def test_statistics_under_accumulation(trained):
    """Part after part, each by its own examples, as in two steps of half the size."""
    config = deeplabv3_config("complete", **ONE_STAGE)
    with config.unlocked():
        config.model.auxiliary_head.name = "none"
        config.train.accumulate = 2
    batch = make_batch()
    before, after, _ = one_step(config, batch)
    with config.unlocked():
        config.train.accumulate = 1
        config.optimizer.learning_rate = config.optimizer.end_learning_rate = 1e-30
    halves = [{k: v[part::2] for k, v in batch.items()} for part in (0, 1)]
    state = None
    for half in halves:
        start = state and jax.device_put(state)
        _, state, _ = one_step(config, half, start=start)
    for path, value in state["stats"].items():
        np.testing.assert_allclose(
            value, after["stats"][path], rtol=1e-4, atol=1e-6, err_msg=path
        )
    assert any(
        not np.array_equal(v, before["params"][k]) for k, v in after["params"].items()
    )


def test_devices_agree(trained):
    """2 x 4 devices with an example each: the same step as on one."""
    _, after, metrics = trained
    _, again, same = one_step(deeplabv3_config(), make_batch(), make_devices(2, 4))
    for name in metrics:
        np.testing.assert_allclose(same[name], metrics[name], rtol=2e-4, err_msg=name)
    for path, value in again["stats"].items():
        np.testing.assert_allclose(
            value, after["stats"][path], rtol=1e-3, atol=1e-5, err_msg=path
        )


def test_the_loss_falls(trained):
    """On procedural scenes, with the program that is already compiled."""
    config = deeplabv3_config()
    batch = scene_batch(config)
    mesh = make_devices(1, 1)
    step = make_train_step(config, FunctionalModel.build(config, C), mesh)
    state, losses = initialise(config, C, mesh), []
    for _ in range(25):
        state, metrics = step(state, put_batch(mesh, batch))
        losses.append(float(metrics["loss/total"]))
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
