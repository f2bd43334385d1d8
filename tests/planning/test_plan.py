"""Plans for machines that are not there; the arithmetic they must agree with."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import pytest
from tiny import ROOT, tiny_config, tiny_flags

from mlseg_jax.distributed import sharding
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, num_ranks
from mlseg_jax.planning import plan as planning
from mlseg_jax.planning.planned_step import Memory
from mlseg_jax.planning.topologies import GIB

ADAM = {"optimizer.name": "adamw", "model.backbone.depth": 2}


@pytest.fixture(scope="module", autouse=True)
def small_arrays_are_split_too():
    patch = pytest.MonkeyPatch()
    patch.setattr(sharding, "MIN_SHARDED_SIZE", 2**9)
    yield
    patch.undo()


def config_of(data: int, fsdp: int, **others):
    return tiny_config({"mesh.data": data, "mesh.fsdp": fsdp, **ADAM, **others})


@pytest.fixture(scope="module")
def plans(quick_compiles):
    """The same batch per device on four devices and on eight, split by two."""
    return {
        count: planning.plan(
            config_of(-1, 2), f"cpu{count}", 2, with_predict=count == 8
        )
        for count in (4, 8)
    }


def state_bytes(config, shards: int) -> int:
    """Of one copy of the parameters: large ones are split, small ones are not."""
    total = 0
    for leaf in FunctionalModel.build(config, 20).shapes.values():
        is_split = math.prod(leaf.shape) >= 2**9 and any(
            size % shards == 0 for size in leaf.shape
        )
        total += 4 * math.prod(leaf.shape) // (shards if is_split else 1)
    return total


def test_bytes_of_the_state_are_the_arithmetic(plans):
    expected = state_bytes(config_of(-1, 2), shards=2)
    memory = plans[8].train.memory
    assert memory.parameters == expected
    # Both moments of Adam, and counts of steps.
    assert 0 < memory.optimizer - 2 * expected <= 16
    assert memory.averages == 0
    assert memory.batch == 2 * (32 * 32 * (3 + 4) + 2 * 4)  # and their sizes
    assert plans[8].predict.memory.parameters == expected
    shapes = FunctionalModel.build(config_of(-1, 2), 20).shapes
    assert plans[8].num_parameters == sum(math.prod(x.shape) for x in shapes.values())


def test_the_parts_of_the_memory_add_up(plans):
    for made in (plans[4], plans[8]):
        memory = made.train.memory
        parts = memory.parameters + memory.optimizer + memory.batch
        parts += memory.gradients + memory.activations + memory.code
        # What is left is the metrics, and tables of addresses.
        assert 0 <= memory.total - parts < 4096


def test_twice_the_devices_take_the_same_memory_each(plans):
    small, large = (plans[count].train for count in (4, 8))
    assert large.memory.total == pytest.approx(small.memory.total, rel=0.05)
    assert large.flops_per_chip == small.flops_per_chip
    assert plans[8].batch_size == 2 * plans[4].batch_size


def test_collectives_of_a_split_state(plans):
    kinds = {each.kind: each for each in plans[8].train.program.collectives}
    assert {"all-gather", "all-reduce"} <= set(kinds)
    # The whole state is gathered at least once, and every gradient is summed.
    config = config_of(-1, 2)
    whole, part = (state_bytes(config, shards) for shards in (1, 2))
    assert kinds["all-gather"].bytes >= 2 * (whole - part)
    assert all(each.link_bytes > 0 for each in kinds.values())
    assert all(each.network_bytes == 0 for each in kinds.values())


def test_words_and_json(plans):
    text = planning.as_text(plans[8])
    assert "cpu8: 8 chips, mesh data=4 fsdp=2" in text
    assert "C = 20, K = 4" in text
    assert "prediction of 2 windows per chip" in text
    # Nothing is known of this processor, so nothing is said about time.
    assert "at best" not in text
    assert json.loads(json.dumps(plans[8].as_json()))["batch_size"] == 16
    assert "prediction" not in planning.as_text(plans[4])


def test_table_of_classes_and_ranks(monkeypatch, plans):
    seen = []

    def fake(config, topology, batch, **_):
        ranks = num_ranks(config, config.data.num_classes)
        seen.append((config.data.num_classes, ranks, batch))
        return dataclasses.replace(plans[8], num_ranks=ranks)

    monkeypatch.setattr(planning, "plan", fake)
    config = config_of(-1, 2)
    rows = planning.label_table(config, "cpu8", 2, classes=(30, 60), ranks=(10, 50))
    assert seen == [(30, 10, 2), (60, 10, 2), (60, 50, 2)]
    assert config.data.num_classes == 20
    lines = planning.table_text(rows).splitlines()
    assert len(lines) == 4 and lines[3].split()[:2] == ["60", "50"]
    # All labels are ranks, whatever K is.
    config.selection.name = "complete"
    rows = planning.label_table(config, "cpu8", 2, classes=(30, 60), ranks=(10, 50))
    assert seen[3:] == [(30, 30, 2), (60, 60, 2)]
    assert [(row["C"], row["K"]) for row in rows] == [(30, 30), (60, 60)]


@pytest.mark.parametrize(
    "limit, start, parts", [(13, 1, 1), (0, 4, 1), (5, 64, 1), (12, 4, 4)]
)
def test_the_search_for_the_largest_batch(monkeypatch, plans, limit, start, parts):
    tried = []

    def fake(config, topology, batch, **_):
        tried.append(batch)
        assert batch % parts == 0
        train = dataclasses.replace(plans[8].train, fits=batch <= limit)
        return dataclasses.replace(plans[8], train=train)

    monkeypatch.setattr(planning, "plan", fake)
    config = tiny_config({"train.accumulate": parts})
    found = planning.largest_batch(config, "v5e-4", start)
    assert limit * 2 // 3 <= found <= limit
    assert len(tried) == len(set(tried)) <= 8


def test_no_largest_batch_where_memory_is_not_known():
    with pytest.raises(UserError, match="memory of cpu8 is not known"):
        planning.largest_batch(tiny_config(), "cpu8")


@pytest.mark.parametrize(
    "changes, batch, word",
    [
        ({}, 8, "mesh.fsdp=-1"),
        (
            {"mesh.data": 1, "mesh.fsdp": 8},
            8,
            "remat=full --config.model.backbone.scan",
        ),
        ({"mesh.fsdp": 8, "model.backbone.remat": "full"}, 8, "dtype=bfloat16"),
    ],
)
def test_advice(changes, batch, word, plans):
    config = tiny_config(changes)
    mesh = make_mesh(tiny_config({"mesh.data": -1} | changes))
    memory = Memory(parameters=GIB, optimizer=2 * GIB, usable=8 * GIB)
    step = dataclasses.replace(plans[8].train, memory=memory)
    sentence = planning._advice(config, mesh, step, batch)
    assert word in sentence and sentence.endswith(".")
    with config.unlocked():
        del config.model.backbone.scan  # As in networks of convolutions.
    assert "scan" not in planning._advice(config, mesh, step, batch)


def test_meshes_and_batches_that_do_not_fit():
    with pytest.raises(UserError, match="do not make up the 8 devices"):
        planning.plan(tiny_config({"mesh.data": 3}), "cpu8", 1)
    with pytest.raises(UserError, match="do not split into train.accumulate=2"):
        planning.plan(tiny_config({"train.accumulate": 2}), "cpu8", 3)


# ----------------------------------------------------------------- with its compilers


NO_TPU = "the TPU compiler is not installed (`make test` does it on Linux, x86-64)"


def test_tpu_slices():
    pytest.importorskip("libtpu", reason=NO_TPU)
    overrides = {"model.dtype": "bfloat16", "model.backbone.depth": 1}
    config = config_of(-1, 2, **overrides)
    small, large = (
        planning.plan(config, name, 1, with_predict=False)
        for name in ("v5e-4", "v5e-8")
    )
    for made in (small, large):
        assert made.train.fits
        assert made.train.memory.parameters == state_bytes(config, 2)
        assert made.train.memory.total < 2**30
        assert made.images_per_second > 0 and 0 < made.mfu_bound <= 1
        kinds = {each.kind for each in made.train.program.collectives}
        assert "all-reduce" in kinds
        assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert large.train.memory.total == pytest.approx(small.train.memory.total, rel=0.05)
    assert jax.devices()[0].platform == "cpu"


def test_the_command_plans_for_a_tpu_slice_and_says_nothing_else():
    pytest.importorskip("libtpu", reason=NO_TPU)
    changes = {"model.dtype": "bfloat16", "mesh.fsdp": 2}
    command = [sys.executable, "main.py", "plan", "--topology=v5e-4", "--json"]
    done = subprocess.run(
        command + tiny_flags(changes), cwd=ROOT, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert (made["num_chips"], made["mesh"], made["batch_per_chip"]) == (4, [2, 2], 2)
    for step in (made["train"], made["predict"]):
        assert step["fits"] and step["memory"]["usable"] == 15.75 * GIB
        assert step["seconds"]["step"] > 0


def test_a_gpu_host():
    pytest.importorskip("jax_cuda12_plugin")
    config = config_of(2, 2, **{"model.backbone.depth": 1})
    made = planning.plan(config, "h100x4", 1, with_predict=False)
    assert made.train.fits and made.days > 0
    assert made.train.memory.parameters == state_bytes(config, 2)
