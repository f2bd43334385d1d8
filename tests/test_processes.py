"""Several processes on one machine, as a user starts them: the same as one process."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import ROOT, tiny_flags

CHANGES = {
    "train.steps": 6,
    "train.eval_every": 4,
    "data.eval_examples": 7,
    "model.decoder.dropout_rate": 0.1,
    "mesh.fsdp": 2,
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(tmp_path, workdir, count, devices=8, changes=None, extra=None):
    """``count`` processes that together have so many fake devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count} "
        "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }
    port, running = free_port(), []
    for process in range(count):
        together = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={process}",
            "--heartbeat_seconds=10",
        ]
        flags = tiny_flags(CHANGES | (changes or {}))
        own = (extra or {}).get(process, [])
        with (tmp_path / f"{workdir.name}-{process}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "main.py", "train", f"--workdir={workdir}"]
                    + flags + own + (together if count > 1 else []),
                    cwd=ROOT, env=environment, stdout=log, stderr=log,
                )
            )  # fmt: skip
    return running


def finish(tmp_path, workdir, running, timeout=150) -> list[str]:
    """What each process said, once all have ended."""
    deadline = time.time() + timeout
    for process in running:
        process.wait(max(1, deadline - time.time()))
    return [
        (tmp_path / f"{workdir.name}-{i}.log").read_text() for i in range(len(running))
    ]


def read(workdir):
    """Losses and evaluations by step, and the final scores."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    curves = {}
    for line in map(json.loads, lines):
        for key in ("loss/total", "eval/mIoU", "eval/mAP"):
            if key in line:
                curves.setdefault(key, {})[line["step"]] = line[key]
    return curves, json.loads((workdir / "metrics.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone")
    workdir = path / "one"
    logs = finish(path, workdir, start(path, workdir, 1))
    assert (workdir / "metrics.json").exists(), logs[0]
    return path, *read(workdir)


def test_two_processes_are_one(alone):
    path, curves, metrics = alone
    workdir = path / "two"
    running = start(path, workdir, 2)
    logs = finish(path, workdir, running)
    assert [p.returncode for p in running] == [0, 0], logs
    curves_here, metrics_here = read(workdir)
    for key, curve in curves.items():
        assert list(curves_here[key]) == list(curve)
        np.testing.assert_allclose(
            list(curves_here[key].values()), list(curve.values()), rtol=1e-5
        )
    assert metrics_here["examples"] == 7
    for key in ("mIoU", "oracle_mIoU", "mAP", "pixel_recall_at_k"):
        np.testing.assert_allclose(metrics_here[key], metrics[key], rtol=1e-4)
    assert "step 6" in logs[0] and "step 6" not in logs[1]
    assert not list(workdir.glob(".preflight*"))
