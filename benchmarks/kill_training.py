"""Kills a training at random moments and resumes it on other devices, many times.

    python benchmarks/kill_training.py --kills=30 --rounds=2

A small model trains without end. Each process is killed (SIGKILL) at a random moment
after its first step, half of them while a checkpoint is being saved, and the next one
takes the run up on the next of 1, 2, 4 and 8 fake devices. Now and then one is killed
in its start as well, which counts as no kill. Another run is killed a third as often,
on one device alone, and a run of four processes suffers what ``kill_processes.py`` has
in store, ``--rounds`` times each. Then all go on to the same step, and one more run
trains up to it on one device without a break. The final weights of the run on one
device must be bitwise those of the unbroken one, those of the others within 1e-5, and
the losses of all steps the same: no example was seen twice or missed. Prints one JSON
object.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import tiny_flags  # noqa: E402

from benchmarks.kill_processes import disturb, write_pictures  # noqa: E402

DEVICES = (1, 2, 4, 8)
LONGEST = 2.0
"""Seconds between the first step of a process and its end, at most."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One work directory, and the processes that train in it."""

    workdir: pathlib.Path
    cache: pathlib.Path
    changes: dict

    def start(
        self, devices: int, stop_after: int = 0, more: Sequence[str] = ()
    ) -> subprocess.Popen:
        """``more``: flags of one that is not alone."""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        changes = {
            "train.steps": 1_000_000,
            "train.stop_after": stop_after,
            "train.checkpoint_every": 3,
            "train.eval_every": 0,
            "model.decoder.dropout_rate": 0.1,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.01,
            **self.changes,
        }
        command = [sys.executable, "main.py", "train", f"--workdir={self.workdir}"]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command + tiny_flags(changes) + list(more),
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.parent / f"{self.workdir.name}.log"

    def first_steps(self) -> int:
        """How many processes have got through their first step."""
        return self.log.read_text().count("first step after")

    def saves(self, since: float = 0.0) -> list[str]:
        """Checkpoints that are being written, or that were when a kill came."""
        found = self.workdir.glob("checkpoints/*tmp*")
        return [path.name for path in found if path.stat().st_mtime >= since]

    def newest(self) -> int:
        found = self.workdir.glob("checkpoints/*")
        return max((int(p.name) for p in found if p.name.isdigit()), default=0)

    def go_on_to(self, step: int, devices: int) -> None:
        process = self.start(devices, step - self.newest())
        if process.wait() != 0 or self.newest() != step:
            raise SystemExit(f"no checkpoint {step}, see {self.log.read_text()}")


def kill_often(run: Run, kills: int, devices, rng, in_start: float = 0.15) -> dict:
    """Kills until it has done so often enough, each time a process that trains."""
    during_saves = starting = 0
    for number in range(kills):
        if rng.random() < in_start:
            starting += 1
            process = run.start(devices[number % len(devices)])
            time.sleep(rng.uniform(0.1, 5.0))
            process.kill()
            process.wait()
        before, begin = run.first_steps() if run.log.exists() else 0, time.time()
        process = run.start(devices[number % len(devices)])
        while run.first_steps() == before:
            assert process.poll() is None, run.log.read_text()
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, LONGEST))
        if rng.random() < 0.5:
            while not run.saves(begin) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        # One that has ended by itself would not have been killed.
        assert process.wait() == -9, run.log.read_text()
        during_saves += bool(run.saves(begin))
        print(f"kill {number + 1}: newest {run.newest()}", file=sys.stderr)
    return {"kills": kills, "in_a_save": during_saves, "and_while_starting": starting}


def read(run: Run):
    """The newest weights as saved, and the loss of each step."""
    from mlseg_jax.distributed.sharding import make_mesh
    from mlseg_jax.runs.checkpoint import Checkpoints
    from mlseg_jax.runs.workdir import load_config, load_info
    from mlseg_jax.training.state import abstract_state

    workdir = str(run.workdir)
    config, classes = load_config(workdir), load_info(workdir).num_classes
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(
        checkpoints.find(), abstract_state(config, classes, make_mesh(config))
    )
    checkpoints.close()
    lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
    losses = [(x["step"], x["loss/total"]) for x in map(json.loads, lines)]
    return {k: np.asarray(v) for k, v in state["params"].items()}, losses


def compare(unbroken, killed) -> dict:
    weights, losses = unbroken
    weights_here, losses_here = killed
    assert [step for step, _ in losses_here] == [step for step, _ in losses]
    return {
        "bitwise": all(np.array_equal(weights[k], weights_here[k]) for k in weights),
        "largest_difference_of_weights": max(
            float(np.abs(weights[k] - weights_here[k]).max()) for k in weights
        ),
        "largest_relative_difference_of_losses": max(
            abs(a - b) / abs(a)
            for (_, a), (_, b) in zip(losses, losses_here, strict=True)
        ),
    }


def main(
    kills: dict[str, tuple[int, tuple[int, ...]]],
    seed: int,
    folder: pathlib.Path,
    changes: dict | None = None,
    in_start: float = 0.15,
    rounds: int = 0,
) -> dict:
    """``kills``: by name of the run, how many and on which devices in turn.
    ``rounds``: how often each misfortune befalls a run of four processes.
    """
    rng = random.Random(seed)
    changes = changes or {}
    if rounds:
        kills = {**kills, "four_processes": (0, (1,))}
        pictures = folder / "data"
        write_pictures(pictures, tiny_flags())
        of_files = {"data.name": "folder", "data.path": pictures, "data.cache": False}
        changes = {**of_files, **changes}
    names = ("unbroken", *kills)
    runs = {n: Run(folder / n, folder / "cache", changes) for n in names}
    counts = {
        name: kill_often(runs[name], count, devices, rng, in_start)
        for name, (count, devices) in kills.items()
    }
    if rounds:
        counts["four_processes"] |= disturb(runs["four_processes"], rounds, rng)
    steps = max(run.newest() for run in runs.values()) + 4
    for name, (count, devices) in {"unbroken": (0, (1,)), **kills}.items():
        runs[name].go_on_to(steps, devices[count % len(devices)])
    unbroken = read(runs["unbroken"])
    return {"steps": steps} | {
        name: count | compare(unbroken, read(runs[name]))
        for name, count in counts.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    wanted = {
        "one_device": (arguments.kills // 3, (1,)),
        "other_devices": (arguments.kills, DEVICES),
    }
    with tempfile.TemporaryDirectory() as path:
        found = main(
            wanted, arguments.seed, pathlib.Path(path), rounds=arguments.rounds
        )
    print(json.dumps(found, indent=2))
