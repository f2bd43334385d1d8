"""Label maps as pictures: one stable palette, overlays with a legend, error maps.

Nobody can read a legend of ten thousand classes. So a legend lists only the labels in
its picture, and each colour is chosen as far as possible from all earlier ones: the
first few hundred are easy to tell apart, and adding classes changes no colour. Classes
of a published data set have the colours that its pictures always have.
"""

import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from input_pipeline.datasets.names import customary_palette
from mlseg_jax.prediction import fonts
from mlseg_jax.prediction.legend import INK, Drawing, row_bands, with_legend
from mlseg_jax.typing import IGNORE, Bool, Int, UInt, UInt8

IGNORE_COLOUR = (22, 22, 24)
CORRECT_COLOUR = (104, 119, 134)
CONFUSED_COLOUR = (240, 173, 58)  # wrong although the true label was selected
NOT_SELECTED_COLOUR = (222, 58, 60)  # wrong, and could not have been right
MAX_DISTINCT_COLOURS = 10_000
MAX_LEGEND_ROWS = 20
MIN_PICTURE_SIDE = 480  # smaller pictures are enlarged
_RIM = 5
"""Widths of the line that the rim around it has."""

LabelMap = Int[np.ndarray, "H W"] | UInt[np.ndarray, "H W"]


def palette(num_classes: int) -> UInt8[np.ndarray, "C 3"]:
    """One RGB colour per class id.

    ``palette(n)[:m]`` equals ``palette(m)``: a class id keeps its colour whatever C is.
    Colours are never grey or black, consecutive ids always differ clearly, and all are
    distinct up to ``MAX_DISTINCT_COLOURS``, where they start again.
    """
    size = 256
    while size < min(num_classes, MAX_DISTINCT_COLOURS):  # few sizes, for the cache
        size = min(size * 4, MAX_DISTINCT_COLOURS)
    return _spread_colours(size)[np.arange(num_classes) % MAX_DISTINCT_COLOURS]


def class_colours(class_names: Sequence[str]) -> UInt8[np.ndarray, "C 3"]:
    """The customary palette of these classes where there is one, else `palette`."""
    customary = customary_palette(tuple(class_names))
    return palette(len(class_names)) if customary is None else np.uint8(customary)


@functools.cache
def _spread_colours(count: int) -> np.ndarray:
    """Farthest-point sampling of sRGB; integers only, so equal on every machine."""
    rgb = np.stack(np.indices((37, 37, 37)), -1).reshape(-1, 3) * 7 + 2
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # Middle lightness: visible on white paper, on black paper and over a photograph.
    usable = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.9) & (chroma > 0.045) & (chroma < 0.2)
    rgb = rgb[usable].astype(np.uint8)
    lightness, a, b = np.round(1000 * lab[usable].T).astype(np.int32)
    lightness = lightness * 4 // 5  # thin regions differ by hue more than by lightness
    nearest = np.full(len(rgb), 10**8, np.int32)  # squared distance to any chosen one
    recent = nearest.copy()  # the same for the last few, fading over four choices
    order = [int(np.abs(rgb.astype(np.int32) - (46, 120, 214)).sum(1).argmin())]
    while len(order) < count:
        last = order[-1]
        distance = (lightness - lightness[last]) ** 2
        distance += (a - a[last]) ** 2 + (b - b[last]) ** 2
        np.minimum(nearest, distance, out=nearest)
        np.minimum(recent + 30**2 * 4, distance, out=recent)
        order.append(int(np.where(recent > 120**2, nearest, -1).argmax()))
    return rgb[order]


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [... 3] to OKLab (Ottosson 2020), where distance is perceptual."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T


def colourise(
    label_map: LabelMap, colours: UInt8[np.ndarray, "C 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel in the colour of its class; ignored pixels in ``IGNORE_COLOUR``."""
    num_classes = len(colours)
    low, high = int(label_map.min()), int(label_map.max())
    if low < IGNORE or high >= num_classes:
        raise ValueError(
            f"label map holds values {low}..{high}, but class ids must be "
            f"0..{num_classes - 1}, or {IGNORE} for ignore."
        )
    # Of unsigned maps the last value plus one would be 0.
    table = np.concatenate([np.uint8([IGNORE_COLOUR]), colours])
    return table[label_map.astype(np.int32) + 1]


def error_map(
    truth: Int[np.ndarray, "H W"],
    prediction: Int[np.ndarray, "_ _"],
    selected_class_ids: Sequence[int] | Int[np.ndarray, "K"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Where the prediction is right, wrong or not judged (truth is ignore).

    Wrong pixels are amber. With ``selected_class_ids`` those whose true label was not
    among the selected ones are red instead: no pixel classifier could have saved them.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth has shape {truth.shape} but prediction {prediction.shape}; "
            "resize the prediction to the truth first."
        )
    errors = np.uint8([CONFUSED_COLOUR, CORRECT_COLOUR])[(truth == prediction) * 1]
    if selected_class_ids is not None:
        lost = (truth != prediction) & ~np.isin(truth, selected_class_ids)
        errors[lost] = NOT_SELECTED_COLOUR
    errors[truth == IGNORE] = IGNORE_COLOUR
    return errors


def count_labels(label_map: LabelMap, num_classes: int) -> Int[np.ndarray, "C"]:
    """Pixels of each class, a band of rows at a time: counting needs wide numbers."""
    counts = np.zeros(num_classes + 1, np.int64)
    for rows in row_bands(label_map.shape):
        part = label_map[rows].astype(np.int32).ravel() + 1
        counts += np.bincount(part, minlength=num_classes + 1)
    return counts[1:]


def present_labels(label_map: LabelMap) -> dict[int, float]:
    """Share of all pixels per class id that occurs, largest first, without ignore."""
    num_classes = int(label_map.max()) + 1 if label_map.size else 0
    counts = count_labels(label_map, num_classes)
    class_ids = np.flatnonzero(counts)
    class_ids = class_ids[np.argsort(-counts[class_ids], kind="stable")]
    return {int(i): float(counts[i] / label_map.size) for i in class_ids}


def overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    label_map: LabelMap,
    class_names: Sequence[str],
    scores: Mapping[int, float] | Sequence[float] | np.ndarray | None = None,
    alpha: float = 0.55,
    font: str = "",
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture tinted by label, with region borders and a legend of its labels.

    ``scores`` (a mapping from class id, or one value per class) adds a column. Ignored
    pixels keep their colour. ``font``: a file of letters for names of other scripts
    than ours (`fonts`). The legend stands to the right, or below if the picture is
    wide, and adds to the size; pictures under ``MIN_PICTURE_SIDE`` are enlarged.
    """
    return draw_overlay(image, label_map, class_names, scores, alpha, font).whole()


def draw_overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    label_map: LabelMap,
    class_names: Sequence[str],
    scores: Mapping[int, float] | Sequence[float] | np.ndarray | None = None,
    alpha: float = 0.55,
    font: str = "",
) -> Drawing:
    """As `overlay`, of which a band of rows exists at a time."""
    if image.shape[:2] != label_map.shape:
        raise ValueError(
            f"image has shape {image.shape} but its label map {label_map.shape}; "
            "resize one to the other first."
        )
    shares = present_labels(label_map)  # before enlarging: same shares, less work
    image, label_map = enlarge(image, label_map)
    palette_of = class_colours(class_names)

    def make_rows(rows: slice) -> np.ndarray:
        seen, own = with_neighbours(rows, label_map.shape)
        part = label_map[seen]
        colours = colourise(part, palette_of)
        line = line_width(label_map.shape)
        return tint(image[seen], part, colours, part == IGNORE, alpha, line)[own]

    if not isinstance(scores, Mapping | None):
        scores = dict(enumerate(np.asarray(scores).tolist()))
    shown = fonts.legible(class_names, list(shares)[:MAX_LEGEND_ROWS], font)
    rows = [
        (None if i is None else tuple(palette_of[i].tolist()), *texts)
        for i, *texts in _legend_rows(shares, shown, scores)
    ]
    heading = ("label", "pixels", *(["score"] if scores else []))
    return with_legend(label_map.shape, make_rows, heading, rows, font)


def enlarge(
    image: UInt8[np.ndarray, "H W 3"], id_map: LabelMap
) -> tuple[UInt8[np.ndarray, "H2 W2 3"], np.ndarray]:
    """Both, every pixel repeated where the picture is under ``MIN_PICTURE_SIDE``."""
    factor = -(-MIN_PICTURE_SIDE // max(id_map.shape))
    if factor <= 1:
        return image, id_map
    repeat = lambda x: x.repeat(factor, 0).repeat(factor, 1)  # noqa: E731
    return repeat(image), repeat(id_map)


def line_width(size: Sequence[int]) -> int:
    """Pixels of the lines between regions, for a picture of this size."""
    return max(1, round(max(size) / 900))


def with_neighbours(rows: slice, size: Sequence[int]) -> tuple[slice, slice]:
    """Some rows with those around them that `tint` looks at, and the rows in these."""
    reach = _RIM * line_width(size) // 2 + 2
    seen = slice(max(rows.start - reach, 0), min(rows.stop + reach, size[0]))
    return seen, slice(rows.start - seen.start, rows.stop - seen.start)


def tint(
    image: UInt8[np.ndarray, "H W 3"],
    id_map: LabelMap,
    colours: UInt8[np.ndarray, "H W 3"],
    nothing: Bool[np.ndarray, "H W"],
    alpha: float,
    line: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture under the colours of its regions, with their borders.

    Where there is ``nothing`` it keeps its own colour.
    """
    tinted = cv2.addWeighted(image, 1 - alpha, colours, alpha, 0)
    tinted[nothing] = image[nothing]
    # A dark line inside a rim of the pure colour, the one that the legend shows.
    rim = borders(id_map, _RIM * line) & ~nothing
    tinted[rim] = colours[rim]
    tinted[borders(id_map, line)] = INK
    return tinted


def borders(label_map: np.ndarray, width: int) -> np.ndarray:
    """Pixels whose right or lower neighbour differs, widened to ``width`` pixels."""
    edge = np.zeros(label_map.shape, np.uint8)
    edge[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    edge[:-1] |= label_map[:-1] != label_map[1:]
    return cv2.dilate(edge, np.ones((width, width), np.uint8)) > 0


def _legend_rows(shares, class_names, scores) -> list[tuple]:
    """(class id or None, name, share[, score]); a last row counts what is left out."""
    rows = []
    for i, share in list(shares.items())[:MAX_LEGEND_ROWS]:
        score = [percent(scores.get(i))] if scores else []
        rows.append((i, str(class_names[i]), percent(share), *score))
    if n := len(shares) - len(rows):
        rest = percent(sum(list(shares.values())[MAX_LEGEND_ROWS:]))
        rows.append((None, f"+{n} more", rest, *[""] * bool(scores)))
    return rows or [(None, "no labels", "", *[""] * bool(scores))]


def percent(value: float | None) -> str:
    """A share of one, as the legend writes it."""
    return "" if value is None else "<0.1%" if 0 < value < 5e-4 else f"{value:.1%}"
