"""What one sees of a run: a progress bar, a log line, event files, a JSON line each."""

import collections
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mlseg_jax.runs.trackers import open_tracker

logger = logging.getLogger(__name__)

UNFINISHED = "training.unfinished"
"""In a work directory from a training's first step to its last evaluation. Who asks
whether a run is at its end looks for it beside ``metrics.json`` (launch/slurm.sh,
reporting/timed_process.py), which `evaluate` writes of any checkpoint, at any time."""


class MetricWriter:
    """Scalars to ``metrics.jsonl``, to TensorBoard and where ``train.logger`` says; of
    one process only.
    """

    def __init__(
        self, workdir: str, start: int, config: ml_collections.ConfigDict | None = None
    ):
        """``start``: the step a run begins at; what was written after it is dropped."""
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._unfinished = epath.Path(workdir) / UNFINISHED
        self._active = jax.process_index() == 0
        self._events = self._tracker = None
        if self._active and config is not None:
            self._tracker = open_tracker(workdir, config)
        if self._active:
            events = str(epath.Path(workdir) / "events")
            self._events = SummaryWriter(events, purge_step=start + 1)
            self._keep(lambda line: line["step"] <= start)
            self._unfinished.write_text("")

    def finish(self) -> None:
        """The training is at its end, and its scores are written."""
        if self._active:
            self._unfinished.unlink(missing_ok=True)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if not self._active:
            return
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)
        if self._tracker is not None:
            self._tracker.add(step, scalars)
        line = json.dumps({"step": step, **scalars}) + "\n"
        if "://" in str(self._path):  # objects cannot be added to
            before = self._path.read_text() if self._path.exists() else ""
            self._path.write_text(before + line)
            return
        with self._path.open("a") as file:
            file.write(line)

    def forget_evaluation(self, step: int) -> None:
        """Drops the scores of a step that was just evaluated once more."""
        self._keep(lambda line: line["step"] != step or "eval/examples" not in line)

    def _keep(self, wanted: Callable[[dict], bool]) -> None:
        if not self._active or not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _is_whole(line) and wanted(json.loads(line))]
        if len(kept) < len(lines):
            part = self._path.parent / (self._path.name + ".part")
            part.write_text("".join(kept))
            part.replace(self._path)

    def close(self) -> None:
        if self._active:
            self._events.close()
        if self._tracker is not None:
            self._tracker.close()


def _is_whole(line: str) -> bool:
    """False for the line that was being written when the run was killed."""
    try:
        return line.endswith("\n") and "step" in json.loads(line)
    except json.JSONDecodeError:
        return False


def progress_bar(total: int | None, start: int, what: str, unit: str = "it") -> tqdm:
    """A bar with the time left; a line now and then where there is no terminal.

    ``unit``: what is counted. A ``total`` that is not known has no time left.
    """
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=start,
        desc=what,
        unit=unit,
        disable=jax.process_index() != 0,
        mininterval=0.5 if is_terminal else 15.0,
        dynamic_ncols=is_terminal,
        ncols=None if is_terminal else 100,
    )


class Reading(NamedTuple):
    """Of a `Stopwatch`, since the reading before.

    Attributes:
      steps: how many there were.
      seconds: they took in all.
      waiting: share of these that was spent waiting for data.
      goodput: share of all time since the beginning that steps took.
      own: seconds in which this process did not wait for its devices; where it is one
        of several, the others may have waited for it.
    """

    steps: int
    seconds: float
    waiting: float
    goodput: float
    own: float


class Stopwatch:
    """Where the time since the last reading went, and since the beginning."""

    def __init__(self):
        self._first = self._begin = time.perf_counter()
        self._waited = self._productive = self._devices = 0.0
        self._steps = 0
        self._compiled = False

    def timed(self, batches: Iterator) -> Iterator:
        """The batches, one for each step; time spent in ``next`` counts as waiting."""
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - begin
            self._steps += 1
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what is done inside."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    @contextlib.contextmanager
    def devices(self) -> Iterator[None]:
        """What is done inside waits for devices, its own and those of others."""
        begin = time.perf_counter()
        yield
        self._devices += time.perf_counter() - begin

    def read(self) -> Reading:
        """What comes before the first reading (compiling) is no step."""
        now = time.perf_counter()
        steps, seconds, waited = self._steps, now - self._begin, self._waited
        own = max(seconds - self._devices, 0.0)
        if self._compiled:
            self._productive += seconds - waited
        self._compiled = True
        self._begin, self._waited, self._steps = now, 0.0, 0
        self._devices = 0.0
        goodput = self._productive / max(now - self._first, 1e-9)
        return Reading(steps, seconds, waited / max(seconds, 1e-9), goodput, own)


def log_line(step: int, scalars: dict[str, float]) -> None:
    """The scalars of a step in the log, names shortened to what follows the slash."""
    text = "  ".join(
        f"{key.split('/')[-1]} {value:.4g}" for key, value in scalars.items()
    )
    logger.info("step %d  %s", step, text)


@contextlib.contextmanager
def compilations_logged() -> Iterator[None]:
    """Logs at the end how many programs were compiled, which of them more than once,
    the price of shapes that differ, and which took longest.
    """
    counts, times = collections.Counter(), collections.Counter()

    def listen(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counts[fun_name] += 1
            times[fun_name] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    often = [f"{name} {count} times" for name, count in counts.most_common(3)]
    longest = [f"{name} {seconds:.1f} s" for name, seconds in times.most_common(5)]
    logger.info(
        "compiled (or found in the cache) %d programs in %.1f s; most often %s; "
        "longest %s",
        counts.total(),
        times.total(),
        ", ".join(often) or "none",
        ", ".join(longest) or "none",
    )


def log_to_stderr() -> None:
    """Sends this package's log lines past the progress bar."""
    handler = _AboveBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("mlseg_jax")
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    package.propagate = False


class _AboveBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
