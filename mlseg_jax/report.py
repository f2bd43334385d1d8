"""One self-contained HTML page about a run: scores, pictures, labels, errors, curves.

Pure rendering of the files that ``train`` and ``evaluate`` left in the working
directory: no model, no network, no script in the page. A missing file costs one
section, which then says which command writes it. Scores are fractions in 0..1.
``report_template.html`` holds the page, its style and the fragments filled in here.
"""

import base64
import functools
import html
import io
import json
import math
import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from etils import epath

from mlseg_jax import visualise

MAX_EXAMPLES = 12
MAX_PICTURE_SIDE = 512
MAX_PNG_BYTES = 90_000  # photographs, and label maps of noise, become JPEGs
MAX_CHIPS = 14
MAX_POINTS = 240  # of one curve
RANKED_EXAMPLES, RANKED_BARS = 3, 12
WORST_CLASSES = 20
EVALUATION_CURVES = ("mIoU", "mAP", "pixel_recall_at_k", "image_recall_at_k")


def write_report(workdir: str | epath.Path) -> epath.Path:
    """Renders ``workdir/report.html`` and returns its path.

    Reads ``metrics.json`` (required), ``config.json``, ``metrics.jsonl``,
    ``evaluation.json`` and ``evaluation_examples.npz``.

    Raises:
      FileNotFoundError: if ``metrics.json`` is missing; it names the command to run.
    """
    workdir = epath.Path(workdir)
    place = f"--workdir={shlex.quote(str(workdir))}"
    evaluate = f"python main.py evaluate {place}"
    train = f"python main.py train --config=... {place}"
    if not (workdir / "metrics.json").exists():
        raise FileNotFoundError(
            f"{workdir} has no metrics.json: run `{evaluate}` first."
        )

    def section(file: str, command: str, render) -> Html | list[Html]:
        if (workdir / file).exists():
            return render((workdir / file).read_bytes())
        return _fill("missing", file=file, command=command)

    examples, evaluation = "evaluation_examples.npz", "evaluation.json"
    metrics = json.loads((workdir / "metrics.json").read_text())
    config = {}
    if (workdir / "config.json").exists():
        config = _flatten(json.loads((workdir / "config.json").read_text()))
    known = {f"{k}.name": v for k, v in config.items()} | config | metrics
    page = _fill(
        "page",
        title=config.get("name") or workdir.name,
        facts=_tiles(known, "fact"),
        tiles=_tiles(known, "tile"),
        examples=section(examples, evaluate, _examples),
        ranked=section(examples, evaluate, _ranked),
        selection=section(evaluation, evaluate, _selection),
        errors=[_wrong_pixels(metrics), section(evaluation, evaluate, _worst)],
        training=section("metrics.jsonl", train, _curves),
        settings=section(
            "config.json", train, lambda _: _keys("Configuration", config)
        ),
        scores=_keys("Every score of the evaluation", metrics),
        workdir=workdir,
        correct=_css(visualise.CORRECT_COLOUR),
        confused=_css(visualise.CONFUSED_COLOUR),
        not_selected=_css(visualise.NOT_SELECTED_COLOUR),
        ignore=_css(visualise.IGNORE_COLOUR),
    )
    (workdir / "report.html").write_bytes(page.encode())
    return workdir / "report.html"


class Html(str):
    """Text that is markup already; all other text is escaped when it is filled in."""


@functools.cache
def _fragments() -> dict[str, string.Template]:
    text = (Path(__file__).parent / "report_template.html").read_text("utf-8")
    page, *rest = text.split("<!-- fragment: ")
    pairs = [part.split(" -->\n", 1) for part in rest]
    fragments = {name: string.Template(body.strip()) for name, body in pairs}
    return {"page": string.Template(page), **fragments}


def _fill(fragment: str, **values) -> Html:
    """A fragment of the template with its values: text, numbers, Html, or lists."""
    shown = {name: _escape(value) for name, value in values.items()}
    return Html(_fragments()[fragment].substitute(shown))


def _escape(value) -> str:
    if isinstance(value, list):
        return "".join(_escape(part) for part in value)
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return value if isinstance(value, Html) else html.escape(text)


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _css(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(value) -> str:
    if not _finite(value):
        return "–"
    return "<0.1%" if 0 < value < 5e-4 else f"{100 * value:.1f}%"


def _number(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _tiles(known: Mapping, kind: str) -> list[Html]:
    """Every fragment "KIND KEY" of the template whose key is known, in its order."""
    values, oracle, tiles = dict(known), known.get("oracle_mIoU"), []
    if _finite(oracle) and _finite(known.get("mIoU")):
        values["oracle_gap"] = oracle - known["mIoU"]
    for key in (f.split()[1] for f in _fragments() if f.startswith(kind)):
        value = values.get(key)
        if kind == "tile" and _finite(value):
            counted = key in ("images_per_second", "parameters")
            shown = _number(value) if counted else f"{100 * value:.1f}"
        elif kind == "fact" and value is not None:
            shown = f"{value:,}" if isinstance(value, int) else value
        else:
            continue
        k, reached = known.get("k") or "K", _percent(oracle)
        tiles.append(_fill(f"{kind} {key}", value=shown, k=k, oracle=reached))
    return tiles


def _keys(title: str, values: Mapping) -> Html:
    rows = [_fill("keys row", key=k, value=repr(v)) for k, v in values.items()]
    return _fill("keys", title=title, rows=rows)


def _chart(title, curves, x_label, note="", percent=False, zero=False, mark=None):
    """A card with one line chart. ``curves``: name to (xs, ys); ``mark``: (x, text)."""
    curves = {name: np.array(c, float) for name, c in curves.items() if len(c[0])}
    if not curves:
        return Html()
    every_x, every_y = np.concatenate(list(curves.values()), axis=1)
    every_x = np.append(every_x, mark[0]) if mark else every_x
    left, right = every_x.min(), max(every_x.max(), every_x.min() + 1)
    ticks = _ticks(min(0, every_y.min()) if zero else every_y.min(), every_y.max(), 4)
    show = _percent if percent else _number

    def at(x, y):
        height = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return 46 + 322 * (x - left) / (right - left), 178 - 166 * height

    lines, keys, x_ticks, y_ticks = [], [], [], []
    for t in ticks:
        text = f"{100 * t:.4g}%" if percent else _number(t)
        y_ticks.append(_fill("y tick", y=at(left, t)[1], text=text))
    for t in _ticks(left, right, 5):
        if left <= t <= right:
            x_ticks.append(_fill("x tick", x=at(t, 0)[0], text=_number(t)))
    for i, (name, points) in enumerate(curves.items()):
        buckets = np.array_split(points, min(MAX_POINTS, points.shape[1]), axis=1)
        points = [bucket.mean(1) for bucket in buckets]
        path = "L".join("{:.1f} {:.1f}".format(*at(*p)) for p in points)
        dots = []
        for x, y in points[:: -(-len(points) // 60)]:
            text = f"{name}, {x_label} {_number(x)}: {show(y)}"
            dots.append(_fill("dot", x=at(x, y)[0], y=at(x, y)[1], text=text))
        kind = "hit" if len(points) > 12 else ""  # dots that appear under the pointer
        lines.append(_fill("line", colour=i % 6, kind=kind, path=path, dots=dots))
        last = show(points[-1][1])
        keys.append(_fill("chart key", colour=i % 6, name=name, value=last))
    if mark:
        x = at(mark[0], 0)[0]
        side, dx = ("end", -6) if x > 207 else ("start", 6)
        lines.append(_fill("mark", x=x, dx=dx, side=side, text=mark[1]))
    note = _fill("chart note", text=note) if note else ""
    keys = _fill("chart legend", keys=keys) if len(keys) > 1 else ""
    svg = [*y_ticks, *x_ticks, *lines]
    return _fill("chart", title=title, note=note, legend=keys, x_label=x_label, svg=svg)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that enclose low..high."""
    spread = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(spread / count))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * count >= spread * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [float(f"{n * step:.9g}") for n in range(first, max(last, first + 1) + 1)]


def _curves(log: bytes) -> Html:
    values, broken = {}, 0
    for line in log.decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        for key, value in event.items():
            if _finite(value) and key != "step":
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
    text = f"{broken:,} logged values were not finite and are not drawn."
    warning = _fill("warning", text=text) if broken else ""
    return _fill("grid", warning=warning, cards=cards)


def _selection(evaluation: bytes) -> Html:
    evaluation = json.loads(evaluation)
    k, cards = evaluation.get("k"), []
    counts = np.array(evaluation.get("classes_per_image") or [0], float)
    if counts.sum():
        last, mark = int(np.flatnonzero(counts)[-1]), None
        note = f"No image has more than {last} labels."
        if k and k <= 4 * last:  # else the line would squeeze the curve
            counts, mark = np.append(counts, np.zeros(k)), (k, f"K = {k}")
            inside = counts[: k + 1].sum() / counts.sum()
            note = f"{_percent(inside)} of the images have at most K = {k} labels."
        xs = np.arange(max(last, k if mark else 0) + 1)
        curve = {"images": (xs, (counts.cumsum() / counts.sum())[xs])}
        title, x_label = "Images with at most n labels", "labels in the image"
        cards.append(_chart(title, curve, x_label, note, True, True, mark))
    recall = evaluation.get("recall_at_k") or {}
    curves = {f"{n} recall": (recall["k"], recall[n]) for n in recall if n != "k"}
    note = "Where the curves are flat, a smaller K is enough."
    cards.append(_chart("Recall of the best n labels", curves, "labels n", note, True))
    scale = evaluation.get("inverse_temperature") or []
    name = evaluation.get("inverse_temperature_label") or "1/tau"
    note = f"{name}: how sharply the pixel classifier tells this rank from the others."
    curve = {name: (range(1, len(scale) + 1), scale)}
    cards.append(_chart("Learned scale of each rank", curve, "rank", note))
    return _fill("grid", warning="", cards=cards)


def _wrong_pixels(metrics: Mapping) -> Html:
    lost, confused = metrics.get("wrong_not_selected"), metrics.get("wrong_confused")
    if not (_finite(lost) and _finite(confused) and lost + confused > 0):
        return Html()
    part, accuracy = lost / (lost + confused), metrics.get("pixel_accuracy")
    wrong = _percent(1 - accuracy) if _finite(accuracy) else "–"
    text = {"wrong": wrong, "lost": _percent(part), "confused": _percent(1 - part)}
    parts = {"lost_part": 100 * part, "confused_part": 100 * (1 - part)}
    return _fill("wrong pixels", **text, **parts)


def _worst(evaluation: bytes) -> Html:
    classes = json.loads(evaluation)["classes"]
    scored = [c for c in classes if _finite(c["iou"])]
    worst = sorted(scored, key=lambda c: (c["iou"], -c["pixel_share"]))[:WORST_CLASSES]
    rows, shares = [], ("iou", "average_precision", "pixel_share")
    for c in worst:
        text = {"name": c["name"], "examples": f"{c['examples']:,}"}
        text |= {share: _percent(c[share]) for share in shares}
        rows.append(_fill("worst row", width=100.0 * c["iou"], **text))
    sizes = {"scored": f"{len(scored):,}", "complete": f"{len(classes):,}"}
    return _fill("worst", count=len(worst), rows=rows, **sizes)


def _load(archive: bytes, count: int) -> tuple[list[dict], list[str]]:
    kinds = "image truth prediction label_ids label_scores label_selected".split()
    with np.load(io.BytesIO(archive)) as arrays:
        indices = sorted(int(n[6:]) for n in arrays.files if n.startswith("image_"))
        examples = [{n: arrays[f"{n}_{i}"] for n in kinds} for i in indices[:count]]
        return examples, arrays["names"].tolist()


def _picture(pixels: np.ndarray, alt: str, side: int, photo: bool) -> Html:
    scale = min(1, side / max(pixels.shape[:2]))
    size = [max(1, round(n * scale)) for n in pixels.shape[1::-1]]
    how = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
    bgr = cv2.resize(pixels[..., ::-1], size, interpolation=how)
    kind, data = "png", cv2.imencode(".png", bgr)[1]
    if len(data) > MAX_PNG_BYTES:
        quality = [cv2.IMWRITE_JPEG_QUALITY, 82]
        kind, data = "jpeg", cv2.imencode(".jpg", bgr, quality)[1]
    return _fill("picture", alt=alt, kind=kind, data=base64.b64encode(data).decode())


def _examples(archive: bytes) -> list[Html]:
    examples, names = _load(archive, MAX_EXAMPLES)
    cards = []
    for number, e in enumerate(examples, 1):
        truth, prediction = e["truth"], e["prediction"]
        selected = set(e["label_ids"][e["label_selected"]].tolist())
        pictures = {
            "image": e["image"],
            "truth": visualise.colourise(truth, len(names)),
            "prediction": visualise.colourise(prediction, len(names)),
            "errors": visualise.error_map(truth, prediction, sorted(selected)),
        }
        figures = []
        for name, pixels in pictures.items():
            alt, photo = f"{name} of example {number}", name == "image"
            picture = _picture(pixels, alt, MAX_PICTURE_SIDE, photo)
            figures.append(_fill("figure", picture=picture, caption=name))
        judged = truth != visualise.IGNORE
        right = float((truth == prediction)[judged].mean()) if judged.any() else None
        present = visualise.present_labels(truth)
        parts = {"figures": figures, "right": _percent(right)}
        parts["chips"] = _chips(present, prediction, selected, names)
        counts = {"found": len(selected & set(present)), "present": len(present)}
        cards.append(_fill("example", number=number, **counts, **parts))
    return cards


def _chips(present, prediction, selected, names) -> list[Html]:
    """The labels of the truth, largest first, then those that are only predicted."""
    predicted, chips = visualise.present_labels(prediction), []
    colours = visualise.palette(len(names))
    for i in [*present, *(p for p in predicted if p not in present)]:
        note = _percent(present.get(i))
        if i not in present:
            problem, note = " predicted, not in the truth", _percent(predicted[i])
        elif i not in selected:
            problem = ", not selected"
        else:
            problem = "" if i in predicted else ", not predicted"
        style = {"kind": "bad" if problem else "", "colour": _css(colours[i])}
        chips.append(_fill("chip", name=names[i], note=note + problem, **style))
    if len(chips) > MAX_CHIPS:
        chips[MAX_CHIPS:] = [_fill("more chips", count=len(chips) - MAX_CHIPS)]
    return chips


def _ranked(archive: bytes) -> Html:
    examples, names = _load(archive, RANKED_EXAMPLES)
    cards = []
    for number, e in enumerate(examples, 1):
        truth = set(visualise.present_labels(e["truth"]))
        order, selected = e["label_ids"].tolist(), e["label_selected"]
        rows, last = [], -1
        for r, i in enumerate(order):
            if r >= RANKED_BARS and i not in truth:
                continue
            if r and selected[last] and not selected[r]:
                rows.append(_fill("cut", text="below: not selected"))
            elif r > last + 1:
                rows.append(_fill("cut", text=f"{r - last - 1} more"))
            last, score = r, float(e["label_scores"][r])
            kind, tick = ("yes", "✓") if i in truth else ("no", "")
            values = {"width": 100 * score, "score": _percent(score), "name": names[i]}
            rows.append(_fill("bar", kind=kind, rank=r + 1, tick=tick, **values))
        if unranked := ", ".join(names[i] for i in sorted(truth.difference(order))):
            text = f"in the truth, not in the best {len(order)}: {unranked}"
            rows.append(_fill("cut", text=text))
        picture = _picture(e["image"], f"example {number}", 160, photo=True)
        parts = {"picture": picture, "rows": rows, "present": len(truth)}
        cards.append(_fill("ranked", number=number, **parts))
    return _fill("grid", warning="", cards=cards)
