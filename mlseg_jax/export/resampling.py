"""Between windows and pictures, with NumPy alone: sizes, resampling, labels.

Copied beside `predictor` into exported folders; imports nothing of the project.
"""

import dataclasses

import numpy as np

TILE_BYTES = 2**24  # of logits at full resolution at a time
BAND = 64  # rows that are resized at a time
LONGEST = 2**15  # side to which a picture is enlarged


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one axis of a view."""

    length: int  # pixels of the picture
    view: int  # pixels of the view
    starts: tuple  # first pixel of each window in the view
    size: int  # pixels of a window that are real
    seen: int  # the same with the padding that the network sees
    cells: int  # of the grid for these
    canvas_cells: int  # of the grid in all
    flip: bool


def windows_of(about, image, scales=None):
    """Size and views of a picture uint8 [H W 3], and the windows of all views."""
    size, views, windows, picture = image.shape[:2], [], [], None
    for fitted, axes in views_of(about, size, scales):
        if picture is None or picture.shape[:2] != fitted:
            picture = resize(image, fitted)
        shown = picture[:, ::-1] if axes[1].flip else picture
        views.append(axes)
        for y in axes[0].starts:
            for x in axes[1].starts:
                windows.append(shown[y : y + axes[0].size, x : x + axes[1].size])
    return size, views, windows


def views_of(about, size, scales=None):
    """How a picture of this height and width is looked at: for each scale and mirror
    image the size that it gets, and an `Axis` for rows and one for columns.

    ``about``: what ``export.json`` holds; ``scales``: other ones than it says. Raises
    ValueError for a very long picture.
    """
    settings, views = about["views"], []
    for scale in settings["scales"] if scales is None else scales:
        fitted = _fitted(about, size, scale)
        if max(fitted) > max(LONGEST, 2 * max(size)):
            raise ValueError(
                f"A picture of {size[1]} x {size[0]} pixels would be seen with "
                f"{fitted[1]:,} x {fitted[0]:,}; cut it into shorter parts."
            )
        for flip in (False, True) if settings["flip"] else (False,):
            axes = [_axis(about, size, fitted, 0), _axis(about, size, fitted, 1, flip)]
            views.append((fitted, axes))
    return views


def _fitted(about, size, scale):
    window = about["input"]["size"]
    base = [int(side * scale) for side in about["views"]["base_size"]]
    if max(base) > 0:
        factor = min(max(base) / max(size), min(base) / min(size))
        fitted = tuple(max(1, int(side * factor + 0.5)) for side in size)
    else:
        fitted = tuple(max(1, round(side * scale)) for side in size)
    factors = [w / n for w, n in zip(window, fitted, strict=True)]
    if about["views"]["mode"] == "whole" and min(factors) < 1:
        # No larger than was exported.
        fitted = tuple(max(1, int(side * min(factors))) for side in fitted)
    elif not about["input"]["sized"] and max(factors) > 1:
        # Windows must be full.
        grown = [int(side * max(factors) + 0.5) for side in fitted]
        fitted = tuple(map(max, window, grown))
    return fitted


def _axis(about, size, fitted, axis, flip=False):
    inputs, view = about["input"], fitted[axis]
    window, stride = inputs["size"][axis], about["views"]["stride"][axis]
    real = min(window, view)
    count = max(view - window + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride, view - real), 0) for i in range(count))
    seen = -(-real // inputs["multiple"]) * inputs["multiple"]
    canvas_cells = inputs["grid"][axis]
    cells = inputs["cells"][axis][seen] if inputs["sized"] else canvas_cells
    return Axis(size[axis], view, starts, real, seen, cells, canvas_cells, flip)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.clip(x, -87.0, 87.0)))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def tiles(size, channels):
    """Slices of rows and columns of the picture."""
    width = min(size[1], 512)
    height = int(np.clip(TILE_BYTES // (4 * channels * width), 8, 512))
    for y in range(0, size[0], height):
        for x in range(0, size[1], width):
            yield slice(y, min(y + height, size[0])), slice(x, min(x + width, size[1]))


def product(grid, rows, columns):
    """A grid [h w U] at pixels [S T U], from the cells that matter to them."""
    used = [np.flatnonzero(matrix.any(axis=0)) for matrix in (rows, columns)]
    y, x = (slice(cells[0], cells[-1] + 1) for cells in used)
    grid = grid[y, x].astype(np.float32)
    lines = rows[:, y] @ grid.reshape(grid.shape[0], -1)
    return columns[None, :, x] @ lines.reshape(-1, *grid.shape[1:])


def taps(length, size_in):
    """The two samples of each of ``length`` places, and the second's weight."""
    scale = np.float32(size_in) / np.float32(length)
    place = (np.arange(length, dtype=np.float32) + 0.5) * scale - 0.5
    place = np.maximum(place, np.float32(0.0))
    low = np.floor(place)
    high = np.minimum(low.astype(np.int64) + 1, size_in - 1)
    return np.minimum(low.astype(np.int64), size_in - 1), high, place - low


def bilinear(length, size_in, canvas=None):
    """The matrix of `taps`, with columns of zeros up to ``canvas``."""
    low, high, fraction = taps(length, size_in)
    matrix = np.zeros((length, canvas or size_in), np.float32)
    place = np.arange(length)
    np.add.at(matrix, (place, low), 1 - fraction)
    np.add.at(matrix, (place, high), fraction)
    return matrix


def stitched(axis, pixels):
    """From the grids of all windows side by side to some pixels (a slice) of the
    picture; overlaps averaged.
    """
    place = np.arange(axis.length)[:: -1 if axis.flip else 1][pixels]
    low, high, fraction = place, place, None
    if axis.length != axis.view:
        low, high, fraction = (x[place] for x in taps(axis.length, axis.view))
    first, last = int(low.min()), int(high.max()) + 1
    upsample = bilinear(axis.size, axis.cells, axis.canvas_cells)
    matrix = np.zeros((last - first, len(axis.starts), axis.canvas_cells), np.float32)
    covered = np.zeros((last - first, 1, 1), np.float32)
    for i, start in enumerate(axis.starts):
        begin, end = max(start, first), min(start + axis.size, last)
        if begin < end:
            matrix[begin - first : end - first, i] = upsample[
                begin - start : end - start
            ]
            covered[begin - first : end - first] += 1
    matrix = (matrix / covered).reshape(last - first, -1)
    if fraction is None:
        return matrix[low - first]
    fraction = fraction[:, None]
    return matrix[low - first] * (1 - fraction) + matrix[high - first] * fraction


def single(axis):
    """Of each window, from its grid to the picture, and its share of every pixel."""
    upsample = bilinear(axis.seen, axis.cells, axis.canvas_cells)[: axis.size]
    resample = bilinear(axis.length, axis.view)
    found = []
    for start in axis.starts:
        part = resample[:, start : start + axis.size]
        share = part.sum(axis=1)
        part = part / np.where(share == 0.0, 1.0, share)[:, None]
        found.append((part @ upsample, share))
    total = sum(share for _, share in found)
    step = -1 if axis.flip else 1
    return [(matrix[::step], (share / total)[::step]) for matrix, share in found]


def resize(image, size):
    """Bilinear between four neighbours, as OpenCV does it for bytes: uint8 [H W 3]."""
    if image.shape[:2] == tuple(size):
        return image
    weights = []
    for length, old in zip(size, image.shape[:2], strict=True):
        place = (np.arange(length) + 0.5) * (old / length) - 0.5
        low = np.floor(place)
        fraction = np.where((low < 0) | (low >= old - 1), 0.0, place - low)
        low = np.clip(low.astype(np.int64), 0, old - 1)
        second = np.rint(fraction.astype(np.float32) * 2048).astype(np.int32)
        first = np.rint((1 - fraction.astype(np.float32)) * 2048).astype(np.int32)
        weights.append((low, np.minimum(low + 1, old - 1), first, second))
    (top, bottom, above, below), (left, right, before, after) = weights
    resized = np.empty((*size, 3), np.uint8)
    for start in range(0, size[0], BAND):  # products in int32 take twelve times that
        rows = slice(start, start + BAND)
        first, last = top[rows][0], bottom[rows][-1] + 1
        part = image[first:last]
        lines = part[:, left] * before[:, None] + part[:, right] * after[:, None]
        upper, lower = (lines[index[rows] - first] >> 4 for index in (top, bottom))
        upper *= above[rows, None, None]
        lower *= below[rows, None, None]
        mixed = (upper >> 16) + (lower >> 16)
        resized[rows] = np.clip((mixed + 2) >> 2, 0, 255)
    return resized


def unite(class_ids, valid, num_classes):
    """All selected classes in class order, and the rank of each in each window: K where
    it was not selected.
    """
    count, ranks = class_ids.shape
    table = np.full((count, num_classes + 1), ranks)
    kept = np.where(valid, class_ids, num_classes)
    np.put_along_axis(table, kept, np.broadcast_to(np.arange(ranks), kept.shape), 1)
    union = np.flatnonzero((table[:, :-1] < ranks).any(axis=0))
    return union, table[:, union]
