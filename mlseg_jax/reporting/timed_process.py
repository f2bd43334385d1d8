"""One command of the program in a process of its own, and what it cost in all."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from etils import epath

from mlseg_jax.errors import UserError
from mlseg_jax.runs.checkpoint import write_json
from mlseg_jax.runs.progress import UNFINISHED
from mlseg_jax.training.watch import resident_bytes

COST_FILE = "study.json"


def run_timed(
    command: str,
    flags: list[str],
    folder: pathlib.Path,
    cores: set[int],
    running: set[int],
) -> None:
    """Runs ``main.py COMMAND FLAGS`` on some cores, unless its folder has results.

    Its output is appended to ``output.txt`` in the folder; what all tries together
    cost is in ``study.json``. ``running`` has its process id while it runs.

    Raises:
      UserError: it failed.
    """
    if is_done(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    start, cost = time.perf_counter(), read_cost(folder)
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, sys.argv[0], command, *flags],
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C in a terminal is for us, who tell it to save
        )
    interrupted = None
    try:
        running.add(process.pid)
        if cores:  # before the process counts those it may use
            os.sched_setaffinity(process.pid, cores)
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt as error:  # what it has cost until then counts, too
        interrupted = error
        os.kill(process.pid, signal.SIGTERM)  # it saves where it is
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    running.discard(process.pid)
    cost["peak_bytes"] = max(cost["peak_bytes"], resident_bytes(usage))
    cost["wall_seconds"] += time.perf_counter() - start
    cost["cpu_seconds"] += usage.ru_utime + usage.ru_stime
    cost["done"] = process.returncode == 0
    write_json(epath.Path(folder) / COST_FILE, cost)
    if interrupted is not None:
        raise interrupted
    if not cost["done"]:
        raise UserError(
            f"A run of the study failed; read {folder}/output.txt, then run the "
            f"same command again: it goes on from there."
        )


@contextlib.contextmanager
def children_end_with_us(running: set[int]) -> Iterator[None]:
    """Told to end, or left by its terminal, a study tells its runs, which save where
    they are; for they are in groups of their own (`run_timed`).
    """

    def end(number, frame):
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            before[number] = signal.signal(number, end)
    try:
        yield
    except BaseException:
        for process_id in list(running):
            os.kill(process_id, signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_done(folder: pathlib.Path) -> bool:
    is_evaluated = (folder / "metrics.json").exists()
    is_ended = is_evaluated and not (folder / UNFINISHED).exists()
    return read_cost(folder)["done"] and is_ended


def read_cost(folder: pathlib.Path) -> dict[str, float]:
    path = folder / COST_FILE
    empty = {"wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0, "done": False}
    return json.loads(path.read_text()) if path.exists() else empty
