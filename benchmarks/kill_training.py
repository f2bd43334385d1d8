"""Kills a training at random moments and resumes it on other devices, many times.

    python benchmarks/kill_training.py --kills=30

Trains a small model once without a break on one device. Then it trains it again, kills
that process (SIGKILL) at random moments, saves of checkpoints included, and resumes
each time on the next of 1, 2, 4 and 8 fake devices. Another run is killed a third as
often and resumed on one device alone. In the end the weights of the latter must be
bitwise those of the unbroken run, those of the former within 1e-5, and the losses of
all steps the same: no example was seen twice or missed. Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import tiny_flags  # noqa: E402

DEVICES = (1, 2, 4, 8)


def start(workdir, steps: int, devices: int, cache, log) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    changes = {
        "train.steps": steps,
        "train.checkpoint_every": 3,
        "model.decoder.dropout_rate": 0.1,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
    }
    command = [sys.executable, "main.py", "train", f"--workdir={workdir}"]
    return subprocess.Popen(
        command + tiny_flags(changes), cwd=ROOT, env=environment, stdout=log, stderr=log
    )


def saved_steps(workdir) -> set[str]:
    folder = workdir / "checkpoints"
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    return {name for name in names if not name.endswith("json")}


def run_to_the_end(workdir, steps, devices, cache) -> None:
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        process = start(workdir, steps, devices, cache, log)
        if process.wait() != 0:
            raise SystemExit(f"the run in {workdir} failed, see {log.name}")


def kill_often(workdir, steps, kills, devices, cache, rng) -> dict[str, int]:
    """Kills until it has done so often enough; then lets the run end."""
    during_saves = early = real = 0
    for number in range(kills):
        before = saved_steps(workdir)
        with (workdir.parent / f"{workdir.name}.log").open("a") as log:
            process = start(workdir, steps, devices[number % len(devices)], cache, log)
            # Mostly once it has saved something; now and then in its start.
            if rng.random() < 0.15:
                early += 1
                time.sleep(rng.uniform(0.1, 10.0))
            else:
                while saved_steps(workdir) <= before and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.6)]))
            process.kill()
            # One that has ended by itself was not killed.
            real += process.wait() != 0
        during_saves += any("tmp" in name for name in saved_steps(workdir))
        done = [int(name) for name in saved_steps(workdir) if name.isdigit()]
        print(f"kill {number + 1}: newest {max(done, default=0)}", file=sys.stderr)
    run_to_the_end(workdir, steps, devices[kills % len(devices)], cache)
    return {"kills": real, "in_a_save": during_saves, "while_starting": early}


def read(workdir):
    """The final weights as saved, and the loss of each step."""
    from mlseg_jax.checkpoint import Checkpoints
    from mlseg_jax.sharding import make_mesh
    from mlseg_jax.train_state import abstract_state
    from mlseg_jax.workdir import load_config, load_info

    config = load_config(str(workdir))
    checkpoints = Checkpoints(str(workdir))
    state = checkpoints.restore(
        checkpoints.find(),
        abstract_state(config, load_info(str(workdir)).num_classes, make_mesh(config)),
    )
    checkpoints.close()
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    losses = [(x["step"], x["loss/total"]) for x in lines if "loss/total" in x]
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


def main(kills: int, steps: int, seed: int, folder: str) -> dict:
    os.environ["JAX_PLATFORMS"] = "cpu"
    root, rng = pathlib.Path(folder), random.Random(seed)
    run_to_the_end(root / "unbroken", steps, 1, root / "cache")
    found = {"steps": steps}
    runs = {
        "one_device": (max(1, kills // 3), (1,)),
        "other_devices": (kills, DEVICES),
    }
    counts = {
        name: kill_often(root / name, steps, count, devices, root / "cache", rng)
        for name, (count, devices) in runs.items()
    }
    unbroken = read(root / "unbroken")
    for name, count in counts.items():
        found[name] = count | compare(unbroken, read(root / name))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--steps", type=int, default=0, help="default: 12 for each kill"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        steps = arguments.steps or 12 * arguments.kills
        print(json.dumps(main(arguments.kills, steps, arguments.seed, path), indent=2))
