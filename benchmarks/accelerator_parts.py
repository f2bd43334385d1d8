"""The parts of `accelerator.py`, each run by a process of its own.

    python benchmarks/accelerator_parts.py [--dry] "train 1284" DIR

A part is a generator of rows; each row is written to ``DIR/parts/`` as it comes, and
what it raises becomes the part's sentence. JAX is imported within the parts: some leave
the device to a process that they start.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

import accelerator_cases as cases
import accelerator_parity as parity_cases
import accelerator_steps as steps
import measure
import numpy as np


def device(output, dry) -> Iterator[dict]:
    """What is there, and its matrix product: the ceiling of everything else."""
    import jax
    import jax.numpy as jnp

    from mlseg_jax.models.flops import peak_flops

    kind = jax.devices()[0].device_kind
    stats = jax.devices()[0].memory_stats() or {}
    yield {
        "what": "device",
        "kind": kind,
        "count": jax.device_count(),
        "platform": jax.default_backend(),
        "memory_bytes": stats.get("bytes_limit"),
        "jax": jax.__version__,
        "runtime": jax.devices()[0].client.platform_version.split("\n")[0],
        "peak_flops": peak_flops(kind),
    }
    side = 128 if dry else 8192
    for dtype, precision in (
        ("bfloat16", None),
        ("float32", None),
        ("float32", "highest"),
    ):
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        seconds = steps.time_calls(lambda f=product, x=a, y=b: f(x, y), dry)
        name = dtype if precision is None else f"{dtype}, {precision} precision"
        yield {"what": f"{name} product of {side}", "flops": 2 * side**3 / seconds}


def parity(output, dry) -> Iterator[dict]:
    """Attention and the demo's model against the same on the processor."""
    reference = output / "parts" / "reference.npz"
    command = [sys.executable, parity_cases.__file__, str(reference)]
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu"}
    reference.unlink(missing_ok=True)
    subprocess.run([*command, *["--dry"] * dry], env=environment, check=True)
    with np.load(reference) as expected:
        yield from parity_cases.compare(expected, dry)


def forecast(output, dry) -> Iterator[dict]:
    """Memory and time of the steps by ``plan``, and the batch that follows."""
    rows = cases.read_rows(output, "device")
    found = next((r for r in rows if r["what"] == "device"), None)
    if found is None:
        raise steps.NotHereError("The device could not be asked what it is.")
    name = cases.topology_name(found["kind"], found["count"], dry)
    from mlseg_jax.planning import plan, topologies

    topology = topologies.parse_topology(name)
    topologies.prepare(topology)
    usable = found["memory_bytes"] or topology.usable_memory
    for case in cases.CASES[: 1 if dry else None]:
        batch = 2 if dry else cases.BATCH
        config = cases.make_config(case, dry)
        made = plan.plan(config, topology, batch, with_predict=False)
        total = made.train.memory.total
        yield {
            "case": case,
            "topology": name,
            "planned_batch": batch,
            "batch": cases.fitting_batch(batch, total, usable),
            "bytes": total,
            "seconds": made.train.seconds.get("step"),
            "compile_seconds": made.train.compile_seconds,
        }


def input_pipeline(output, dry) -> Iterator[dict]:
    """The step of C = 150 fed with JPEG files of 640x480 by all cores."""
    import input as pictures
    import throughput

    from input_pipeline.datasets.open import open_dataset
    from mlseg_jax.models.build import FunctionalModel

    folder = output / "parts" / "pictures"
    if not (folder / "classes.txt").exists():
        pictures.write_pictures(folder)
    config = cases.make_config("train 150", dry)
    threads = len(os.sched_getaffinity(0))
    with config.unlocked():
        config.data.update(name="folder", path=str(folder), num_threads=threads)
        config.data.update(base_size=(4 * cases.SIDE, cases.SIDE), num_classes=150)
        batch = 2 if dry else cases.forecast_of(output, "train 150")["batch"]
        config.train.batch_size = batch
    source = open_dataset(config.data, train=True)
    model = FunctionalModel.build(config, 150)
    import jax

    config.train.batch_size *= jax.device_count()
    training = throughput.Training(config, model, source, 2 if dry else 10)
    for feed in (training.fixed, training.fed):
        feed()  # compiles, fills queues
    training.waits.clear()
    rates = {}
    for name, feed in (("on the device", training.fixed), ("fed", training.fed)):
        seconds = statistics.median(feed() for _ in range(1 if dry else 3))
        rates[name] = config.train.batch_size / seconds
        yield {"what": name, "images_per_second": rates[name], "threads": threads}
    yield {"what": "share of the time waiting", "share": training.waits[-1]}


def demo(output, dry) -> Iterator[dict]:
    """`make demo`'s training, to its score; by the program, as a user runs it."""
    root, workdir = measure.ROOT, output / "parts" / "demo"
    command = [sys.executable, "main.py", "train", "--config=configs/demo.py"]
    shutil.rmtree(workdir, ignore_errors=True)
    command += [f"--workdir={workdir}"]
    if dry:
        small = {"train.steps": 2, "data.train_examples": 16, "data.eval_examples": 4}
        small |= {"model.backbone.depth": 1, "model.decoder.depth": 1}
        command += [f"--config.{key}={value}" for key, value in small.items()]
    begin = time.perf_counter()
    subprocess.run(command, cwd=root, check=True)
    seconds = time.perf_counter() - begin
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    scores = [json.loads(line) for line in lines if "eval/mIoU" in line]
    row = {"seconds": seconds, "mIoU": scores[-1]["eval/mIoU"]}
    yield row | {"oracle_mIoU": scores[-1].get("eval/oracle_mIoU")}


def find(name: str, torch_python: str):
    """The function of a part, of ``(output, dry)``."""
    first, _, classes = name.partition(" ")
    if first == "pytorch":
        return functools.partial(steps.pytorch, f"train {classes}", torch_python)
    if first == "predict":
        return functools.partial(steps.predict, name)
    if first == "input":
        return input_pipeline
    whole = (device, parity, forecast, demo, steps.profile)
    named = {function.__name__: function for function in whole}
    return named.get(first) or functools.partial(steps.train, name)


def run(
    name: str, output: pathlib.Path, dry: bool, torch_python: str = sys.executable
) -> dict:
    """Writes the rows of a part as they come, and its sentence if it fails."""
    path = output / "parts" / f"{name.replace(' ', '_')}.json"
    result: dict = {"rows": []}

    def write() -> None:
        part = path.with_suffix(".part")
        measure.write_json(str(part), result)
        part.replace(path)

    try:
        for row in find(name, torch_python)(output, dry):
            result["rows"].append(row)
            write()
    except steps.NotHereError as reason:
        result["left_out"] = str(reason)
    except Exception as error:
        result["error"] = steps.sentence(error)
        traceback.print_exc()
    write()
    return result


def quick_to_compile() -> dict[str, str]:
    """Of the environment, for the processor: as `tests/conftest.py`, which says why."""
    flags = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
        flags += " --xla_cpu_parallel_codegen_split_count=1"
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "XLA_FLAGS": flags,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    if args.dry:
        os.environ |= quick_to_compile()
    run(args.part, args.output, args.dry, args.torch_python)
