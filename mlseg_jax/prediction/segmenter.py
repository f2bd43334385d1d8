"""The public way to use a trained model: ``mlseg_jax.load(workdir)(image)``."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import no_type_check

import jax
import numpy as np

from input_pipeline.files.images import USUAL, ReadOptions
from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.inference.bands import MAX_PIXELS, needs_bands, segment_in_bands
from mlseg_jax.inference.clip_engine import PER_CLIP
from mlseg_jax.inference.clips import Clips
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.probabilities import write_probabilities
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.prediction import vocabulary
from mlseg_jax.prediction.clip_pictures import ClipPictures
from mlseg_jax.prediction.pictures import Picture, as_picture, as_pictures
from mlseg_jax.prediction.prediction import Prediction, make_labels
from mlseg_jax.prediction.streams import VideoState, pictures_of, stream
from mlseg_jax.prediction.tracks import Tracker
from mlseg_jax.settings.keys import check_value
from mlseg_jax.settings.kinds import COUNT, COUNT_OR_NONE, check
from mlseg_jax.typing import Bool, Int, UInt8

Found = Panoptic | tuple[Segment, ...]


class Segmenter:
    """A trained model, ready for pictures of any size."""

    def __init__(
        self,
        engine: Engine | ClipPictures,
        info: DatasetInfo,
        policy: SelectionPolicy,
        classifier: LabelScorer | None = None,
        *,
        find_segments: Callable[[SegmentedRegions], Found] | None = None,
        reading: ReadOptions = USUAL,
        font: str = "",
        step: int | None = None,
    ):
        """``classifier``: what selects, where the policy is ``given``;
        ``find_segments``: what the task makes of a picture beside its label map;
        ``reading``: how files are; ``font``: letters of overlays;
        ``step``: the training's, of its weights.
        """
        self.step = step
        self.info = info
        self.policy = policy
        self._engine = engine
        self._classifier = classifier
        self._find_segments = find_segments
        self._reading = reading
        self._font = font

    @no_type_check  # what is of another type is said in a sentence
    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        k: int | None = None,
        allowed: str | Iterable[str] | None = None,
        minimum_score: float | None = None,
        cumulative: float | None = None,
        top_labels: int = 0,
    ) -> Prediction | list[Prediction]:
        """Segments one picture, or a list of pictures of different sizes.

        Args:
          images: what `pictures.as_picture` takes: the path of a file, its bytes, a
            uint8 array ``[H W 3]`` (or ``[H W]``, ``[H W 1]``, ``[H W 4]``), a PIL
            picture; or a list of them.
          k: most labels to select; the training's by default.
          allowed: names of the only classes to consider, or one name.
          minimum_score: labels with a lower probability are not selected.
          cumulative: only the best labels that together hold this share of all labels'
            probability are. Both are the configuration's by default.
          top_labels: how many of the likeliest classes of each pixel to return with
            their probabilities; 0 for none.

        Raises:
          UserError: an unknown class name, something that is no picture, a number out
            of its range.
          DataError: a file that cannot be read.
        """
        check("top_labels", top_labels, COUNT_OR_NONE)
        narrow = k, allowed, minimum_score, cumulative
        policy, mask = vocabulary.narrowed(self.policy, self.info, *narrow)
        arrays, single = as_pictures(images, self._reading)
        predictions = list(self._predict(arrays, policy, mask, top_labels))
        return predictions[0] if single else predictions

    @no_type_check
    def video(
        self,
        frames: str | os.PathLike | Iterable[Picture],
        *,
        selection_scope: str | None = None,
        read_ahead: int | None = None,
        k: int | None = None,
        allowed: str | Iterable[str] | None = None,
        minimum_score: float | None = None,
        cumulative: float | None = None,
        top_labels: int = 0,
        state: VideoState | None = None,
    ) -> Iterator[Prediction]:
        """Segments the frames of a video as they come; few of them are held at a time.

        Args:
          frames: what `streams.pictures_of` takes: the path of a video or of a folder,
            or any iterable of pictures, also one that never ends.
          selection_scope: ``per_window``, ``per_image`` or ``per_clip``, where frames
            share a selection (`inference.clips`); the configuration's by default.
          read_ahead: frames that are read before the first of them is yielded; by
            default a batch, or a clip. 1 for a camera; of clips, those with the scores
            ``running`` go on, others end with what was read.
          k, allowed, minimum_score, cumulative, top_labels: see `__call__`.
          state: of the same video, to go on where it was left.

        Raises:
          UserError, DataError: as `__call__`, and see `streams.pictures_of`.
        """
        check("top_labels", top_labels, COUNT_OR_NONE)
        settings = self._engine.settings
        scope = selection_scope or settings.selection_scope
        check_value("eval.selection_scope", scope)
        narrow = k, allowed, minimum_score, cumulative
        policy, mask = vocabulary.narrowed(self.policy, self.info, *narrow)
        size = self._engine.batch_sizes[0]
        if read_ahead is not None:
            check("read_ahead", read_ahead, COUNT)
            size = int(read_ahead)
        state = state or self.video_state()
        if scope == "per_clip":
            if isinstance(self._engine, ClipPictures):
                raise UserError(PER_CLIP)
            scope = Clips(policy.k, settings, read_ahead, state.clip)
            size = scope.read_ahead

        def predict(images, scope):
            predictions = self._predict(images, policy, mask, top_labels, scope)
            while True:
                # Between two frames it may have seen a picture, or another video.
                self._engine.begin(state.memory)
                prediction = next(predictions, None)
                state.memory = self._engine.memory()
                if prediction is None:
                    return
                yield prediction
                del prediction

        pictures = pictures_of(frames, self._reading)
        return stream(predict, pictures, size, scope, state.tracker)

    @property
    def memory_advice(self) -> str:
        """What to do where frames need more memory than there is."""
        if isinstance(self._engine, ClipPictures):
            return "set a smaller --config.eval.num_frames, or scale the video"
        smaller = "set a smaller --config.eval.batch_size"
        if self._engine.num_queries and self._find_segments is not None:
            return f"{smaller}, or scale the video"  # seen whole, always
        return f"{smaller}, or predict in windows (--config.eval.mode=slide)"

    def video_state(self) -> VideoState:
        """Of a video of which nothing was seen."""
        if self._find_segments is None:
            return VideoState()
        least = self._engine.settings.track_score
        return VideoState(tracker=Tracker(self.info.is_thing, least))

    def video_memory(self, state: VideoState) -> dict[str, np.ndarray]:
        """What the next frame's result depends on, beside what results say: for
        `VideoState.memory`, between two calls of the model.
        """
        own = {} if state.tracker is None else state.tracker.memory()
        return {**state.memory, **own}

    @no_type_check
    def write_probabilities(self, image: Picture, path: str | os.PathLike) -> None:
        """Streams the probability of every class at every pixel to a Zarr array [C H
        W].

        The only way to the C-wide result; it exists on disk alone (`probabilities`).
        """
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise UserError(f"path is {path!r}; give that of a new directory.")
        if self._engine.num_queries:
            raise UserError(
                "Regions have scores, no probabilities of pixels; ask for top_labels."
            )
        picture = as_picture(image, self._reading)
        parts = ((rows.start, part) for rows, part in self._bands(picture))
        if not needs_bands(self._engine, picture.shape[:2]):
            parts = [(0, self._segment([picture], self.policy, None)[0])]
        num_classes = self.info.num_classes
        write_probabilities(parts, path, (num_classes, *picture.shape[:2]))

    def _segment(
        self,
        images: list[UInt8[np.ndarray, "_ _ 3"]],
        policy: SelectionPolicy,
        mask: Bool[np.ndarray, "C"] | None,
        scope: str | Clips | None = None,
    ) -> list[Segmented] | list[SegmentedRegions]:
        """Segments among the labels that the model, or the classifier, selects."""
        if policy.name != "given":
            return self._engine.segment(images, [(policy, None)], mask, scope)[0]
        scores, given = self._classify(images, policy, mask, scope)
        (results,) = self._engine.segment(images, [(policy, given)], mask)
        # The scores are the classifier's: the model has none.
        ends = np.cumsum([segmented.count for segmented in results])
        return [
            dataclasses.replace(segmented, scores=scores[end - segmented.count : end])
            for segmented, end in zip(results, ends, strict=True)
        ]

    def _bands(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        policy: SelectionPolicy | None = None,
        mask: Bool[np.ndarray, "C"] | None = None,
    ) -> Iterator[tuple[slice, Segmented]]:
        """As `_segment`, of a large picture: bands of rows, and what is in them."""
        policy = self.policy if policy is None else policy
        scores = given = None
        if policy.name == "given":
            scores, given = self._classify([image], policy, mask)
        bands = segment_in_bands(self._engine, image, policy, given, mask)
        for rows, segmented in bands:
            if scores is not None:
                segmented = dataclasses.replace(segmented, scores=scores)
            yield rows, segmented

    def _classify(self, images, policy: SelectionPolicy, mask, scope=None):
        """The classifier's scores [N C], and what is selected by them."""
        scores = self._classifier(images)
        if mask is not None:
            scores = np.where(mask[None], scores, -np.inf)
        shared = scope.shared(scores) if isinstance(scope, Clips) else scores
        return scores, jax.device_get(policy.given_by(jax.numpy.asarray(shared)))

    @no_type_check
    def class_id(self, name: str) -> int:
        """The id of a class by its name."""
        return vocabulary.class_id(self.info, name)

    def _predict(
        self, arrays, policy, mask, top_labels: int, scope: str | Clips | None = None
    ) -> Iterator[Prediction]:
        def is_large(image) -> bool:
            regions = self._engine.num_queries
            return not regions and needs_bands(self._engine, image.shape[:2])

        for large, run in itertools.groupby(arrays, is_large):
            size = 1 if large else self._engine.batch_sizes[0]
            images = list(run)
            if isinstance(scope, Clips) and large:
                raise UserError(
                    f"Frames of more than {MAX_PIXELS:,} pixels have no selection per "
                    f"clip; set eval.selection_scope to per_image."
                )
            if isinstance(scope, Clips):
                size = len(arrays)
            for start in range(0, len(images), size):
                chosen = images[start : start + size]
                if large:
                    yield self._predict_large(*chosen, policy, mask, top_labels)
                else:
                    yield from self._predict_few(
                        chosen, policy, mask, top_labels, scope
                    )

    def _predict_few(
        self, arrays, policy, mask, top_labels, scope
    ) -> Iterator[Prediction]:
        images = iter(arrays)
        for segmented in self._segment(arrays, policy, mask, scope):
            maps = segmented.label_maps()
            top = segmented.top_labels(top_labels) if top_labels else None
            selection = jax.device_get(segmented.selection)
            found = self._find_segments and self._find_segments(segmented)
            for i in range(segmented.count):
                yield self._prediction(
                    next(images),
                    maps[i],
                    _selected(selection, i),
                    segmented.scores[i],
                    (None, None) if top is None else (top[0][i], top[1][i]),
                    found,
                )

    def _predict_large(self, image, policy, mask, top_labels: int) -> Prediction:
        num_classes, size = self.info.num_classes, image.shape[:2]
        selected = np.zeros(num_classes, bool)
        scores = np.full(num_classes, -np.inf, np.float32)
        label_map, count = None, min(top_labels, num_classes)
        for rows, segmented in self._bands(image, policy, mask):
            (part,) = segmented.label_maps()
            if label_map is None:
                label_map = np.zeros(size, part.dtype)
                top = (
                    np.zeros((count, *size), part.dtype),
                    np.zeros((count, *size), np.float16),
                )
            label_map[rows] = part
            if count:  # a band may have fewer labels
                for whole, (few,) in zip(top, segmented.top_labels(count), strict=True):
                    whole[: len(few), rows] = few
            selected[_selected(jax.device_get(segmented.selection), 0)] = True
            scores = np.maximum(scores, segmented.scores[0])
        return self._prediction(
            image,
            label_map,
            np.flatnonzero(selected),
            scores,
            top if count else (None, None),
        )

    def _prediction(
        self, image, label_map, class_ids, scores, top, found=None
    ) -> Prediction:
        names = self.info.class_names
        labels = make_labels(names, label_map, class_ids, scores)
        # Behind those that were selected are ranks that only pad.
        top = (part if part is None else part[: len(class_ids)] for part in top)
        least = self._engine.settings.get("object_threshold", 0.0)
        return Prediction(
            image, label_map, labels, names, *top, found, least, self._font
        )


def _selected(selection: Selection, row: int) -> Int[np.ndarray, "n"]:
    """The class ids that are selected for a picture of a batch."""
    class_ids = selection.class_ids[row]
    return class_ids if selection.valid is None else class_ids[selection.valid[row]]
