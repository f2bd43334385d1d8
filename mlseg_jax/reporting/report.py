"""One self-contained HTML page about a run: scores, pictures, labels, errors, curves.

Pure rendering of the files that ``train`` and ``evaluate`` left in the working
directory: no model, no network, no script in the page. A missing file costs one
section, which then says which command writes it. Scores are fractions in 0..1.
``template.html`` holds the page, its style and the fragments filled in here.
"""

import functools
import json
import os
import shlex
import zipfile
import zlib
from collections.abc import Callable, Mapping

from etils import epath

from mlseg_jax.errors import UserError
from mlseg_jax.prediction import visualise
from mlseg_jax.reporting import segment_sections, video_sections
from mlseg_jax.reporting.charts import (
    Html,
    fill,
    format_number,
    format_percent,
    fragments,
    is_finite,
    selection_charts,
    training_charts,
)
from mlseg_jax.reporting.limit_files import limits_of_run
from mlseg_jax.reporting.pieces import (
    MAX_PICTURE_SIDE,
    SHOWN_CLASSES,
    class_tables,
    css,
    cut_name,
    load_examples,
    picture_of,
)

MAX_EXAMPLES = 12
MAX_CHIPS = 14
RANKED_EXAMPLES, RANKED_BARS = 3, 12
BEST = ("mIoU", "PQ", "AP")
"""The score of each task that checkpoints are compared by."""
DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error),
    zipfile.BadZipFile,
)
"""What reading a file raises that is not what it should be."""


def write_report(workdir: str | os.PathLike) -> epath.Path:
    """Renders ``workdir/report.html`` and returns its path.

    Reads ``metrics.json`` (required), ``config.json``, ``metrics.jsonl``,
    ``evaluation.json`` and ``evaluation_examples.npz``.

    Raises:
      UserError: ``metrics.json`` is missing, or a file is damaged; it names the command
        to run.
    """
    workdir = epath.Path(workdir)
    place = f"--workdir={shlex.quote(str(workdir))}"
    evaluate = f"python main.py evaluate {place}"
    train = f"python main.py train --config=... {place}"
    if not (workdir / "metrics.json").exists():
        raise UserError(f"{workdir} has no metrics.json: run `{evaluate}` first.")

    def section(file: str, command: str, render) -> Html | list[Html]:
        if (workdir / file).exists():
            return _whole(workdir / file, command, render)
        return fill("missing", file=file, command=command)

    examples, evaluation = "evaluation_examples.npz", "evaluation.json"
    metrics = _whole(workdir / "metrics.json", evaluate, _as_dict)
    config = {}
    if (workdir / "config.json").exists():
        config = _flatten(_whole(workdir / "config.json", train, _as_dict))
    known = {f"{k}.name": v for k, v in config.items()} | config | metrics
    is_video, is_classifier = "frames" in metrics, config.get("task") == "multilabel"
    has_segments = "missed_segments" in metrics or (is_video and "AP" in metrics)
    pictures, worst, wrong = _examples, _worst, _wrong_pixels
    if has_segments:
        pictures, worst = segment_sections.examples, segment_sections.worst
        wrong = segment_sections.missed
    legend = "legend of segments" if has_segments else "legend of pixels"
    ranked = fill("no scores")
    if not is_classifier and config.get("model.multilabel_head.name") != "none":
        ranked = section(examples, evaluate, _ranked)
    if is_video:
        pictures = functools.partial(video_sections.examples, has_tracks=has_segments)
        legend = "legend of strips"
    shown = section(examples, evaluate, pictures)
    legend = fill(legend)
    if is_classifier:
        shown = ranked = fill("no pixels")
        legend = Html()
    page = fill(
        "page",
        title=config.get("name") or workdir.name,
        facts=_tiles(known, "fact"),
        tiles=_tiles(known, "tile"),
        legend=legend,
        examples=shown,
        ranked=ranked,
        selection=section(evaluation, evaluate, selection_charts),
        errors=[wrong(metrics), section(evaluation, evaluate, worst)],
        limits=_limits(workdir, evaluate, metrics),
        training=section("metrics.jsonl", train, training_charts),
        settings=section(
            "config.json", train, lambda _: _keys("Configuration", config)
        ),
        scores=_keys("Every score of the evaluation", metrics),
        workdir=workdir,
        correct=css(visualise.CORRECT_COLOUR),
        confused=css(visualise.CONFUSED_COLOUR),
        not_selected=css(visualise.NOT_SELECTED_COLOUR),
        ignore=css(visualise.IGNORE_COLOUR),
    )
    part = workdir / "report.html.part"
    part.write_bytes(page.encode())
    part.replace(workdir / "report.html")
    return workdir / "report.html"


def _whole(path: epath.Path, command: str, render: Callable):
    """What ``render`` makes of a file, which ``command`` writes."""
    try:
        return render(path.read_bytes())
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged or of another version ({type(error).__name__}); write "
            f"it again: `{command}`."
        ) from error


def _as_dict(data: bytes) -> dict:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _tiles(known: Mapping, kind: str) -> list[Html]:
    """Every fragment "KIND KEY" of the template whose key is known, in its order."""
    values, oracle, tiles = dict(known), None, []
    selected = known.get("labels_selected")
    if is_finite(selected) and selected == known.get("num_classes"):  # All recalled.
        values |= dict.fromkeys(("pixel_recall_at_k", "image_recall_at_k"))
    best = next((key for key in BEST if f"oracle_{key}" in known), BEST[0])
    if is_finite(known.get(f"oracle_{best}")) and is_finite(known.get(best)):
        oracle = known[f"oracle_{best}"]
        values["oracle_gap"] = oracle - known[best]
    for key in (f.split()[1] for f in fragments() if f.startswith(kind)):
        value = values.get(key)
        if kind == "tile" and is_finite(value):
            counted = key in ("images_per_second", "parameters")
            shown = format_number(value) if counted else f"{100 * value:.1f}"
        elif kind == "fact" and value is not None:
            shown = f"{value:,}" if isinstance(value, int) else value
        else:
            continue
        k, reached = known.get("k") or "K", format_percent(oracle)
        text = {"value": shown, "k": k, "oracle": reached, "best": best}
        tiles.append(fill(f"{kind} {key}", **text))
    return tiles


def _keys(title: str, values: Mapping) -> Html:
    rows = [fill("keys row", key=k, value=repr(v)) for k, v in values.items()]
    return fill("keys", title=title, rows=rows)


def _wrong_pixels(metrics: Mapping) -> Html:
    lost, confused = metrics.get("wrong_not_selected"), metrics.get("wrong_confused")
    if not (is_finite(lost) and is_finite(confused) and lost + confused > 0):
        return Html()
    part, accuracy = lost / (lost + confused), metrics.get("pixel_accuracy")
    wrong = format_percent(1 - accuracy) if is_finite(accuracy) else "–"
    text = {
        "wrong": wrong,
        "lost": format_percent(part),
        "confused": format_percent(1 - part),
    }
    parts = {"lost_part": 100 * part, "confused_part": 100 * (1 - part)}
    return fill("wrong pixels", **text, **parts)


def _limits(workdir: epath.Path, command: str, metrics: Mapping) -> Html:
    """What limits the result, and first of all what to change."""
    path = workdir / "evaluation.json"
    if not path.exists():
        return Html()
    limits = _whole(path, command, lambda _: limits_of_run(workdir, metrics))
    if not limits:
        return Html()
    rows = [fill("limit", text=x.text, change=x.change) for x in limits]
    return fill("limits", change=limits[0].change, rows=rows)


def _worst(evaluation: bytes) -> Html:
    classes = json.loads(evaluation)["classes"]
    rows, shares = [], ("iou", "average_precision", "pixel_share")
    score, what = "iou", "an IoU; the others neither occur nor are predicted"
    if not any(is_finite(c["iou"]) for c in classes):  # Of a classifier of labels.
        score, what = "average_precision", "an average precision; no other occurs"
    scored = [c for c in classes if is_finite(c[score])]
    order = sorted(scored, key=lambda c: (c[score], -(c["pixel_share"] or 0.0)))
    for c in order[:SHOWN_CLASSES]:
        text = {"name": c["name"], "examples": f"{c['examples']:,}"}
        text |= {share: format_percent(c[share]) for share in shares}
        rows.append(fill("worst row", width=100.0 * c[score], **text))
    sizes = {"scored": f"{len(scored):,}", "complete": f"{len(classes):,}"}
    tables = class_tables(("IoU", "Label AP", "Pixels", "Images"), rows)
    return fill("worst", what=what, **tables, **sizes)


def _examples(archive: bytes) -> list[Html]:
    examples, names = load_examples(archive, MAX_EXAMPLES)
    colours = visualise.class_colours(names)
    cards = []
    for number, e in enumerate(examples, 1):
        truth, prediction = e["truth"], e["prediction"]
        selected = set(e["label_ids"][e["label_selected"]].tolist())
        pictures = {
            "image": e["image"],
            "truth": visualise.colourise(truth, colours),
            "prediction": visualise.colourise(prediction, colours),
            "errors": visualise.error_map(truth, prediction, sorted(selected)),
        }
        figures = []
        for name, pixels in pictures.items():
            alt, photo = f"{name} of example {number}", name == "image"
            picture = picture_of(pixels, alt, MAX_PICTURE_SIDE, photo)
            figures.append(fill("figure", picture=picture, caption=name))
        judged = truth != visualise.IGNORE
        right = float((truth == prediction)[judged].mean()) if judged.any() else None
        present = _present(e)
        parts = {"figures": figures, "right": format_percent(right)}
        parts["chips"] = _chips(present, prediction, selected, names)
        counts = {"found": len(selected & set(present)), "present": len(present)}
        cards.append(fill("example", number=number, **counts, **parts))
    return cards


def _present(example: Mapping) -> dict[int, float]:
    """Labels of the truth by share, also small ones that the picture shown has lost."""
    shares = visualise.present_labels(example["truth"])
    return dict.fromkeys(map(int, example.get("present", ())), 0.0) | shares


def _chips(present, prediction, selected, names) -> list[Html]:
    """The labels of the truth, largest first, then those that are only predicted."""
    predicted, chips = visualise.present_labels(prediction), []
    colours = visualise.class_colours(names).tolist()
    for i in [*present, *(p for p in predicted if p not in present)]:
        note = format_percent(present.get(i))
        if i not in present:
            problem, note = ", not in the truth", format_percent(predicted[i])
        elif i not in selected:
            problem = ", not selected"
        else:
            problem = "" if i in predicted else ", not predicted"
        style = {"kind": "bad" if problem else "", "colour": css(colours[i])}
        chips.append(
            fill("chip", name=cut_name(names[i]), note=note + problem, **style)
        )
    if len(chips) > MAX_CHIPS:
        chips[MAX_CHIPS:] = [fill("more chips", count=len(chips) - MAX_CHIPS)]
    return chips


def _ranked(archive: bytes) -> Html:
    examples, names = load_examples(archive, RANKED_EXAMPLES)
    cards = []
    for number, e in enumerate(examples, 1):
        truth = set(_present(e))
        order, selected = e["label_ids"].tolist(), e["label_selected"]
        rows, last, was_selected = [], -1, True
        for r, i in enumerate(order):
            if r >= RANKED_BARS and i not in truth:
                continue
            if selected[r] != was_selected:
                what = "selected" if selected[r] else "not selected"
                rows.append(fill("cut", text=f"below: {what}"))
            elif r > last + 1:
                rows.append(fill("cut", text=f"{r - last - 1} more"))
            last, was_selected = r, selected[r]
            score = float(e["label_scores"][r])
            kind, tick = ("yes", "✓") if i in truth else ("no", "")
            values = {
                "width": 100 * score,
                "score": format_percent(score),
                "tick": tick,
            }
            rows.append(
                fill("bar", kind=kind, rank=r + 1, name=cut_name(names[i]), **values)
            )
        if unranked := ", ".join(names[i] for i in sorted(truth.difference(order))):
            text = f"in the truth, not in the best {len(order)}: {unranked}"
            rows.append(fill("cut", text=text))
        picture = picture_of(e["image"], f"example {number}", 160, photo=True)
        parts = {"picture": picture, "rows": rows, "present": len(truth)}
        cards.append(fill("ranked", number=number, **parts))
    return fill("grid", warning="", cards=cards)
