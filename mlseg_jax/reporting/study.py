"""Runs a set of configurations with several seeds, and what each of them cost.

Every run is a process of its own, so its time and memory are its own; a study that was
interrupted goes on where it stood, as each run does. ``study_report`` says what came
out.
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
import statistics
import threading
from collections.abc import Mapping, Sequence

from mlseg_jax.errors import UserError
from mlseg_jax.reporting.cells import check_run
from mlseg_jax.reporting.timed_process import (
    children_end_with_us,
    is_done,
    read_cost,
    run_timed,
)
from mlseg_jax.settings import recipes

Runs = dict[str, list[dict]]
"""The metrics of each row's runs, a seed each."""


class Study:
    """The runs of a study, as many at a time as there are places.

    Attributes:
      trained: groups of rows that are trained, one group with all its seeds after the
        other: ``config_file:row=ROW,size=SIZE,seed=SEED``.
      evaluated: rows that take the checkpoint of a trained one and evaluate it under
        other settings: name to (trained row, values of the configuration by key).
      first: a row that is trained once, with seed 0, before the others.
      take: what a row takes from it: values by key, from (row, its work directory).
      folder: work directory; the runs are in ``folder/ROW/seed_N``.
      num_places: runs at a time; with several, each has its share of the cores.
    """

    def __init__(
        self,
        config_file: str,
        size: str,
        trained: Sequence[Sequence[str]],
        evaluated: Mapping[str, tuple[str, Mapping[str, object]]],
        folder: str | os.PathLike,
        *,
        first: str | None = None,
        take=lambda row, workdir: {},
        num_seeds: int = 3,
        num_places: int = 1,
    ):
        self.config_file = config_file
        self.size = size
        self.trained = trained
        self.evaluated = evaluated
        self.folder = pathlib.Path(folder)
        self.first = first
        self.take = take
        self.num_seeds = num_seeds
        self._places = split_cores(num_places)
        self._lock = threading.Lock()
        self._running = set()

    def run(self, on_run=lambda name, done, total: None) -> Runs:
        """Runs what is missing; a group's rows with one seed come before the next.

        Raises:
          UserError: a run failed; its output is in its directory. The others that
            were under way are finished first.
        """
        seeds = range(self.num_seeds)
        jobs = [(row, i) for rows in self.trained for i in seeds for row in rows]
        on_run(self.first or "", 0, len(jobs))
        with children_end_with_us(self._running):
            if self.first is not None:
                self._train(self.first, 0, set().union(*self._places))
            self._run_rows(jobs, on_run)
        return self.results()

    def _run_rows(self, jobs: list[tuple[str, int]], on_run) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(len(self._places))
        try:
            futures = [pool.submit(self._run_row, *job) for job in jobs]
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                row, seed = future.result()
                on_run(f"{row}, seed {seed}", done, len(jobs))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    def results(self) -> Runs:
        """What has been measured so far; rows without a finished run are left out."""
        found = {}
        for row in (*itertools.chain(*self.trained), *self.evaluated):
            for seed in range(self.num_seeds):
                folder = self._folder(row, seed)
                if is_done(folder):
                    found.setdefault(row, []).append(read_run(folder) | {"seed": seed})
        return found

    def _folder(self, row: str, seed: int) -> pathlib.Path:
        return self.folder / row / f"seed_{seed}"

    def _run_row(self, row: str, seed: int) -> tuple[str, int]:
        """A training and the evaluations that are made of it."""
        with self._lock:
            cores = self._places.pop()
        try:
            folder = self._train(row, seed, cores)
            for name, (source, settings) in self.evaluated.items():
                output = self._folder(name, seed)
                if source == row:
                    flags = [f"--workdir={folder}", f"--output={output}"]
                    flags += flags_of(settings)
                    run_timed("evaluate", flags, output, cores, self._running)
        finally:
            with self._lock:
                self._places.append(cores)
        return row, seed

    def _train(self, row: str, seed: int, cores: set[int]) -> pathlib.Path:
        folder = self._folder(row, seed)
        config = f"{self.config_file}:row={row},size={self.size},seed={seed}"
        flags, taken = [f"--config={config}", f"--workdir={folder}"], {}
        if self.first is not None and row != self.first:
            taken = self.take(row, str(self._folder(self.first, 0)))
        run_timed("train", flags + flags_of(taken), folder, cores, self._running)
        with self._lock:  # recipes are modules for a moment
            wanted = recipes.load(config, taken)
        check_run(folder, wanted)  # It may have been finished before.
        return folder


def flags_of(values: Mapping[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def split_cores(num_places: int) -> list[set[int]]:
    """The cores of each place: all of them for one, equal shares for several.

    Empty where the system does not let one choose (it is not Linux).
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(num_places)]
    cores = sorted(os.sched_getaffinity(0))
    num_places = min(num_places, len(cores))
    return [set(cores[place::num_places]) for place in range(num_places)]


def read_run(folder: pathlib.Path) -> dict:
    """Metrics, cost, and what the charts show of ``evaluation.json``."""
    run = json.loads((folder / "metrics.json").read_text()) | read_cost(folder)
    log = folder / "metrics.jsonl"
    if log.exists():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        speeds = [line.get("train/step_seconds") for line in lines]
        speeds = [speed for speed in speeds if speed is not None]
        # The median: what else ran on the machine for a while does not count.
        run["step_seconds"] = statistics.median(speeds) if speeds else None
    details = json.loads((folder / "evaluation.json").read_text())
    shown = ("classes_per_image", "inverse_temperature", "recall_at_k")
    return run | {key: details.get(key) for key in shown}
