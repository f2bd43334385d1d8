"""What all benchmarks share: timing in turns, memory of a process, machine, tables.

Needs at most NumPy, so that a process without JAX can use it too.
"""

import ctypes
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""The repository: scripts of this directory run without installing it."""

NUM_SEGMENTS = 12

MATRIX_SIDE = 2048
"""Side of the "large matrix product" that speeds are compared with."""


def use_repository() -> None:
    """Makes ``mlseg_jax``, ``configs`` and ``input_pipeline`` importable."""
    sys.path.insert(0, str(ROOT))


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call; the function must wait for its own result."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def alternate(
    functions: Mapping[str, Callable[[], float]], repetitions: int
) -> dict[str, list[float]]:
    """Runs functions that return seconds in turns, so that noise hits all alike."""
    times = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            times[name].append(function())
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


class Worker:
    """A process that does what a word a line says, and answers in JSON (`answer`).

    Each side of a comparison lives in its own; both stay alive and take turns.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | dict(environment or {}),
        )
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: a worker ended ({' '.join(self.process.args)}).")
        return json.loads(line)

    def ask(self, word: str):
        print(word, file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def answer(functions: Mapping[str, Callable[[], object]]) -> None:
    """What a `Worker`'s process does until its input ends."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(functions[line.strip()]()), flush=True)


def noise_batch(config, size: int, num_classes: int) -> dict:
    """A training batch of pictures of noise, of the size of crops; segments of models
    that find these are blocks in a grid of 8 x 8, and of `NUM_SEGMENTS` classes.
    """
    import numpy as np

    random = np.random.default_rng(0)
    shape = (size, *config.data.crop_size)
    batch = {"image": random.integers(0, 256, (*shape, 3), np.uint8)}
    if config.data.segments == "none":
        label_map = random.integers(0, num_classes, shape)
        return batch | {"label_map": label_map.astype(np.int32)}
    classes = np.full((size, config.data.max_segments), -1, np.int32)
    classes[:, :NUM_SEGMENTS] = random.choice(num_classes, NUM_SEGMENTS)
    masks = random.integers(0, NUM_SEGMENTS, (size, 8, 8)).astype(np.int32)
    block = np.ones((1, shape[1] // 8, shape[2] // 8), np.int32)
    return batch | {"segment_classes": classes, "masks": np.kron(masks, block)}


def matmul_gflops(seconds: float, side: int = MATRIX_SIDE) -> float:
    """10^9 operations a second of a square product; a multiply-accumulate is two."""
    return 2 * side**3 / seconds / 1e9


def jax_matmul(side: int = MATRIX_SIDE) -> Callable[[], float]:
    """A float32 product of two square matrices with JAX; returns seconds."""
    import jax
    import numpy as np

    a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    a, b = jax.device_put((a, b))
    product = jax.jit(jax.numpy.matmul)
    jax.block_until_ready(product(a, b))
    return lambda: seconds_of(lambda: jax.block_until_ready(product(a, b)))


def peak_rss_bytes() -> int:
    """Most memory this process ever had resident, libraries and compilation included.

    ``VmHWM`` where there is one: unlike ``ru_maxrss`` it does not start at the peak of
    the process that this one was forked from.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """To the system, what a compilation has freed; where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def machine() -> dict[str, object]:
    """Where the figures come from."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = names[0] if names else name
    affinity = getattr(os, "sched_getaffinity", None)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": name,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def print_machine(facts: Mapping[str, object]) -> None:
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of equal keys, right-aligned; numbers with four digits."""

    def text(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    header = list(rows[0])
    cells = [header] + [[text(row[key]) for key in header] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(n) for cell, n in zip(line, widths, strict=True))
        print("  ".join(padded), flush=True)


def write_json(path: str | None, result: Mapping[str, object]) -> None:
    if path:
        pathlib.Path(path).write_text(json.dumps(result, indent=2) + "\n")
