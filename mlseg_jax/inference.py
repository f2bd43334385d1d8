"""From pictures of any size to label maps, over ranks all the way.

A picture is seen through *views* (scales, mirrored or not), a view through *windows* of
one static size. The logits of a window are a small grid over its K ranks. Everything
that follows is linear and separable: upsampling a window, laying overlapping windows side
by side and averaging them, resizing to the picture, mirroring back. So the grids of all
windows of a view are stitched to one low-resolution grid, and two matrices (``rows``,
``columns``) take it to the pixels, a tile at a time; the argmax of a tile is over the
union of the labels that the windows selected. This equals the release's C-wide algorithm
(method.md 12.3), in which unselected labels are filled with -100, and never holds C
channels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from input_pipeline.transforms import resize_for_test
from mlseg_jax.label_selection import (
    UNSELECTED_LOGIT,
    Selection,
    SelectionPolicy,
    ranks_to_labels,
)
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.interfaces import LabelPrediction
from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.sharding import batch_sharding
from mlseg_jax.typing import Array, Bool, Float, Int, UInt

TILE_BYTES = 16 * 2**20
"""Upsampled logits that exist at a time."""

NEVER = -1e4
"""Logit of places that only pad a union to a static size."""

LADDER = tuple(int(32 * 2 ** (step / 2)) // 16 * 16 for step in range(20))
"""Sides that canvases are padded to, so that few shapes are ever compiled."""


def round_up(length: int) -> int:
    """The next side of the ladder."""
    return next(side for side in LADDER if side >= length)


# ------------------------------------------------------------------ views and windows


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one axis of a view, and the way from their grids to the pixels.

    Attributes:
      starts: first pixel of each window in the view.
      size: pixels of a window that are real.
      canvas: pixels of a window with padding.
      matrix: from the grids of all windows, one after the other, to the picture.
    """

    starts: tuple[int, ...]
    size: int
    canvas: int
    matrix: Float[np.ndarray, "pixels cells"]


@functools.lru_cache(maxsize=512)
def plan_axis(
    length: int,
    view_length: int,
    window: int,
    stride: int,
    canvas: int,
    patch_size: int,
    flip: bool,
) -> Axis:
    """Windows every ``stride`` pixels, the last one moved inside; overlaps averaged."""
    size = min(window, view_length)
    count = max(view_length - window + stride - 1, 0) // stride + 1
    starts = tuple(
        max(min(i * stride, view_length - size), 0) for i in range(count)
    )
    cells, canvas_cells = -(-size // patch_size), -(-canvas // patch_size)
    upsample = bilinear_matrix(size, canvas_cells, size_in=cells)
    stitched = np.zeros((view_length, count, canvas_cells), np.float32)
    covered = np.zeros((view_length, 1, 1), np.float32)
    for i, start in enumerate(starts):
        stitched[start : start + size, i] = upsample
        covered[start : start + size] += 1
    stitched = (stitched / covered).reshape(view_length, -1)
    matrix = stitched
    if length != view_length:
        matrix = bilinear_matrix(length, view_length) @ stitched
    return Axis(starts, size, canvas, matrix[::-1] if flip else matrix)


@dataclasses.dataclass(frozen=True)
class View:
    """One look at a picture: an image and its windows."""

    image: np.ndarray
    rows: Axis
    columns: Axis

    def windows(self) -> Iterator[np.ndarray]:
        """Crops padded to the canvas, row by row."""
        for y in self.rows.starts:
            for x in self.columns.starts:
                crop = self.image[y : y + self.rows.size, x : x + self.columns.size]
                canvas = (self.rows.canvas, self.columns.canvas)
                if crop.shape[:2] != canvas:
                    padded = np.zeros((*canvas, 3), crop.dtype)
                    padded[: crop.shape[0], : crop.shape[1]] = crop
                    crop = padded
                yield crop

    @property
    def num_windows(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)


def make_views(
    image: np.ndarray, settings: ml_collections.ConfigDict, patch_size: int
) -> list[View]:
    """All views of a picture uint8 ``[H W 3]`` under ``eval`` settings.

    ``settings`` also carries ``base_size`` of the data; (0, 0) keeps pictures as they are.
    """
    pictures = []
    for scale in settings.scales:
        if max(settings.base_size) > 0:
            base_size = tuple(int(side * scale) for side in settings.base_size)
            resized = resize_for_test(image, base_size)
        else:
            sides = [max(1, round(side * scale)) for side in image.shape[1::-1]]
            resized = cv2.resize(image, sides) if scale != 1 else image
        pictures.append(resized)
    whole = settings.mode == "whole"
    # One canvas for all scales: windows of all views share batches.
    canvas = [round_up(max(x.shape[axis] for x in pictures)) for axis in (0, 1)]
    views = []
    for resized in pictures:
        for flip in (False, True) if settings.flip else (False,):
            axes = []
            for axis in (0, 1):
                length = resized.shape[axis]
                axes.append(
                    plan_axis(
                        image.shape[axis],
                        length,
                        length if whole else settings.window[axis],
                        length if whole else settings.stride[axis],
                        canvas[axis] if whole else settings.window[axis],
                        patch_size,
                        flip and axis == 1,
                    )
                )
            picture = np.ascontiguousarray(resized[:, ::-1]) if flip else resized
            views.append(View(picture, *axes))
    return views


# ---------------------------------------------------------------------- the two steps


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A batch of pictures of one size, ready to be turned into label maps.

    Attributes:
      size: height and width of the pictures.
      grids: per view, stitched logits over the labels of ``selection``.
      rows, columns: per view, matrices from the grid to the pixels.
      selection: the labels; with several windows, the union of theirs.
      scores: label scores of each picture, the highest of its windows'.
      count: how many pictures are real; the rest pads the batch.
      num_labels: how many labels are real; the rest pads the union.
    """

    size: tuple[int, int]
    grids: tuple[Float[Array | np.ndarray, "B _ _ K"], ...]
    rows: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    selection: Selection
    scores: Float[np.ndarray, "N C"]
    count: int
    num_labels: int

    def tiles(self) -> Iterator[tuple[slice, slice, tuple, tuple]]:
        """Slices of the picture, with the matrices that make these pixels."""
        batch, num_labels = self.selection.class_ids.shape
        height, width = self.size
        tile_width = 128 if width <= 128 else 512
        budget = TILE_BYTES // (4 * batch * num_labels * tile_width)
        tile_height = 2 ** int(np.clip(np.log2(max(budget, 1)), 3, 9))
        tile_height = min(tile_height, 128 if height <= 128 else 512)
        for y in range(0, height, tile_height):
            rows = tuple(_rows(matrix, y, tile_height) for matrix in self.rows)
            for x in range(0, width, tile_width):
                columns = tuple(_rows(matrix, x, tile_width) for matrix in self.columns)
                end = min(y + tile_height, height), min(x + tile_width, width)
                yield slice(y, end[0]), slice(x, end[1]), rows, columns

    def label_maps(self) -> UInt[np.ndarray, "N H W"]:
        """Class ids of every pixel, in the smallest type that holds C of them."""
        num_classes = self.selection.num_classes
        dtype = np.uint8 if num_classes <= 256 else np.uint16
        batch = self.selection.class_ids.shape[0]
        labels = np.zeros((batch, *self.size), dtype)
        for y, x, rows, columns in self.tiles():
            tile = np.asarray(tile_labels(self.grids, rows, columns, self.selection))
            labels[:, y, x] = tile[:, : y.stop - y.start, : x.stop - x.start]
        return labels[: self.count]


def _rows(matrix: np.ndarray, start: int, count: int) -> np.ndarray:
    """Some rows of a matrix, zeros where it has no more."""
    part = matrix[start : start + count]
    return np.pad(part, [(0, count - len(part)), (0, 0)])


def upsampled_tile(grid: Array, rows: Array, columns: Array) -> Float[Array, "B K S T"]:
    """Logits of a tile of pixels, labels before pixels so that sums over them are quick."""
    lines = jnp.einsum("Sh,bhwk->bkSw", rows, grid)
    return jnp.einsum("Tw,bkSw->bkST", columns, lines)


@jax.jit
def tile_labels(grids, rows, columns, selection: Selection) -> Int[Array, "B S T"]:
    """Class ids of a tile: one argmax over the labels of ``selection``.

    Several views are averaged as probabilities, like the release does.
    """
    if len(grids) == 1:
        total = upsampled_tile(grids[0], rows[0], columns[0])
    else:
        total = sum(
            jax.nn.softmax(upsampled_tile(*view), axis=1)
            for view in zip(grids, rows, columns, strict=True)
        )
    return ranks_to_labels(jnp.argmax(total, axis=1), selection)


class Engine:
    """Runs a model over windows; one compilation for each shape that comes along."""

    def __init__(
        self,
        model: FunctionalModel,
        parameters: Parameters,
        settings: ml_collections.ConfigDict,
        *,
        patch_size: int,
        mesh: Mesh | None = None,
    ):
        self.settings = settings
        self.num_classes = model.num_classes
        self.patch_size = patch_size
        self._parameters = parameters
        self._sharding = None if mesh is None else batch_sharding(mesh)

        @jax.jit
        def encode(parameters, windows, sizes, allowed) -> LabelPrediction:
            labels = model.bind(parameters).encode(windows, image_size=sizes)
            if allowed is None:
                return labels
            scores = jnp.where(allowed[None], labels.scores, -jnp.inf)
            return dataclasses.replace(labels, scores=scores)

        @functools.partial(jax.jit, static_argnames="policy")
        def classify(parameters, labels, given, policy: SelectionPolicy):
            selection = policy.select(given=given)(labels.scores)
            output = model.bind(parameters).classify(labels, selection)
            return selection, output.logits

        self._encode = functools.partial(encode, parameters)
        self._classify = functools.partial(classify, parameters)

    def segment(
        self,
        images: Sequence[np.ndarray],
        policies: Sequence[tuple[SelectionPolicy, Selection | None]],
        allowed: Bool[np.ndarray, "C"] | None = None,
    ) -> list[list[Segmented]]:
        """Segments pictures uint8 ``[H W 3]`` of one size under each of ``policies``.

        A ``given`` selection has a row per picture. Labels that are not ``allowed`` get
        the score -inf. Returns, per policy, one `Segmented` for each batch of pictures
        where a picture is a single window, else one for each picture.
        """
        views = [
            make_views(image, self.settings, self.patch_size) for image in images
        ]
        owners = np.repeat(
            np.arange(len(images)), [sum(v.num_windows for v in vs) for vs in views]
        )
        windows = [w for vs in views for view in vs for w in view.windows()]
        sizes = [
            (view.rows.size, view.columns.size)
            for vs in views
            for view in vs
            for _ in range(view.num_windows)
        ]
        encoded = list(self._encode_all(windows, sizes, allowed))
        scores = np.concatenate([np.asarray(e.scores)[:n] for e, n in encoded])
        results = []
        for policy, given in policies:
            if self.settings.selection_scope == "per_image" and policy.name == "top_k":
                given = self._select_per_image(policy, scores, owners, len(images))
                policy = SelectionPolicy("given", policy.k)
            parts = self._classify_all(encoded, policy, given, owners)
            results.append(self._assemble(images, views, parts, scores, owners))
        return results

    def _encode_all(self, windows, sizes, allowed) -> Iterator[tuple[LabelPrediction, int]]:
        """Encodes windows in batches of two static sizes: full ones, then single ones."""
        start, full = 0, self.settings.batch_size
        while start < len(windows):
            left = len(windows) - start
            # A nearly full batch is padded; a few leftovers go one by one.
            count = full if 2 * left >= full else 1
            chosen = slice(start, min(start + count, len(windows)))
            start += count
            canvas = windows[chosen.start].shape[:2]
            batch = np.zeros((count, *canvas, 3), windows[0].dtype)
            real = np.tile(np.asarray([canvas]), (count, 1))
            for i, (window, size) in enumerate(
                zip(windows[chosen], sizes[chosen], strict=True)
            ):
                batch[i], real[i] = window, size
            image_size = None if np.all(real == canvas) else real
            labels = self._encode(self._put(batch), image_size, allowed)
            yield labels, chosen.stop - chosen.start

    def _put(self, batch: np.ndarray):
        """Splits a batch over the devices where it divides."""
        if self._sharding is None or len(batch) % self._sharding.mesh.size:
            return batch
        return jax.device_put(batch, self._sharding)

    def _select_per_image(self, policy, scores, owners, count: int) -> Selection:
        """One selection for all windows of a picture, from their highest scores."""
        best = np.stack([scores[owners == i].max(axis=0) for i in range(count)])
        return jax.device_get(policy.select()(jnp.asarray(best)))

    def _classify_all(self, encoded, policy, given, owners):
        """Per batch of windows: the selection, the logits and how many are real."""
        start = 0
        for labels, count in encoded:
            rows = None
            if given is not None:
                padded = np.resize(owners[start : start + count], len(labels.scores))
                rows = jax.tree.map(lambda x, rows=padded: np.asarray(x)[rows], given)
            yield *self._classify(labels, rows, policy), count
            start += count

    def _assemble(self, images, views, parts, scores, owners) -> list[Segmented]:
        size = images[0].shape[:2]
        first = views[0]
        rows = tuple(view.rows.matrix for view in first)
        columns = tuple(view.columns.matrix for view in first)
        if len(first) == first[0].num_windows == 1:
            # Nothing to stitch: a window is a picture, and logits stay on the device.
            results, start = [], 0
            for selection, logits, count in parts:
                own = scores[start : start + count]
                k = selection.num_ranks
                results.append(
                    Segmented(size, (logits,), rows, columns, selection, own, count, k)
                )
                start += count
            return results
        parts = [(jax.device_get(s), np.asarray(x), n) for s, x, n in parts]
        logits = np.concatenate([x[:n] for _, x, n in parts])
        class_ids = np.concatenate([s.class_ids[:n] for s, _, n in parts])
        valid = None
        if parts[0][0].valid is not None:
            valid = np.concatenate([s.valid[:n] for s, _, n in parts])
        results = []
        for i in range(len(images)):
            mine = owners == i
            union, ranks = unite(
                class_ids[mine],
                None if valid is None else valid[mine],
                self.num_classes,
            )
            filled = _take_ranks(logits[mine], ranks)
            grids, start = [], 0
            for view in first:
                chosen = filled[start : start + view.num_windows]
                start += view.num_windows
                grids.append(_stitch(chosen, view))
            selection = Selection(union[None], None, self.num_classes)
            best = scores[mine].max(axis=0, keepdims=True)
            num_labels = int(np.sum((ranks <= class_ids.shape[1]).any(axis=0)))
            grids = tuple(grids)
            results.append(
                Segmented(size, grids, rows, columns, selection, best, 1, num_labels)
            )
        return results


def unite(
    class_ids: Int[np.ndarray, "N K"],
    valid: np.ndarray | None,
    num_classes: int,
) -> tuple[Int[np.ndarray, "U"], Int[np.ndarray, "N U"]]:
    """The union of several selections, padded to one of a few static sizes.

    Returns its class ids in class order, and for each selection the rank of each of them:
    ``K`` where it did not select that class, ``K + 1`` where the union is padding.
    """
    num_windows, num_ranks = class_ids.shape
    table = np.full((num_windows, num_classes + 1), num_ranks)
    ranks = np.broadcast_to(np.arange(num_ranks), class_ids.shape)
    kept = class_ids if valid is None else np.where(valid, class_ids, num_classes)
    np.put_along_axis(table, kept, ranks, axis=1)
    union = np.flatnonzero((table[:, :-1] < num_ranks).any(axis=0))
    size = num_ranks
    while size < len(union):
        size *= 2
    size = min(size, max(num_classes, 1))
    padded = np.zeros(size, np.int32)
    padded[: len(union)] = union
    rank_of_union = np.full((num_windows, size), num_ranks + 1)
    rank_of_union[:, : len(union)] = table[:, union]
    return padded, rank_of_union


def _take_ranks(logits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Logits ``[N h w K]`` over the union, filled where a window did not select."""
    fill = np.asarray([UNSELECTED_LOGIT, NEVER], logits.dtype)
    fill = np.broadcast_to(fill, (*logits.shape[:3], 2))
    extended = np.concatenate([logits, fill], axis=-1)
    return np.take_along_axis(extended, ranks[:, None, None, :], axis=-1)


def _stitch(grids: np.ndarray, view: View) -> Float[np.ndarray, "1 h w U"]:
    """Lays the grids of a view's windows side by side."""
    num_rows, num_columns = len(view.rows.starts), len(view.columns.starts)
    _, height, width, num_labels = grids.shape
    grids = grids.reshape(num_rows, num_columns, height, width, num_labels)
    return grids.transpose(0, 2, 1, 3, 4).reshape(
        1, num_rows * height, num_columns * width, num_labels
    )
