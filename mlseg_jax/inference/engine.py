"""From pictures of any size to logits over ranks, ready to become label maps.

Windows of all views of all pictures go through the model in batches of a static size. A
picture then needs the union of the labels that its windows selected, over which its
grids are stitched together (``views``) and upsampled in tiles (``rank_space``). This
equals the release's C-wide algorithm (method.md 12.3), in which unselected labels are
filled with
-100, and never holds C channels.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mlseg_jax.distributed.sharding import batch_sharding, on_mesh
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.views import View, make_views
from mlseg_jax.label_selection import UNSELECTED_LOGIT, Selection, SelectionPolicy
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.interfaces import LabelPrediction
from mlseg_jax.typing import Bool, Float, Int

NEVER = -1e4
"""Logit of places that only pad a union to a static size."""


class Engine:
    """Runs a model over windows; one compilation for each shape that comes along."""

    def __init__(
        self,
        model: FunctionalModel,
        parameters: Parameters,
        settings: ml_collections.ConfigDict,
        *,
        mesh: Mesh | None = None,
    ):
        self.settings = settings
        self.num_classes = model.num_classes
        self.grid_length = model.grid_length
        self.any_canvas = model.any_canvas
        self.mesh = mesh
        self._sharding = None if mesh is None else batch_sharding(mesh)
        num_devices = 1 if mesh is None else mesh.size
        # Windows of a full batch, and of one that is far from full.
        self.batch_sizes = (
            -(-settings.batch_size // num_devices) * num_devices,
            num_devices,
        )

        def encode(parameters, windows, sizes, allowed) -> LabelPrediction:
            labels = model.bind(parameters).encode(windows, image_size=sizes)
            if allowed is None:
                return labels
            scores = jnp.where(allowed[None], labels.scores, -jnp.inf)
            return dataclasses.replace(labels, scores=scores)

        def classify(parameters, labels, given, policy: SelectionPolicy):
            selection = policy.select(given=given)(labels.scores)
            output = model.bind(parameters).classify(labels, selection)
            return selection, output.logits

        def predict(parameters, windows, sizes, allowed, policy: SelectionPolicy):
            labels = encode(parameters, windows, sizes, allowed)
            return labels.scores, *classify(parameters, labels, None, policy)

        self.parameters = parameters
        # One program where each window selects for itself; two where something must
        # be known of all windows in between, or one encoding serves two selections.
        self.predict = jax.jit(on_mesh(mesh, predict), static_argnames="policy")
        self.encode = jax.jit(on_mesh(mesh, encode))
        self.classify = jax.jit(on_mesh(mesh, classify), static_argnames="policy")

    def segment(
        self,
        images: Sequence[np.ndarray],
        policies: Sequence[tuple[SelectionPolicy, Selection | None]],
        allowed: Bool[np.ndarray, "C"] | None = None,
    ) -> list[list[Segmented]]:
        """Segments pictures uint8 ``[H W 3]`` of one size under each of ``policies``.

        A ``given`` selection has a row per picture, or one for each of their views,
        picture by picture. Labels that are not ``allowed`` get
        the score -inf. Returns, per policy, one `Segmented` for each batch of pictures
        where a picture is a single window, else one for each picture.
        """
        views = [
            make_views(image, self.settings, self.grid_length, self.any_canvas)
            for image in images
        ]
        owners = np.repeat(
            np.arange(len(images)), [sum(v.num_windows for v in vs) for vs in views]
        )
        views_of = np.repeat(
            np.arange(sum(map(len, views))), [v.num_windows for vs in views for v in vs]
        )
        pictures = images, views, owners
        (policy, given), *others = policies
        per_image = self.settings.selection_scope == "per_image"
        if not others and given is None and not per_image:
            parts = [
                (*self.predict(self.parameters, *windows, allowed, policy), count)
                for windows, count in self._batches(views)
            ]
            scores = np.concatenate([np.asarray(x[0])[: x[-1]] for x in parts])
            return [self._assemble(*pictures, [x[1:] for x in parts], scores)]
        encoded = [
            (self.encode(self.parameters, *windows, allowed), count)
            for windows, count in self._batches(views)
        ]
        scores = np.concatenate([np.asarray(e.scores)[:n] for e, n in encoded])
        results = []
        for policy, given in policies:
            if per_image and policy.name == "top_k":
                given = self._select_per_image(policy, scores, owners, len(images))
                policy = SelectionPolicy("given", policy.k)
            rows = owners
            if given is not None and len(given.class_ids) > len(images):
                rows = views_of
            parts = self._classify_all(encoded, policy, given, rows)
            results.append(self._assemble(*pictures, list(parts), scores))
        return results

    def _batches(self, views) -> Iterator[tuple[tuple, int]]:
        """Windows and their real sizes, in full batches, then one per device.

        Yields the two, and how many windows of the batch are real.
        """
        windows = [
            (window, (view.rows.size, view.columns.size))
            for picture_views in views
            for view in picture_views
            for window in view.windows()
        ]
        full, few = self.batch_sizes
        # Windows of one canvas share batches; with sliding windows that is all of them.
        for canvas, run in itertools.groupby(windows, lambda item: item[0].shape[:2]):
            left = list(run)
            while left:
                # A nearly full batch is padded; leftovers go by few.
                count = full if 2 * len(left) >= full else few
                chosen, left = left[:count], left[count:]
                batch = np.zeros((count, *canvas, 3), chosen[0][0].dtype)
                real = np.tile(np.asarray([canvas]), (count, 1))
                for i, (window, size) in enumerate(chosen):
                    batch[i], real[i] = window, size
                image_size = None if np.all(real == canvas) else real
                yield (self._put(batch), image_size), len(chosen)

    def _put(self, batch: np.ndarray):
        """Splits a batch over the devices."""
        return (
            batch if self._sharding is None else jax.device_put(batch, self._sharding)
        )

    def _select_per_image(self, policy, scores, owners, count: int) -> Selection:
        """One selection for all windows of a picture, from their highest scores."""
        best = np.stack([scores[owners == i].max(axis=0) for i in range(count)])
        return jax.device_get(policy.select()(jnp.asarray(best)))

    def _classify_all(self, encoded, policy, given, rows_of):
        """Per batch of windows: the selection, the logits and how many are real.

        ``rows_of``: the row of ``given`` that each window takes.
        """
        start = 0
        for labels, count in encoded:
            rows = None
            if given is not None:
                padded = np.resize(rows_of[start : start + count], len(labels.scores))
                rows = jax.tree.map(lambda x, rows=padded: np.asarray(x)[rows], given)
            yield *self.classify(self.parameters, labels, rows, policy), count
            start += count

    def _assemble(self, images, views, owners, parts, scores) -> list[Segmented]:
        """Per picture: the union of its windows' labels, and its stitched grids."""
        sizes = {image.shape[:2] for image in images}
        if len(owners) == len(images) and len(sizes) == 1:
            return _assemble_batches(*sizes, views[0][0], parts, scores)
        parts = [(jax.device_get(s), np.asarray(x), n) for s, x, n in parts]
        windows = [
            (
                logits[i],
                selection.class_ids[i],
                None if selection.valid is None else selection.valid[i],
            )
            for selection, logits, count in parts
            for i in range(count)
        ]
        results, start = [], 0
        for i, (image, picture_views) in enumerate(zip(images, views, strict=True)):
            mine = owners == i
            count = int(mine.sum())
            logits, class_ids, valid = zip(*windows[start : start + count], strict=True)
            start += count
            union, real, ranks = unite(
                np.stack(class_ids),
                None if valid[0] is None else np.stack(valid),
                self.num_classes,
            )
            grids = [
                _take_ranks(grid, rank)
                for grid, rank in zip(logits, ranks, strict=True)
            ]
            results.append(
                Segmented(
                    image.shape[:2],
                    tuple(_stitch(grids, picture_views)),
                    tuple(view.rows.matrix for view in picture_views),
                    tuple(view.columns.matrix for view in picture_views),
                    Selection(union[None], real[None], self.num_classes),
                    scores[mine].max(axis=0, keepdims=True),
                    1,
                )
            )
        return results


def _assemble_batches(size, view: View, parts, scores) -> list[Segmented]:
    """Pictures of one size and one window: nothing to stitch, logits stay on the
    device.
    """
    results, start = [], 0
    for selection, logits, count in parts:
        own = scores[start : start + count]
        start += count
        results.append(
            Segmented(
                size,
                (logits,),
                (view.rows.matrix,),
                (view.columns.matrix,),
                selection,
                own,
                count,
            )
        )
    return results


def unite(
    class_ids: Int[np.ndarray, "N K"],
    valid: np.ndarray | None,
    num_classes: int,
) -> tuple[Int[np.ndarray, "U"], Bool[np.ndarray, "U"], Int[np.ndarray, "N U"]]:
    """The union of several selections, padded to one of a few static sizes.

    Returns its class ids in class order, which of them are no padding, and for each
    selection the rank of each of them: ``K`` where it did not select that class, ``K +
    1`` where the union is padding.
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
    return padded, np.arange(size) < len(union), rank_of_union


def _take_ranks(
    logits: Float[np.ndarray, "h w K"], ranks: Int[np.ndarray, "U"]
) -> Float[np.ndarray, "h w U"]:
    """Logits over the union, filled where a window did not select."""
    fill = np.asarray([UNSELECTED_LOGIT, NEVER], logits.dtype)
    fill = np.broadcast_to(fill, (*logits.shape[:2], 2))
    return np.concatenate([logits, fill], axis=-1)[:, :, ranks]


def _stitch(
    grids: list[Float[np.ndarray, "_ _ U"]], views: list[View]
) -> Iterator[Float[np.ndarray, "1 _ _ U"]]:
    """Per view, the grids of its windows side by side."""
    start = 0
    for view in views:
        num_rows, num_columns = len(view.rows.starts), len(view.columns.starts)
        tiles = np.stack(grids[start : start + num_rows * num_columns])
        start += len(tiles)
        _, height, width, num_labels = tiles.shape
        tiles = tiles.reshape(num_rows, num_columns, height, width, num_labels)
        yield tiles.transpose(0, 2, 1, 3, 4).reshape(
            1, num_rows * height, num_columns * width, num_labels
        )
