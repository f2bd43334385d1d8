"""Runs a set of configurations with several seeds and writes one table per question.

Every run is a process of its own, so its peak memory is its own; a study that was
interrupted goes on where it stood, as each run does.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from mlseg_jax.errors import UserError

COLUMNS = {
    # heading: (key of metrics.json or of the run, factor, digits)
    "mIoU %": ("mIoU", 100.0, 1),
    "oracle mIoU %": ("oracle_mIoU", 100.0, 1),
    "mAP %": ("mAP", 100.0, 1),
    "pixel recall@K %": ("pixel_recall_at_k", 100.0, 1),
    "seconds": ("seconds_in_all", 1.0, 0),
    "peak MiB": ("peak_bytes", 2**-20, 0),
}


def run_study(
    config_file: str,
    size: str,
    rows: Sequence[str],
    workdir: str,
    num_seeds: int = 3,
    on_run=lambda name, done, total: None,
) -> dict[str, list[dict[str, float]]]:
    """Trains what is missing; the metrics of each row's runs.

    Raises:
      UserError: a run failed; its output is in its directory.
    """
    results = {row: [] for row in rows}
    runs = [(row, seed) for seed in range(num_seeds) for row in rows]
    for i, (row, seed) in enumerate(runs):
        folder = pathlib.Path(workdir) / row / f"seed_{seed}"
        on_run(f"{row}, seed {seed}", i, len(runs))
        if not _is_done(folder):
            _run(f"{config_file}:row={row},size={size},seed={seed}", folder)
        metrics = json.loads((folder / "metrics.json").read_text())
        results[row].append(metrics | _cost(folder))
    return results


def _cost(folder: pathlib.Path) -> dict[str, float]:
    path = folder / "study.json"
    empty = {"seconds_in_all": 0.0, "peak_bytes": 0, "done": False}
    return json.loads(path.read_text()) if path.exists() else empty


def _is_done(folder: pathlib.Path) -> bool:
    return _cost(folder)["done"] and (folder / "metrics.json").exists()


def _run(config: str, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start, cost = time.perf_counter(), _cost(folder)
    command = [sys.executable, sys.argv[0], "train", f"--config={config}"]
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [*command, f"--workdir={folder}"], stdout=output, stderr=output
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            raise
    # Linux counts in KiB.
    cost["peak_bytes"] = max(cost["peak_bytes"], 1024 * usage.ru_maxrss)
    cost["seconds_in_all"] += time.perf_counter() - start
    cost["done"] = process.returncode == 0
    (folder / "study.json").write_text(json.dumps(cost))
    if not cost["done"]:
        raise UserError(
            f"A run of the study failed; read {folder}/output.txt, then run the same "
            f"command again: it goes on from there."
        )


def study_text(
    tables: Mapping[str, Sequence[str]], results: Mapping[str, list[dict]]
) -> str:
    """One table per question: mean and standard deviation over the seeds."""
    lines = []
    for title, rows in tables.items():
        lines += [f"## {title}", "", _line(["row", "K", *COLUMNS])]
        lines.append(_line(["---"] * (2 + len(COLUMNS))))
        for row in rows:
            runs = results[row]
            values = [_mean(runs, *column) for column in COLUMNS.values()]
            lines.append(_line([row, str(runs[0]["k"]), *values]))
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(runs: list[dict], key: str, factor: float, digits: int) -> str:
    values = [run.get(key) for run in runs]
    if any(value is None or not math.isfinite(value) for value in values):
        return "-"
    values = factor * np.asarray(values, np.float64)
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} +- {deviation:.{digits}f}"
