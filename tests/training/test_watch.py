"""Signals, hangs and profiles of a run."""

import logging
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from tiny import ROOT

from mlseg_jax.training.watch import ProfileWindow, Watchdog

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


def test_a_hang_is_reported_once_with_what_the_threads_do(tmp_path):
    path = tmp_path / "stderr"

    def reports() -> int:
        return path.read_text().count("No step has ended for 0.001 minutes")

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 60
        while reports() < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reports() == count

    with path.open("w") as file:
        with Watchdog(0.001, file) as watchdog:
            wait_for(1)
            assert "on process 0" in path.read_text()
            assert "in wait_for" in path.read_text()
            time.sleep(0.2)
            assert reports() == 1
            watchdog.beat()
            wait_for(2)
        before = path.read_text()
        with Watchdog(0.0, file):  # off
            time.sleep(0.1)
        assert path.read_text() == before


def test_a_profile_of_some_steps(tmp_path, caplog):
    window = ProfileWindow(str(tmp_path), start=2, count=2)
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
