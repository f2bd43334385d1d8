"""The one place that takes something from JAX's private modules."""

import importlib
import re
import types

import jax
import pytest
from tiny import ROOT

from mlseg_jax.distributed import private_jax, processes
from mlseg_jax.errors import UserError


def test_this_jax_has_what_processes_need():
    state = private_jax.find_state()
    assert state is importlib.import_module("jax._src.distributed").global_state
    assert state.client is None
    # What `client` becomes when one connects.
    service = importlib.import_module("jax._src.lib")._jax
    for name in private_jax.CALLS:
        assert callable(getattr(service.DistributedRuntimeClient, name))


def test_a_jax_that_has_moved_it_is_named(monkeypatch):
    """One process goes on alone; where several were to connect, a sentence."""
    for moved in (types.SimpleNamespace(), types.SimpleNamespace(global_state=0)):
        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", lambda _, m=moved: m)
            state = private_jax.find_state()
        assert (state.client, state.num_processes, state.process_id) == (None, 1, 0)
    monkeypatch.setattr(private_jax, "global_state", state)
    assert not processes.are_connected() and processes.own_index() == 0
    processes.barrier("nobody waits", 1.0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    sentence = f"JAX {re.escape(jax.__version__)} has no jax._src.distributed"
    with pytest.raises(UserError, match=sentence):
        processes.connect("127.0.0.1:1", 2, 0)
    # The state is there, but its client has lost a call.
    client = types.SimpleNamespace(**dict.fromkeys(private_jax.CALLS[1:]))
    state = types.SimpleNamespace(client=client, num_processes=2, process_id=0)
    monkeypatch.setattr(private_jax, "global_state", state)
    with pytest.raises(UserError, match=f"client.{private_jax.CALLS[0]}"):
        private_jax.check()


def test_nobody_else_imports_private_modules():
    folders = ("mlseg_jax", "input_pipeline", "configs", "benchmarks")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    found = [p.name for p in files if re.search(r"\bjax\._src\b", p.read_text())]
    assert found == ["private_jax.py"]
