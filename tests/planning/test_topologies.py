"""Names of machines, and what is said where one cannot be had."""

import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.models.flops import peak_flops
from mlseg_jax.planning import topologies
from mlseg_jax.planning.topologies import parse_topology


@pytest.mark.parametrize(
    "name, chips, shape, slices",
    [
        ("v5e-256", 256, (16, 16), 1),
        ("v5p-64", 64, (4, 4, 4), 1),
        ("v4:2x2x1", 4, (2, 2, 1), 1),
        ("v6e-8x2", 16, (2, 4), 2),
        ("tpu7x-4", 8, (2, 2, 1), 1),
        ("h100x8", 8, (1, 8), 1),
        ("a100x16", 16, (2, 8), 1),
        ("cpu4", 4, (4,), 1),
    ],
)
def test_names_of_topologies(name, chips, shape, slices):
    topology = parse_topology(name)
    assert (topology.num_chips, topology.shape, topology.slices) == (
        chips,
        shape,
        slices,
    )


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("v5e", "no topology"),
        ("v9-4", "no topology"),
        ("tpu8", "no topology"),
        ("v5e-7", "choose one of 4, 8"),
        ("v5p:4x4", "3 axes"),
        ("h100x12", "ask for h100x16"),
        ("cpu0", "ask for 1 or more"),
        ("h100x0", "ask for 1 or more"),
    ],
)
def test_names_that_are_none(name, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_topology(name)


@pytest.mark.parametrize("name, extra", [("v5e-4", "tpu"), ("h100x8", "aot-gpu")])
def test_a_compiler_that_is_missing(monkeypatch, name, extra):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"pip install 'mlseg-jax\[{extra}\]'"):
        topologies.devices(parse_topology(name))


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match="device_count=4096"):
        topologies.devices(parse_topology("cpu4096"))


@pytest.mark.parametrize("name, kind", [("v6e-4", "TPU v6 lite"), ("tpu7x-4", "TPU7x")])
def test_newer_slices_are_known_to_the_compiler(name, kind):
    pytest.importorskip("libtpu")
    topology = parse_topology(name)
    found = topologies.devices(topology)
    assert [device.device_kind for device in found] == [kind] * topology.num_chips
    assert topology.peak_flops == peak_flops(kind)
