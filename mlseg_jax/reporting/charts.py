"""The charts of the report, as fragments of its template that are filled in.

``training_charts`` and ``selection_charts`` draw what ``metrics.jsonl`` and
``evaluation.json`` hold: line charts in SVG, without a script. What the charts are
made of, ``fill`` and the formatters of numbers, is what ``report`` is made of too.
"""

import contextlib
import functools
import html
import json
import math
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlseg_jax.metrics.label_recall import MAX_CLASSES_PER_IMAGE

MAX_POINTS = 240  # of one curve
EVALUATION_CURVES = ("mIoU", "PQ", "AP", "mAP")
EVALUATION_CURVES += ("pixel_recall_at_k", "image_recall_at_k")


class Html(str):
    """Text that is markup already; all other text is escaped when it is filled in."""


def training_charts(log: bytes) -> Html:
    """A chart of every value in ``metrics.jsonl``; losses and scores share one each."""
    values, broken = {}, 0
    for event in events(log):
        for key, value in event.items():
            if is_finite(value) and key != "step":
                values.setdefault(key, {})[event.get("step", 0)] = value
            broken += isinstance(value, float) and not math.isfinite(value)
    curves = {k: tuple(zip(*sorted(v.items()), strict=True)) for k, v in values.items()}
    losses = {k[5:]: curves.pop(k) for k in list(curves) if k.startswith("loss/")}
    scores = {k: curves.pop(f"eval/{k}", ((), ())) for k in EVALUATION_CURVES}
    cards = [_chart("Loss", losses, "step", zero=True)]
    cards.append(_chart("Evaluation", scores, "step", percent=True))
    for key, curve in curves.items():
        title = key.removeprefix("train/").replace("_", " ").capitalize()
        cards.append(_chart(title, {key: curve}, "step", percent="recall" in key))
    text = f"Not drawn because they are not finite: {broken:,} logged values."
    warning = fill("warning", text=text) if broken else ""
    return fill("grid", warning=warning, cards=cards)


def events(log: bytes) -> Iterator[dict]:
    """The lines of ``metrics.jsonl`` that are whole: a run that was killed has written
    a part of its last one.
    """
    for line in log.decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def selection_charts(evaluation: bytes) -> Html:
    """How many labels images have, and what K labels find, of ``evaluation.json``."""
    evaluation = json.loads(evaluation)
    k, cards = evaluation.get("k"), []
    counts = np.array(evaluation.get("classes_per_image") or [0], float)
    if counts.sum():
        cards.append(_label_counts(counts, k))
    recall = (evaluation.get("ranked", True) and evaluation.get("recall_at_k")) or {}
    curves = {f"{n} recall": (recall["k"], recall[n]) for n in recall if n != "k"}
    note = "Where the curves are flat, a smaller K is enough."
    cards.append(_chart("Recall of the best n labels", curves, "labels n", note, True))
    scale = evaluation.get("inverse_temperature") or []
    name = evaluation.get("inverse_temperature_label") or "1/tau"
    note = f"{name}: how sharply the pixel classifier tells this rank from the others."
    curve = {name: (range(1, len(scale) + 1), scale)}
    cards.append(_chart("Learned scale of each rank", curve, "rank", note))
    return fill("grid", warning="", cards=cards)


def _label_counts(counts: np.ndarray, k: int | None) -> Html:
    """Images with at most n labels, for every n that the bins can tell: the last one of
    ``LabelRecall`` also holds the images with more.
    """
    last, mark = int(np.flatnonzero(counts)[-1]), None
    is_open = last == MAX_CLASSES_PER_IMAGE
    note = f"No image has more than {last} labels; K = {k}."
    if is_open:
        most = format_percent(counts[last] / counts.sum())
        note = f"{most} of the images have {last} labels or more; K = {k}."
    if k and k <= 10 * last:  # else the line would squeeze the curve
        mark = k, f"K = {k}"
        if not is_open or k < last:
            inside = format_percent(counts[: k + 1].sum() / counts.sum())
            note = f"{inside} of the images have at most K = {k} labels."
    xs = np.arange(last if is_open else max(last, k if mark else 0) + 1)
    shares = counts.cumsum() / counts.sum()
    curve = {"images": (xs, shares[np.minimum(xs, last)])}
    title, x_label = "Images with at most n labels", "labels in the image"
    return _chart(title, curve, x_label, note, True, True, mark)


def _chart(title, curves, x_label, note="", percent=False, zero=False, mark=None):
    """A card with one line chart. ``curves``: name to (xs, ys); ``mark``: (x, text)."""
    curves = {name: np.array(c, float) for name, c in curves.items() if len(c[0])}
    if not curves:
        return Html()
    every_x, every_y = np.concatenate(list(curves.values()), axis=1)
    every_x = np.append(every_x, mark[0]) if mark else every_x
    left, right = every_x.min(), max(every_x.max(), every_x.min() + 1)
    bottom = min(0, every_y.min()) if zero else every_y.min()
    ticks = tick_values(bottom, every_y.max(), 4)
    show = format_percent if percent else format_number

    def at(x, y):
        height = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return 46 + 322 * (x - left) / (right - left), 178 - 166 * height

    lines, keys, x_ticks, y_ticks = [], [], [], []
    for t in ticks:
        text = f"{100 * t:.4g}%" if percent else format_number(t)
        y_ticks.append(fill("y tick", y=at(left, t)[1], text=text))
    for t in tick_values(left, right, 5) if right > left + 1 else [left]:
        if left <= t <= right:
            x_ticks.append(fill("x tick", x=at(t, 0)[0], text=format_number(t)))
    for i, (name, points) in enumerate(curves.items()):
        buckets = np.array_split(points, min(MAX_POINTS, points.shape[1]), axis=1)
        points = [bucket.mean(1) for bucket in buckets]
        path = "L".join("{:.1f} {:.1f}".format(*at(*p)) for p in points)
        dots = []
        for x, y in points[:: -(-len(points) // 60)]:
            text = f"{name}, {x_label} {format_number(x)}: {show(y)}"
            dots.append(fill("dot", x=at(x, y)[0], y=at(x, y)[1], text=text))
        kind = "hit" if len(points) > 12 else ""  # dots that appear under the pointer
        lines.append(fill("line", colour=i % 6, kind=kind, path=path, dots=dots))
        last = show(points[-1][1])
        keys.append(fill("chart key", colour=i % 6, name=name, value=last))
    if mark:
        x = at(mark[0], 0)[0]
        side, dx = ("end", -6) if x > 207 else ("start", 6)
        lines.append(fill("mark", x=x, dx=dx, side=side, text=mark[1]))
    note = fill("chart note", text=note) if note else ""
    keys = fill("chart legend", keys=keys) if len(keys) > 1 else ""
    svg = [*y_ticks, *x_ticks, *lines]
    return fill("chart", title=title, note=note, legend=keys, x_label=x_label, svg=svg)


def tick_values(low: float | int, high: float | int, count: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that enclose low..high."""
    spread = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(spread / count))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * count >= spread * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [float(f"{n * step:.9g}") for n in range(first, max(last, first + 1) + 1)]


@functools.cache
def fragments() -> dict[str, string.Template]:
    """The parts of ``template.html`` by name, in the order of the file."""
    text = (Path(__file__).parent / "template.html").read_text("utf-8")
    page, *rest = text.split("<!-- fragment: ")
    pairs = [part.split(" -->\n", 1) for part in rest]
    rest = {name: string.Template(body.strip()) for name, body in pairs}
    return {"page": string.Template(page), **rest}


def fill(fragment: str, **values) -> Html:
    """A fragment of the template with its values: text, numbers, Html, or lists."""
    shown = {name: _escape(value) for name, value in values.items()}
    return Html(fragments()[fragment].substitute(shown))


def _escape(value) -> str:
    if isinstance(value, list):
        return "".join(_escape(part) for part in value)
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return value if isinstance(value, Html) else html.escape(text)


def is_finite(value) -> bool:
    """True for a number that can be drawn: no None, text, NaN or infinity."""
    return isinstance(value, int | float) and math.isfinite(value)


def format_percent(value) -> str:
    """A fraction in 0..1 as text; a dash for what is not a finite number."""
    if not is_finite(value):
        return "–"
    return "<0.1%" if 0 < value < 5e-4 else f"{100 * value:.1f}%"


def format_number(value: float | int) -> str:
    """Four digits with k, M or G, or a power of ten for the very small."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    if 0 < abs(value) < 1e-3:
        return (
            f"{value:.2e}".replace("0e", "e").replace(".0e", "e").replace("e-0", "e-")
        )
    return f"{value:.4g}"
