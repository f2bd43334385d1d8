"""The report's sections of segments: which were found, which were missed, and why."""

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from mlseg_jax.prediction import visualise
from mlseg_jax.prediction.draw_segments import shades
from mlseg_jax.reporting.charts import Html, fill, format_percent, is_finite
from mlseg_jax.reporting.pieces import (
    MAX_PICTURE_SIDE,
    SHOWN_CLASSES,
    class_tables,
    css,
    cut_name,
    load_examples,
    picture_of,
)
from mlseg_jax.tasks.segment_pictures import FOUND, IGNORED, WRONG
from mlseg_jax.typing import Int, UInt8

MAX_EXAMPLES, MAX_CHIPS = 12, 14
COLUMNS = {
    "PQ": "PQ", "SQ": "SQ", "RQ": "RQ", "AP": "AP", "AP50": "AP50", "AR100": "AR",
    "true_positives": "Found", "false_negatives": "Missed",
    "false_positives": "Wrong", "average_precision": "Label AP",
    "pixel_share": "Pixels", "examples": "Images",
}  # fmt: skip
"""What tables say of a class, of the keys that ``evaluation.json`` has."""


def examples(archive: bytes) -> list[Html]:
    """A card for each picture of ``evaluation_examples.npz``."""
    entries, names = load_examples(archive, MAX_EXAMPLES)
    colours = visualise.class_colours(names)
    return [_card(number, e, names, colours) for number, e in enumerate(entries, 1)]


def missed(metrics: Mapping) -> Html:
    """Why segments were missed."""
    keys = ("missed_not_selected", "missed_confused", "missed_not_found")
    parts = [metrics.get(key) for key in keys]
    if not all(map(is_finite, parts)) or not sum(parts):
        return Html()
    text = {k.removeprefix("missed_"): format_percent(metrics[k]) for k in keys}
    flex = dict(zip("abc", (100 * part for part in parts), strict=True))
    share = format_percent(metrics["missed_segments"])
    return fill("missed segments", missed=share, **text, **flex)


def worst(evaluation: bytes) -> Html:
    """A table of the classes with the lowest score."""
    classes = json.loads(evaluation)["classes"]
    keys = [key for key in COLUMNS if key in classes[0]]
    score = keys[0]
    scored = [c for c in classes if is_finite(c[score])]
    order = sorted(scored, key=lambda c: (c[score], -c["pixel_share"]))
    rows = []
    for c in order[:SHOWN_CLASSES]:
        cells = [
            f"{c[key]:,}" if isinstance(c[key], int) else format_percent(c[key])
            for key in keys
        ]
        filled = [fill("worst segments cell", text=text) for text in cells[1:]]
        text = {"name": c["name"], "first": cells[0], "width": 100.0 * c[score]}
        rows.append(fill("worst segments row", cells=filled, **text))
    sizes = {"scored": f"{len(scored):,}", "complete": f"{len(classes):,}"}
    parts = class_tables([COLUMNS[key] for key in keys], rows)
    return fill("worst segments", score=score, **parts, **sizes)


def _card(number: int, e: Mapping, names, colours) -> Html:
    true, found = e["true_segments"], e["found_segments"]
    selected = set(e["label_ids"][e["label_selected"]].tolist())
    pictures = {
        "image": e["image"],
        "truth": _drawn(e["image"], e["true_map"], true, colours),
        "prediction": _drawn(e["image"], e["found_map"], found, colours),
    }
    figures = []
    for name, pixels in pictures.items():
        alt, photo = f"{name} of example {number}", name == "image"
        picture = picture_of(pixels, alt, MAX_PICTURE_SIDE, photo)
        figures.append(fill("figure", picture=picture, caption=name))
    present = set(true[:, 1].tolist())
    return fill(
        "example of segments",
        number=number,
        found=int((true[:, 2] == FOUND).sum()),
        true=int((true[:, 2] != IGNORED).sum()),
        wrong=int((found[:, 2] == WRONG).sum()),
        selected=len(selected & present),
        present=len(present),
        figures=figures,
        chips=_chips(true, found, selected, names, colours),
    )


def _drawn(
    image: UInt8[np.ndarray, "H W 3"],
    segment_map: Int[np.ndarray, "H W"],
    segments: Int[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "C 3"],
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The picture under its segments; those that are wrong or not judged have a rim."""
    image, segment_map = visualise.enlarge(image, segment_map)
    size = 1 + max([0, *segments[:, 0].tolist()])
    table, fates = np.zeros((size, 3), np.uint8), np.full(size, FOUND)
    table[segments[:, 0]] = shades(segments[:, 1], colours)
    fates[segments[:, 0]] = segments[:, 2]
    nothing = segment_map == 0
    line = visualise.line_width(segment_map.shape)
    picture = visualise.tint(
        image, segment_map, table[segment_map], nothing, 0.55, line
    )
    rim = visualise.borders(segment_map, 9 * line)
    for fate, colour in (
        (WRONG, visualise.NOT_SELECTED_COLOUR),
        (IGNORED, visualise.IGNORE_COLOUR),
    ):
        picture[rim & ~nothing & (fates[segment_map] == fate)] = colour
    return picture


def _chips(true, found, selected, names, colours) -> list[Html]:
    """Of each class how many segments were found; then those that are made up."""
    chips, judged = [], true[true[:, 2] != IGNORED]
    hits = Counter(judged[judged[:, 2] == FOUND, 1].tolist())
    for i, count in Counter(judged[:, 1].tolist()).most_common():
        lost = "" if i in selected else ", not selected"
        note, bad = f"{hits[i]} of {count} found{lost}", hits[i] < count
        chips.append(_chip(names[i], note, bad, colours[i]))
    for i, count in Counter(found[found[:, 2] == WRONG, 1].tolist()).most_common():
        chips.append(_chip(names[i], f"{count} wrong", True, colours[i]))
    if len(chips) > MAX_CHIPS:
        chips[MAX_CHIPS:] = [fill("more chips", count=len(chips) - MAX_CHIPS)]
    return chips


def _chip(name: str, note: str, bad: bool, colour) -> Html:
    style = {"kind": "bad" if bad else "", "colour": css(colour.tolist())}
    return fill("chip", name=cut_name(name), note=note, **style)
