"""Training steps and predictions of `accelerator.py`, ours and PyTorch's."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import accelerator_cases as cases
import measure
import numpy as np

SECONDS = 6.0
"""How long something is measured, after it was compiled and warmed up."""


class NotHereError(Exception):
    """A part that this machine cannot do; its words are the reason."""


def peaks() -> dict:
    """Most memory that any device had in use; nothing where it does not say."""
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [each.get("peak_bytes_in_use", 0) for each in stats]
    return {"peak_bytes": max(used)} if max(used) else {}


def time_calls(call, dry: bool) -> float:
    """Seconds of one call, which returns what is waited for; the median of groups."""
    import jax

    return time_groups(call, jax.block_until_ready, dry)


def time_groups(call, wait, dry: bool) -> float:
    """As `time_calls`; ``wait`` waits for what the last call has returned."""
    wait(call())
    once = measure.seconds_of(lambda: wait(call()))
    groups = 1 if dry else 5
    count = 1 if dry else max(1, min(50, int(SECONDS / groups / max(once, 1e-6))))

    def group() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            out = call()
        wait(out)
        return (time.perf_counter() - begin) / count

    return statistics.median(group() for _ in range(groups))


def ceiling(output: pathlib.Path) -> float | None:
    """Operations a second of the bfloat16 product that `device` has measured."""
    rows = cases.read_rows(output, "device")
    return next((r["flops"] for r in rows if r["what"].startswith("bfloat16")), None)


class Step:
    """A compiled training step, its state, and a random batch that stays there."""

    def __init__(self, config, batch_per_chip: int):
        import jax

        from mlseg_jax.distributed.sharding import make_mesh, put_batch
        from mlseg_jax.models.build import FunctionalModel
        from mlseg_jax.training.state import initialise
        from mlseg_jax.training.step import example_shapes, make_train_step
        from mlseg_jax.typing import IGNORE

        self.config, num_classes = config, config.data.num_classes
        self.size = batch_per_chip * jax.device_count()
        self.model, self.mesh = FunctionalModel.build(config, num_classes), None
        self.mesh = make_mesh(config)
        random, batch = np.random.default_rng(0), {}
        for name, (shape, dtype) in example_shapes(config, num_classes).items():
            shape = (self.size, *shape)
            batch[name] = random.integers(0, 8, shape).astype(dtype)
        batch["image"] = random.integers(0, 256, batch["image"].shape, np.uint8)
        batch["image_size"][:] = batch["image"].shape[1:3]
        # Twelve labels a picture, in 64 pieces.
        height, width = batch["image"].shape[1:3]
        pieces = random.integers(0, 12, (self.size, 8, 8)).astype(np.int32)
        pieces = np.kron(pieces, np.ones((1, height // 8, width // 8), np.int32))
        classes = random.choice(num_classes, 12, replace=False).astype(np.int32)
        batch["label_map"] = classes[pieces]
        if "masks" in batch:
            batch["masks"] = pieces
            batch["segment_classes"][:] = IGNORE
            batch["segment_classes"][:, :12] = classes
        self.batch = put_batch(self.mesh, batch)
        self.state = initialise(config, num_classes, self.mesh)
        begin = time.perf_counter()
        step = make_train_step(config, self.model, self.mesh)
        self.step = step.lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch)
        return metrics

    def row(self, output: pathlib.Path, dry: bool) -> dict:
        import jax

        from mlseg_jax.models.flops import peak_flops, training_flops

        seconds = time_calls(self, dry)
        flops = training_flops(self.config, self.model) * self.size / seconds
        flops /= jax.device_count()
        row = {"batch": self.size // jax.device_count(), "seconds": seconds}
        row["images_per_second"] = row["batch"] / seconds  # of a chip
        peak, product = peak_flops(jax.devices()[0].device_kind), ceiling(output)
        row["mfu"] = flops / peak if peak else None
        row["ceiling_share"] = flops / product if product else None
        row["compile_seconds"] = self.compile_seconds
        analysis = self.step.memory_analysis()
        return row | peaks() | {"compiled_bytes": _total(analysis)}


def _total(analysis) -> int | None:
    """Bytes of a chip by the compiler, as ``plan`` adds them up."""
    if analysis is None:
        return None
    names = ("argument", "output", "temp", "generated_code")
    sizes = {n: getattr(analysis, f"{n}_size_in_bytes") for n in (*names, "alias")}
    return sum(sizes[n] for n in names) - sizes["alias"]


def with_fallback(make, batch: int):
    """``make(batch)``, or once more with half where memory runs out."""
    try:
        return make(batch), None
    except Exception as error:
        if batch == 1 or not is_out_of_memory(error):
            raise
        reason = f"{batch} images a chip ran out of memory"
    made = make(batch // 2)
    if isinstance(made, dict):
        made.pop("peak_bytes", None)  # It is that of the process, of what did not fit.
    return made, reason


def sentence(error: Exception) -> str:
    """What of it stands in the table."""
    words = str(error).strip().split("\n")[0][:400]
    return f"{type(error).__name__}: {words}"


def is_out_of_memory(error: Exception) -> bool:
    words = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
    return any(word in str(error) for word in words)


def train(case: str, output, dry) -> Iterator[dict]:
    """A training step, of label selection or the complete-label baseline."""
    name, _, classes = case.partition(" ")
    forecast = f"train {classes}" if classes else name
    planned = cases.forecast_of(output, forecast)
    config = cases.make_config(case, dry)

    def measured(batch: int) -> dict:
        return Step(config, batch).row(output, dry)

    row, fell_back = with_fallback(measured, 2 if dry else planned["batch"])
    row |= {"C": config.data.num_classes, "fell_back": fell_back}
    if case == forecast and row["batch"] == planned.get("planned_batch"):
        row["planned_bytes"] = planned["bytes"]
        row["planned_seconds"] = planned["seconds"]
    yield row


def pytorch(case: str, python: str, output, dry) -> Iterator[dict]:
    """The authors' algorithm in PyTorch, bfloat16 and compiled, on the same device; in
    a process of ``python``, for JAX and PyTorch rarely want the same CUDA libraries.
    """
    import accelerator_pytorch as theirs

    batch = 1 if dry else cases.forecast_of(output, case)["batch"]
    config = cases.make_config(case, dry)
    shapes = json.dumps(theirs.shapes_of(config, batch, dry))
    command = [python, theirs.__file__, shapes]
    environment = dict(os.environ)
    if python != sys.executable:  # Packages of this Python are not for that one.
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    row = json.loads(done.stdout.splitlines()[-1])
    if "left_out" in row:
        raise NotHereError(row["left_out"])
    if "error" in row:
        raise RuntimeError(f"in PyTorch, {row['error']}")
    yield row | {"C": config.data.num_classes}


def predict(case: str, output, dry) -> Iterator[dict]:
    """From uint8 pictures to label maps in NumPy, batches of one window each."""
    import jax

    from mlseg_jax.distributed.sharding import make_mesh
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine

    config = cases.make_config(f"train {case.split()[1]}", dry)
    num_classes = config.data.num_classes
    key = jax.random.key(0)
    make = jax.jit(lambda: initial_parameters(config, num_classes, key)[0])
    model = FunctionalModel.build(config, num_classes)
    policy = evaluation_policy(config, num_classes)

    def measured(batch: int) -> dict:
        config.eval.batch_size = batch * jax.device_count()
        engine = make_engine(config, model, make(), make_mesh(config))
        shape = (config.eval.batch_size, *config.data.crop_size, 3)
        images = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        def run():
            (results,) = engine.segment(images, [(policy, None)])
            return [segmented.label_maps() for segmented in results]

        seconds = time_calls(run, dry)
        rate = batch / seconds  # of a chip
        return {"batch": batch, "images_per_second": rate} | peaks()

    row, fell_back = with_fallback(measured, config.eval.batch_size)
    yield row | {"C": num_classes, "fell_back": fell_back}


def profile(output, dry) -> Iterator[dict]:
    """A trace of steps at C = 1,284, for XProf, and what of it takes longest."""
    import jax

    batch = 2 if dry else cases.forecast_of(output, "train 1284")["batch"]
    config = cases.make_config("train 1284", dry)
    step, _ = with_fallback(lambda size: Step(config, size), batch)
    jax.block_until_ready(step())
    with jax.profiler.trace(str(output / "profile")):
        for _ in range(3):
            out = step()
        jax.block_until_ready(out)
    (trace,) = sorted((output / "profile").rglob("*.xplane.pb"))[-1:]
    data = jax.profiler.ProfileData.from_file(str(trace))
    times: dict[str, float] = {}
    # Of all devices, which do the same: their mean.
    planes = [plane for plane in data.planes if "/device:" in plane.name]
    steps = 3 * max(1, jax.local_device_count())
    for plane in planes:
        for line in plane.lines:
            if line.name not in ("XLA Ops", "XLA Ops#0") and "Stream" not in line.name:
                continue
            for event in line.events:
                times[event.name] = times.get(event.name, 0.0) + event.duration_ns / 1e9
    for name in sorted(times, key=times.get, reverse=True)[:12]:
        yield {"operation": name[:100], "seconds_a_step": times[name] / steps}
    yield {"operation": "all", "seconds_a_step": sum(times.values()) / steps}
