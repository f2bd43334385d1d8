"""Signals, hangs and profiles of a run."""

import logging
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
from tiny import ROOT

from mlseg_jax.training.watch import ProfileWindow

TWO_SIGNALS = """
import os, signal, time
from mlseg_jax.training.watch import StopRequest

with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.requested, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_the_first_signal_asks_and_the_second_ends():
    done = subprocess.run(
        [sys.executable, "-c", TWO_SIGNALS], cwd=ROOT, capture_output=True, timeout=50
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == b"True\n"


def test_a_profile_of_some_steps(tmp_path, caplog):
    settings = ml_collections.ConfigDict({"profile_start": 2, "profile_steps": 2})
    window = ProfileWindow(str(tmp_path), settings)
    x = jnp.zeros(3)
    with caplog.at_level(logging.INFO, "mlseg_jax.training.watch"):
        for step in range(6):
            window.at(step, x)
            x = jax.jit(jnp.sin)(x)
            assert any(tmp_path.rglob("*.xplane.pb")) == (step >= 4)
        window.close(x)
    assert [r.getMessage() for r in caplog.records] == [
        f"profile of 2 steps in {tmp_path}/profile"
    ]
