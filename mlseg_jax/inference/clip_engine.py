"""From the frames of a video to regions, a chunk of frames at a time.

A chunk is what the network's queries look at together: some frames, or a whole video.
It has one selection of labels, and each of its queries one class and a mask in every
frame (masks.md 6). Frames come out as pictures with regions do (`inference.regions`),
so label maps and run lengths are made of them in tiles, whatever their number. Of a
whole video only the logits of its masks stay, in 16 bits: a fifth of their features.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mlseg_jax.distributed.sharding import on_mesh
from mlseg_jax.inference.mask_tiles import Masks
from mlseg_jax.inference.regions import SegmentedRegions, regions_of_views
from mlseg_jax.inference.views import View, make_views
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.models.interfaces import LabelPrediction, Regions, inside_mask
from mlseg_jax.typing import Array, Bool, Float

logger = logging.getLogger(__name__)

PER_CLIP = (
    "selection_scope per_clip is of models of pictures, and the clips of this one are "
    "of eval.num_frames frames; set it to per_window or per_image."
)
"""What is said to whoever asks for such clips."""


@dataclasses.dataclass(frozen=True)
class SegmentedClip:
    """A chunk of a video.

    Attributes:
      frames: each as a picture; all have the selection and the classes of the chunk.
      queries: the object queries, by which those of two chunks are told to be the same.
    """

    frames: tuple[SegmentedRegions, ...]
    queries: Float[np.ndarray, "N D"]

    @property
    def scores(self) -> Float[np.ndarray, "1 C"]:
        """Label scores of the chunk."""
        return self.frames[0].scores

    def __len__(self) -> int:
        return len(self.frames)


class ClipEngine:
    """Runs a model over chunks of frames; one compilation for each number and size.

    With `eval.selection_scope` per_image labels are selected by their highest scores in
    the video so far, so that a cut between chunks changes as little as possible.
    """

    def __init__(
        self,
        model: FunctionalModel,
        parameters: Parameters,
        settings: ml_collections.ConfigDict,
        *,
        mesh: Mesh | None = None,
    ):
        self.settings = settings
        self.mesh = mesh
        self.parameters = parameters
        self.num_classes = model.num_classes
        self.num_frames = settings.num_frames
        """Frames of a chunk; 0 is the whole video."""
        self._plan = model.grid_length, False, model.multiple
        self._num_queries = model.num_queries
        self._best, self._said = None, set()

        def encode(parameters, frames, real, allowed) -> LabelPrediction:
            bound = model.bind(parameters)
            # Zeros after normalisation; that padding is a part of the picture.
            mean = jnp.asarray(bound.pixel_mean, jnp.float32)[None, None, None, None]
            inside = inside_mask(frames.shape[-3:-1], real)[:, None, ..., None]
            frames = jnp.where(inside, frames.astype(jnp.float32), mean)
            labels = bound.encode(frames)
            if allowed is None:
                return labels
            scores = jnp.where(allowed[None], labels.scores, -jnp.inf)
            return dataclasses.replace(labels, scores=scores)

        def classify(parameters, labels, scores, given, policy: SelectionPolicy):
            selection = policy.select(given=given)(scores)
            output = model.bind(parameters).classify(labels, selection)
            return selection, output.class_logits[0, -1], output.regions.queries[0, -1]

        self._encode = jax.jit(on_mesh(mesh, encode))
        self._classify = jax.jit(on_mesh(mesh, classify), static_argnames="policy")
        self._masks = jax.jit(on_mesh(mesh, mask_logits))

    def begin(self, memory: Mapping[str, np.ndarray] | None = None) -> None:
        """A new video, or one of whose beginning this is the `memory`."""
        self._best = (memory or {}).get("best")

    def memory(self) -> dict[str, np.ndarray]:
        """What of the chunks before counts in the next one."""
        return {} if self._best is None else {"best": np.asarray(self._best)}

    def segment(
        self,
        images: Sequence[np.ndarray],
        policies: Sequence[tuple[SelectionPolicy, Selection | None]],
        allowed: Bool[np.ndarray, "C"] | None = None,
        scope: str | None = None,
    ) -> list[SegmentedClip]:
        """The chunk of frames uint8 ``[H W 3]`` of one size under each of ``policies``.

        A ``given`` selection has one row. Labels that are not ``allowed`` get the score
        -inf. ``scope`` stands in for `eval.selection_scope`.
        """
        views = [self._view(image) for image in images]
        self._say_size(views)
        frames = np.stack([next(view.windows()) for view in views])[None]
        real = np.asarray([views[0].window_size], np.int32)
        labels = self._encode(self.parameters, frames, real, allowed)
        scores = labels.scores
        if (scope or self.settings.selection_scope) == "per_image":
            best = scores if self._best is None else jnp.maximum(self._best, scores)
            self._best = scores = best
        own = np.asarray(labels.scores, np.float32)
        masks = self._masks(labels.elements)
        classified = [
            self._classify(self.parameters, labels, scores, given, policy)
            for policy, given in policies
        ]
        del labels  # and with it the mask features
        return [
            _assemble(images, views, own, masks, *jax.device_get(each))
            for each in classified
        ]

    def _say_size(self, views: Sequence[View]) -> None:
        """What stays on the devices of a chunk, before it is compiled for."""
        rows, columns = views[0].rows.canvas_cells, views[0].columns.canvas_cells
        size = len(views), rows, columns
        if size in self._said:
            return
        self._said.add(size)
        logger.info(
            "%d frames are seen together: their masks take %.1f MB after the network",
            len(views),
            2 * self._num_queries * len(views) * rows * columns / 1e6,
        )

    def _view(self, image: np.ndarray) -> View:
        (view,) = make_views(image, self.settings, *self._plan)
        return view


def mask_logits(regions: Regions) -> Float[Array, "T h w N"]:
    """Mask logits of one clip, of the last prediction, in float16.

    That has three digits: where a mask ends is right to a thousandth of a cell or so.
    Larger logits than it holds become the largest, which no probability tells.
    """
    logits = jnp.einsum(
        "thwe,ne->thwn",
        regions.features_of(-1).grid[0],
        regions.mask_embeddings[0, -1],
        preferred_element_type=jnp.float32,
    )
    most = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(logits, -most, most).astype(jnp.float16)


def _assemble(images, views, scores, masks, selection, class_logits, queries):
    """A clip of which the masks are still on the device."""
    frames = tuple(
        regions_of_views(
            image.shape[:2],
            [view],
            [(class_logits, Masks(masks, row=row))],
            selection,
            scores,
        )
        for row, (image, view) in enumerate(zip(images, views, strict=True))
    )
    return SegmentedClip(frames, queries)
