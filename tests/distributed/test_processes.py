"""Several processes on one machine, as a user starts them: the same as one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import ROOT, tiny_config, tiny_flags

from mlseg_jax.distributed import processes
from mlseg_jax.distributed.heartbeat import TRY_AGAIN
from mlseg_jax.errors import UserError
from mlseg_jax.training import preflight

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
        # The last of two flags counts.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={devices // count}",
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


def finish(tmp_path, workdir, running, timeout=300) -> list[str]:
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


def test_when_one_is_killed_the_others_end_and_the_run_goes_on(alone):
    path, workdir = alone[0], alone[0] / "killed"
    changes = {"train.steps": 900, "train.eval_every": 0, "train.log_every": 1}
    running = start(path, workdir, 4, devices=4, changes=changes)
    # Of digits alone: what is being written has a longer name.
    while not any(p.name.isdigit() for p in workdir.glob("checkpoints/*")):
        assert running[0].poll() is None, (path / "killed-0.log").read_text()
        time.sleep(0.02)
    running[1].kill()
    logs = finish(path, workdir, running)
    codes = [p.returncode for p in running]
    assert codes.pop(1) == -signal.SIGKILL
    # Gloo aborts one that has half of a message; the launchers start that again too.
    assert TRY_AGAIN in codes and set(codes) <= {TRY_AGAIN, -signal.SIGABRT}, logs
    for code, log in zip(codes, (logs[0], *logs[2:]), strict=True):
        named = "rocess 1" in log and "last checkpoint" in log
        assert named or code != TRY_AGAIN, log
    # On one process, and asked to stop: it saves and leaves in peace.
    lines = workdir / "metrics.jsonl"
    lines.write_text("")  # so that what comes now is the second run's
    (again,) = start(path, workdir, 1, changes=changes)
    while len(lines.read_text().splitlines()) < 2:
        assert again.poll() is None, (path / "killed-0.log").read_text()
        time.sleep(0.02)
    again.send_signal(signal.SIGTERM)
    assert again.wait(150) == 0
    log = (path / "killed-0.log").read_text()
    assert "resuming from checkpoint" in log and "asked to stop" in log
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == list(range(steps[0], steps[-1] + 1)) and steps[0] > 1
    assert (workdir / f"checkpoints/{steps[-1]}").exists()


def facts(**changes):
    same = {"devices": 4, "kind": "cpu", "jax": "1", "clock": 5.0}
    return same | {"configuration": "a", "program": "b"} | changes


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"configuration": "c"}, "Process 1 has another configuration"),
        ({"program": "c"}, "Process 1 has another source code"),
        ({"devices": 3}, "another devices than process 0: 3 and not 4"),
        ({"clock": 125.0}, r"clock of process 1 is \+120 s off"),
    ],
)
def test_processes_that_do_not_fit_are_named(changes, sentence):
    preflight._compare([facts(), facts()])
    with pytest.raises(UserError, match=sentence):
        preflight._compare([facts(), facts(**changes)])


@pytest.mark.parametrize(
    "given, sentence",
    [
        ((None, 2, None), "need --coordinator"),
        (("127.0.0.1:1", None, None), "not how many processes"),
        (("127.0.0.1:1", 2, 2), "none of 2 processes"),
    ],
)
def test_half_of_what_is_needed_to_connect(given, sentence):
    with pytest.raises(UserError, match=sentence):
        processes.connect(*given)


def test_the_environment_says_who_this_is(monkeypatch):
    asked = []
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda *a, **_: asked.append(a)
    )
    monkeypatch.setattr(processes.distributed, "check", lambda: None)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "job-0.job:8476")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    processes.connect()
    assert asked == [("job-0.job:8476", 4, 3)]
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    processes.connect()
    assert asked[1] == (None, None, None)


def test_the_hash_of_the_code_is_of_all_of_it():
    assert preflight.code_hash() == preflight.code_hash()
    assert len(preflight.code_hash()) == 12
    preflight.check(tiny_config(), "/nowhere")  # alone: nothing to check
