"""What the study of label selection plans, has found and will cost, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mlseg_jax.reporting.cells import Cell
from mlseg_jax.reporting.selection_study import SelectionStudy

SCORES = {
    # heading: score, factor, digits
    "mIoU %": ("mIoU", 100.0, 1),
    "told labels %": ("oracle_mIoU", 100.0, 1),
    "mAP %": ("mAP", 100.0, 1),
    "labels": ("labels_selected", 1.0, 1),
    "wrong pixels %": ("wrong_pixels", 100.0, 1),
    "not selected %": ("wrong_not_selected", 100.0, 1),
    "absent label %": ("wrong_absent", 100.0, 1),
}

NOTES = """\
On the {split} split; mean +- sample standard deviation over the seeds. `told
labels`: the same weights, told which labels are in the picture. Of the wrong pixels:
`not selected`, the share whose label was not selected; `absent label`, the share that
was given a label which is nowhere in the picture. `difference`: mIoU points to the row
named, seed by seed, with the 95 % interval of its mean (Student's t).
"""


class Difference(NamedTuple):
    """Mean of paired differences and half its 95 % interval; infinite of one pair."""

    mean: float
    half: float
    pairs: int


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float]
) -> Difference | None:
    """``second`` less ``first`` over the seeds that both have; None without any."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    values = np.array([second[seed] - first[seed] for seed in seeds])
    count = len(values)
    if count == 1:
        return Difference(float(values[0]), float("inf"), 1)
    error = np.std(values, ddof=1) / np.sqrt(count)
    half = float(stats.t.ppf(0.975, count - 1) * error)
    return Difference(float(values.mean()), half, count)


def plan_text(study: SelectionStudy) -> str:
    """Cells planned and done by stage, CPU hours spent, and those to come."""
    lines = [
        "| stage | cells | done | CPU hours spent | CPU hours to come |",
        "| --- | --- | --- | --- | --- |",
    ]
    found = {cell: study.found(cell) for cell in study.all_cells()}
    seen, totals = set(), np.zeros(4)
    for stage in study.rows.STAGES:
        cells = [cell for cell in study.cells(stage) if cell not in seen]
        seen.update(cells)
        done = [cell for cell in cells if found[cell]]
        spent = sum(_cpu_seconds(found[cell]) for cell in done) / 3600
        thought = study.rows.SIZES[study.rows.STAGES[stage][0]]["cpu_seconds"]
        ahead = [forecast(c, found, thought) for c in cells if not found[c]]
        row = np.array([len(cells), len(done), spent, sum(ahead) / 3600])
        totals += row
        lines.append(_plan_row(stage, row))
    return "\n".join([*lines, _plan_row("all", totals)])


def _plan_row(name: str, row: np.ndarray) -> str:
    planned, done, spent, ahead = row
    return f"| {name} | {planned:.0f} | {done:.0f} | {spent:.2f} | {ahead:.2f} |"


def forecast(cell: Cell, found: Mapping[Cell, dict | None], thought: float) -> float:
    """CPU seconds of a cell: as of its row's finished ones, else as of those of its
    size and budget, else as ``thought``.
    """
    done = {
        other: _cpu_seconds(each)
        for other, each in found.items()
        if each and (other.size, other.budget) == (cell.size, cell.budget)
    }
    same = [seconds for other, seconds in done.items() if other.row == cell.row]
    return float(np.mean(same or list(done.values()) or [thought]))


def _cpu_seconds(found: dict) -> float:
    return float(found["cost"]["cpu_seconds"])


def results_text(
    study: SelectionStudy, against: Sequence[str], *, test: bool = False
) -> str:
    """A table for each size and budget, of validation or of what was read of the test
    split; ``against``: rows to compare with.
    """
    groups = {}
    for stage, (size, budget, *_) in study.rows.STAGES.items():
        for cell in study.cells(stage):
            if found := study.found(cell, test=test):
                rows = groups.setdefault((size, budget), {})
                rows.setdefault(cell.row, {})[cell.seed] = found
    lines = [NOTES.format(split="test" if test else "validation")]
    for (size, budget), rows in groups.items():
        others = [name for name in against if name in rows]
        heads = ["row", "seeds", *SCORES, "CPU s"]
        heads += [f"difference to {name}" for name in others]
        lines += [f"## {size}, equal {budget}", "", _line(heads)]
        lines.append(_line(["---"] * len(heads)))
        lines += [_line(_row(name, rows, others)) for name in rows]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, rows: Mapping[str, Mapping[int, dict]], against) -> list[str]:
    runs = rows[name].values()
    cells = [name, str(len(runs))]
    for key, factor, digits in SCORES.values():
        cells.append(_mean([run["scores"].get(key) for run in runs], factor, digits))
    cells.append(_mean([run["cost"]["cpu_seconds"] for run in runs], 1.0, 0))
    for other in against:
        pair = None
        if other != name:
            pair = paired_difference(_points(rows[other]), _points(rows[name]))
        cells.append("-" if pair is None else _difference(pair))
    return cells


def _points(runs: Mapping[int, dict]) -> dict[int, float]:
    return {seed: 100 * run["scores"]["mIoU"] for seed, run in runs.items()}


def _difference(pair: Difference) -> str:
    if pair.pairs == 1:
        return f"{pair.mean:+.1f} (1 seed)"
    return f"{pair.mean:+.1f} +- {pair.half:.1f} ({pair.pairs} seeds)"


def _mean(values: Sequence[int | float | None], factor: float, digits: int) -> str:
    if any(value is None for value in values):
        return "-"
    values = factor * np.array(values)
    mean = f"{values.mean():.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} +- {np.std(values, ddof=1):.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
