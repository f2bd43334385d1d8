"""What came out of a study: tables in Markdown, and one picture."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlseg_jax.metrics.label_recall import MAX_CLASSES_PER_IMAGE
from mlseg_jax.reporting.study import Runs

COLUMNS = {
    # heading: key of a run, factor, digits
    "labels": ("labels_selected", 1.0, 1),
    "mIoU %": ("mIoU", 100.0, 1),
    "oracle mIoU %": ("oracle_mIoU", 100.0, 1),
    "mAP %": ("mAP", 100.0, 1),
    "pixel recall %": ("pixel_recall_at_k", 100.0, 1),
    "wrong pixels %": ("wrong_pixels", 100.0, 1),
    "not selected %": ("wrong_not_selected", 100.0, 1),
    "ms a step": ("step_seconds", 1000.0, 0),
    "CPU s": ("cpu_seconds", 1.0, 0),
    "wall s": ("wall_seconds", 1.0, 0),
    "peak MiB": ("peak_bytes", 2**-20, 0),
}

NOTES = """\
Mean +- sample standard deviation over the seeds. `labels`: selected for a picture
in evaluation, on average. `oracle mIoU`: of the same weights, told which labels are in
the picture. `pixel recall`: mean over the pictures of the share of their pixels whose
label was selected for the picture. `not selected`: of the wrong pixels the share whose
label was not selected, so that no classifier of pixels could have found it. `ms a
step`: median over the training. CPU and wall seconds and peak memory are those of the
whole process, with its start, compiling (what an earlier run compiled is found again)
and evaluation; where a row is only evaluated, of that evaluation.
"""


def study_text(
    tables: Mapping[str, Sequence[str]], chain: Sequence[str], runs: Runs
) -> str:
    """One table per question, and what the gap between baseline and oracle is made of.

    ``tables``: title to rows. ``chain``: rows that each differ from the one before in
    one thing. Rows that were not run are left out.
    """
    lines = [NOTES]
    for title, rows in tables.items():
        body = [
            [row, str(len(runs[row])), *map(_cell(runs[row]), COLUMNS)]
            for row in rows
            if row in runs
        ]
        lines += _table(title, ["row", "seeds", *COLUMNS], body)
    chain = [row for row in chain if row in runs]
    steps = list(zip(chain, chain[1:], strict=False))
    if len(steps) > 1:
        steps.append((chain[0], chain[-1]))
    gains = [_gains(runs[first], runs[second]) for first, second in steps]
    body = [
        [*step, str(len(gain)), _mean(gain, 1)]
        for step, gain in zip(steps, gains, strict=True)
        if gain
    ]
    heads = ["from", "to", "seeds", "points of mIoU, same seed"]
    return "\n".join(lines + _table("From the baseline to the oracle", heads, body))


def _cell(runs: list[dict]):
    def cell(heading: str) -> str:
        key, factor, digits = COLUMNS[heading]
        values = [run.get(key) for run in runs]
        if any(value is None for value in values):
            return "-"
        return _mean([factor * value for value in values], digits)

    return cell


def _gains(first: list[dict], second: list[dict]) -> list[float]:
    """Points of mean IoU from one row to another, for each seed that both have."""
    before = {run["seed"]: run["mIoU"] for run in first}
    return [
        100 * (run["mIoU"] - before[run["seed"]])
        for run in second
        if run["seed"] in before
    ]


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} +- {np.std(values, ddof=1):.{digits}f}"


def _table(title: str, heads: Sequence[str], body: list[list[str]]) -> list[str]:
    rows = [heads, ["---"] * len(heads), *body]
    return [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


# ------------------------------------------------------------------------- pictures


def draw_study(
    bars: Mapping[str, str], row: str, runs: Runs, path: pathlib.Path
) -> None:
    """Figures 2, 3 and 7 of the paper side by side, as a PNG.

    ``bars``: rows whose mean IoU is compared, and their names; ``row``: whose label
    recall and scales of the ranks are drawn. What was not run is left out.
    """
    # Without pyplot, which keeps figures and may ask for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 3.8), layout="constrained")
    labels, scores, scales = figure.subplots(1, 3)
    if row in runs:
        _draw_labels(labels, runs[row])
        _draw_scales(scales, runs[row])
    _draw_scores(scores, {name: runs[r] for r, name in bars.items() if r in runs})
    for axes in (labels, scores, scales):
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def _draw_labels(axes, runs: list[dict]) -> None:
    counts = np.sum([run["classes_per_image"] for run in runs], axis=0)
    images = 100 * np.cumsum(counts) / np.sum(counts)
    curve = {
        name: 100 * np.mean([run["recall_at_k"][name] for run in runs], axis=0)
        for name in ("pixel", "image")
    }
    ranks = np.arange(len(curve["pixel"]) + 1)
    known = ranks[:MAX_CLASSES_PER_IMAGE]  # The last bin is open.
    axes.plot(known, images[known], label="pictures with at most n labels")
    for name, of in (("pixel", "pixels"), ("image", "labels")):
        axes.plot(ranks[1:], curve[name], label=f"{of} that the n best labels find")
    axes.set(title="Figure 2: n labels", xlabel="n", ylabel="%", ylim=(0, 102))
    axes.legend(loc="lower right", fontsize="small")


def _draw_scores(axes, runs: Mapping[str, list[dict]]) -> None:
    values = [[100 * run["mIoU"] for run in row] for row in runs.values()]
    means = [np.mean(v) for v in values]
    spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
    places = range(len(runs))
    axes.bar(places, means, yerr=spread, capsize=4, width=0.65)
    for place, mean, deviation in zip(places, means, spread, strict=True):
        axes.text(place, mean + deviation + 0.6, f"{mean:.1f}", ha="center")
    axes.set_xticks(places, runs, fontsize="x-small")
    axes.set_ylim(top=1.12 * max(means, default=1.0) + 1.0)
    axes.set(title="Figure 3: mean IoU", ylabel="%")


def _draw_scales(axes, runs: list[dict]) -> None:
    scales = np.asarray([run["inverse_temperature"] for run in runs])
    ranks, mean = np.arange(1, scales.shape[1] + 1), np.mean(scales, axis=0)
    (line,) = axes.plot(ranks, mean, marker=".")
    low, high = np.min(scales, axis=0), np.max(scales, axis=0)
    axes.fill_between(ranks, low, high, color=line.get_color(), alpha=0.2)
    axes.set(title="Figure 7: learned scale 1 / tau", xlabel="rank")
