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
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mlseg_jax.distributed.sharding import batch_sharding, on_mesh
from mlseg_jax.inference.assemble import assemble_pixels, assemble_regions
from mlseg_jax.inference.clips import Clips
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.views import make_views
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.interfaces import LabelPrediction, inside_mask
from mlseg_jax.typing import Bool


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
        self.num_queries = model.num_queries
        self.multiple = model.multiple
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

        def encode(parameters, windows, sizes, real, allowed) -> LabelPrediction:
            bound = model.bind(parameters)
            if real is not None:  # Zeros after normalisation.
                mean = jnp.asarray(bound.pixel_mean, jnp.float32)[None, None, None]
                inside = inside_mask(windows.shape[1:3], real)[..., None]
                windows = jnp.where(inside, windows.astype(jnp.float32), mean)
            labels = bound.encode(windows, image_size=sizes)
            if allowed is None:
                return labels
            scores = jnp.where(allowed[None], labels.scores, -jnp.inf)
            return dataclasses.replace(labels, scores=scores)

        def classify(parameters, labels, given, policy: SelectionPolicy):
            selection = policy.select(given=given)(labels.scores)
            output = model.bind(parameters).classify(labels, selection)
            return selection, output if model.num_queries else output.logits

        def predict(parameters, windows, sizes, real, allowed, policy: SelectionPolicy):
            labels = encode(parameters, windows, sizes, real, allowed)
            return labels.scores, *classify(parameters, labels, None, policy)

        self.parameters = parameters
        self.apart = False
        """Whether `encode` and `classify` are to run where `predict` would do: for who
        needs them anyway, and would compile another program.
        """
        # One program where each window selects for itself; two where something must
        # be known of all windows in between, or one encoding serves two selections.
        self.predict = jax.jit(on_mesh(mesh, predict), static_argnames="policy")
        self.encode = jax.jit(on_mesh(mesh, encode))
        self.classify = jax.jit(on_mesh(mesh, classify), static_argnames="policy")

    def begin(self, memory: Mapping[str, np.ndarray] | None = None) -> None:
        """A new video, which changes nothing: frames are pictures here."""

    def memory(self) -> dict[str, np.ndarray]:
        """Nothing of the frames before counts; see `clip_engine.ClipEngine.memory`."""
        return {}

    def segment(
        self,
        images: Sequence[np.ndarray],
        policies: Sequence[tuple[SelectionPolicy, Selection | None]],
        allowed: Bool[np.ndarray, "C"] | None = None,
        scope: str | Clips | None = None,
    ) -> list[list[Segmented]] | list[list[SegmentedRegions]]:
        """Segments pictures uint8 ``[H W 3]`` of one size under each of ``policies``.

        A ``given`` selection has a row per picture, or one for each of their views,
        picture by picture. Labels that are not ``allowed`` get the score -inf.
        ``scope`` is what shares a selection (``eval.selection_scope`` if not given), or
        the clips of a video whose next frames the pictures are; without `Clips` each
        picture is a clip. Returns, per policy, one `Segmented` for each batch of
        pictures where a picture is a single window, else one for each picture; where
        regions are classified, one `SegmentedRegions` for each picture.
        """
        plan = self.settings, self.grid_length, self.any_canvas, self.multiple
        views = [make_views(image, *plan) for image in images]
        owners = np.repeat(
            np.arange(len(images)), [sum(v.num_windows for v in vs) for vs in views]
        )
        views_of = np.repeat(
            np.arange(sum(map(len, views))), [v.num_windows for vs in views for v in vs]
        )
        pictures = images, views, owners
        windows = [
            (window, view.window_size)
            for picture_views in views
            for view in picture_views
            for window in view.windows()
        ]
        (policy, given), *others = policies
        scope = scope or self.settings.selection_scope
        is_alone = not others and given is None and scope == "per_window"
        if is_alone and not self.apart:
            parts = [
                (*self.predict(self.parameters, *batch, allowed, policy), count)
                for batch, count in self.batches(windows)
            ]
            scores = np.concatenate([np.asarray(x[0])[: x[-1]] for x in parts])
            return [self._assemble(*pictures, [x[1:] for x in parts], scores)]
        encoded = [
            (self.encode(self.parameters, *batch, allowed), count)
            for batch, count in self.batches(windows)
        ]
        scores = np.concatenate([np.asarray(e.scores)[:n] for e, n in encoded])
        results = []
        for policy, given in policies:
            if scope != "per_window" and policy.name == "top_k":
                given = _select_shared(policy, scores, owners, len(images), scope)
                policy = SelectionPolicy("given", policy.k)
            rows = owners
            if given is not None and len(given.class_ids) > len(images):
                rows = views_of
            parts = self._classify_all(encoded, policy, given, rows)
            results.append(self._assemble(*pictures, list(parts), scores))
        return results

    def batches(
        self, windows: Sequence[tuple[np.ndarray, tuple[int, int]]]
    ) -> Iterator[tuple[tuple, int]]:
        """Windows, with their real sizes, in full batches, then one per device.

        Yields the windows, what the model sees of each and the real pixels in that
        (None where it is the same), and how many windows of the batch are real.
        """
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
                sizes = -(-real // self.multiple) * self.multiple
                sizes = None if np.all(sizes == canvas) else sizes
                inside = real if self.multiple > 1 else None
                yield (self._put(batch), sizes, inside), len(chosen)

    def _put(self, batch: np.ndarray):
        """Splits a batch over the devices."""
        return (
            batch if self._sharding is None else jax.device_put(batch, self._sharding)
        )

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

    def _assemble(self, *pictures) -> list[Segmented] | list[SegmentedRegions]:
        assemble = assemble_regions if self.num_queries else assemble_pixels
        return assemble(*pictures, self.num_classes)


def _select_shared(policy, scores, owners, count: int, scope: str | Clips) -> Selection:
    """One selection for all windows of a picture, from their highest scores, or for all
    pictures of a clip.
    """
    best = np.stack([scores[owners == i].max(axis=0) for i in range(count)])
    if isinstance(scope, Clips):
        best = scope.shared(best)
    return jax.device_get(policy.select()(jnp.asarray(best)))
