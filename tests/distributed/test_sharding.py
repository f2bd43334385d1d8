"""Which device holds what: every mesh computes the same."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from tiny import tiny_config

from mlseg_jax.distributed import sharding
from mlseg_jax.distributed.sharding import AXES, check_batch_size, make_mesh, put_batch
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.planning.compiled import read_program
from mlseg_jax.training.state import abstract_state, initialise
from mlseg_jax.training.step import make_train_step

CLASSES = 20


@pytest.fixture(scope="module", autouse=True)
def small_arrays_are_split_too():
    patch = pytest.MonkeyPatch()
    patch.setattr(sharding, "MIN_SHARDED_SIZE", 2**9)
    yield
    patch.undo()


def mesh_of(data: int, fsdp: int):
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh(
        (data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def run(data: int, fsdp: int, remat: str = "none", *, scan: bool, dtype="float32"):
    """Three steps of Adam with dropout: first weights, losses, state, collectives."""
    config = tiny_config({"train.accumulate": 2 if scan else 1, "model.dtype": dtype})
    config.model.backbone.update(depth=2, drop_path_rate=0.2, scan=scan, remat=remat)
    config.model.decoder.dropout_rate = 0.2
    # In one of the two blocks classes see one another.
    config.model.multilabel_head.classes_apart = not scan
    config.model.decoder.classes_apart = scan
    mesh = mesh_of(data, fsdp)
    model = FunctionalModel.build(config, CLASSES)
    rng = np.random.default_rng(0)
    # Three classes a picture, fewer than K, so that some are missed and some absent.
    label_map = rng.integers(0, CLASSES, (16, 1, 1)) + rng.integers(0, 3, (16, 4, 32))
    label_map = (label_map % (CLASSES + 1) - 1).astype(np.int32)
    batch = {
        "image": rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8),
        "label_map": np.repeat(label_map, 8, axis=1),
    }
    state = initialise(config, CLASSES, mesh)
    first = jax.device_get(state["params"])
    batch = put_batch(mesh, batch)
    step = make_train_step(config, model, mesh).lower(state, batch).compile()
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/total"]))
    return first, losses, state, read_program(step.as_text(), [0] * mesh.size)


@pytest.fixture(scope="module")
def single():
    kinds = (False, "float32"), (True, "float32"), (False, "bfloat16")
    return {(scan, dtype): run(1, 1, scan=scan, dtype=dtype) for scan, dtype in kinds}


@pytest.mark.parametrize(
    "data, fsdp, remat, scan, dtype",
    [
        (8, 1, "none", False, "float32"),
        (2, 4, "full", True, "float32"),
        (1, 8, "dots", False, "float32"),
        (2, 4, "none", False, "bfloat16"),
    ],
)
def test_every_mesh_gives_the_same_losses(single, data, fsdp, remat, scan, dtype):
    first, losses, *_ = single[scan, dtype]
    first_here, losses_here, state, program = run(
        data, fsdp, remat, scan=scan, dtype=dtype
    )
    for path in first:
        np.testing.assert_allclose(first_here[path], first[path], rtol=1e-6, atol=1e-7)
    rtol = 1e-5 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(losses_here, losses, rtol=rtol)
    # Before steps of different weights have grown apart.
    exact = single[scan, "float32"][1][0]
    np.testing.assert_allclose(losses_here[0], exact, rtol=1e-2)
    assert losses[2] < losses[0]
    split = 0
    for array in jax.tree.leaves(state):
        shard = array.addressable_shards[0].data.shape
        assert len(array.addressable_shards) == data * fsdp
        split += shard != array.shape
        if shard != array.shape:
            assert np.prod(shard) * fsdp == array.size
    # Parameters and both moments of Adam, two dimensions or more.
    large = [x for x in jax.tree.leaves(state) if x.size >= 2**9]
    assert split == (len(large) if fsdp > 1 else 0)
    assert len(large) > 20
    # Weights travel, activations stay: what is gathered is one weight at most.
    collectives = {each.kind: each for each in program.collectives}
    assert set(collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}
    if "all-gather" in collectives:
        largest = max(x.nbytes for x in state["params"].values())
        assert collectives["all-gather"].largest <= largest
    assert ("all-gather" in collectives) == (fsdp > 1)


def test_the_rule():
    mesh = mesh_of(2, 4)

    def spec(*shape):
        array = jax.ShapeDtypeStruct(shape, np.float32)
        return sharding.state_sharding(mesh, array).spec

    assert spec(64, 128) == P(None, "fsdp")
    assert spec(64, 126) == P("fsdp", None)
    assert spec(63, 127) == P()
    assert spec(8, 8) == P()
    assert spec() == P()
    whole = jax.ShapeDtypeStruct((64, 128), np.float32)
    assert sharding.state_sharding(mesh_of(8, 1), whole).spec == P()


def test_tables_of_ten_thousand_classes_are_split():
    config, classes = tiny_config({"data.num_classes": 10_000}), 10_000
    params = abstract_state(config, classes, mesh_of(2, 4))["params"]
    tables = [x for x in params.values() if x.ndim == 2 and classes in x.shape]
    assert len(tables) >= 2
    assert all(x.sharding.spec == P("fsdp", None) for x in tables)


def test_sizes_of_meshes():
    for data, fsdp, shape in ((-1, 1, (8, 1)), (2, -1, (2, 4)), (1, 8, (1, 8))):
        mesh = make_mesh(tiny_config({"mesh.data": data, "mesh.fsdp": fsdp}))
        assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape


@pytest.mark.parametrize(
    "data, fsdp", [(3, 1), (3, -1), (-1, -1), (0, 8), (-1, 0), (-2, -4), (16, -1)]
)
def test_meshes_that_do_not_fit(data, fsdp):
    with pytest.raises(UserError, match="do not make up the 8 devices"):
        make_mesh(tiny_config({"mesh.data": data, "mesh.fsdp": fsdp}))


@pytest.mark.parametrize(
    "batch, parts, sentence",
    [
        (12, 1, "multiple of 8"),
        (8, 2, "multiple of 16"),
    ],
)
def test_batches_that_do_not_split(batch, parts, sentence):
    with pytest.raises(UserError, match=sentence):
        check_batch_size(mesh_of(2, 4), batch, parts)
    check_batch_size(mesh_of(2, 4), 16, 2)
