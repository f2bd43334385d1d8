"""What evaluations of videos share: chunks of frames, and the selection of each."""

import abc
import copy
from collections.abc import Iterator

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.inference.clip_engine import ClipEngine, SegmentedClip
from mlseg_jax.inference.pixel_counts import pixel_histogram
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.tasks.engines import evaluation_settings, oracle_policy
from mlseg_jax.tasks.segmentation_evaluation import NUM_REPORT_EXAMPLES
from mlseg_jax.tasks.selection_evaluation import (
    LABEL_COUNTS,
    AbstractSelectionEvaluation,
    PictureLabels,
    labels_there,
)
from mlseg_jax.typing import Int, UInt

VIDEO_COUNTS = (*LABEL_COUNTS, "num_frames", "true_pixels")

STRIP_FRAMES = 6
"""Frames of a video that the report shows, spread over its first chunk."""


def make_clip_engine(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    parameters: Parameters,
    mesh: Mesh | None = None,
) -> ClipEngine:
    """The engine of chunks with a configuration's ``eval`` settings."""
    return ClipEngine(model, parameters, evaluation_settings(config), mesh=mesh)


def chunks(length: int, num_frames: int) -> Iterator[range]:
    """Frames of a video that the model sees together, one range after the other; the
    last may be shorter. 0 is the whole video at once.
    """
    size = num_frames or length
    for start in range(0, length, size):
        yield range(start, min(start + size, length))


class AbstractVideoEvaluation(AbstractSelectionEvaluation):
    """Segments videos chunk by chunk, with the oracle's labels too where asked for.

    A chunk is an example as far as labels are concerned. Subclasses count what was
    found of pixels or tracks.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        info: DatasetInfo,
        **more,
    ):
        super().__init__(config, info, **more)
        self.num_frames = 0
        self.true_pixels = np.zeros(info.num_classes, np.int64)
        self.pictures = []
        self.on_segments = None

    @abc.abstractmethod
    def begin(self, example: dict) -> None:
        """A video begins."""

    @abc.abstractmethod
    def count(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        """Counts what was found in a chunk; ``truth``: its arrays of frames."""

    @abc.abstractmethod
    def count_oracle(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        """The same where the true labels were selected."""

    @abc.abstractmethod
    def end(self, example: dict) -> None:
        """A video ends."""

    def take_back(self, example: dict) -> None:
        """Takes back what was given to `on_segments` of a video with a bad frame."""

    def groups(
        self, engine: ClipEngine, examples: Iterator[dict]
    ) -> Iterator[list[dict]]:
        return ([example] for example in examples)

    def add(self, engine: ClipEngine, examples: list[dict]) -> None:
        """Segments and scores a video.

        Raises:
          DataError: one of its frames cannot be read or has another size than the
            first. Then nothing of the video is counted.
        """
        (example,) = examples
        before = {name: getattr(self, name) for name in self.states}
        counts = *self.counts, "pictures"
        before |= {name: copy.copy(getattr(self, name)) for name in counts}
        try:
            self._add_video(engine, example)
        except DataError:
            for name, value in before.items():
                setattr(self, name, value)
            self.take_back(example)
            raise

    def _add_video(self, engine: ClipEngine, example: dict) -> None:
        frames, size = example["frames"], example["image"].shape[:2]
        engine.begin()
        self.begin(example)
        for places in chunks(len(frames), engine.num_frames):
            truth = frames.read(places)
            if truth["label_map"].shape[1:] != size:
                frames.read([len(frames) // 2, *places])  # which says so
            self._add_chunk(engine, truth, places)
        self.end(example)
        self.num_examples += 1

    def _add_chunk(self, engine: ClipEngine, truth: dict, places: range) -> None:
        histogram = self.histogram(truth)
        oracle = given = None
        if self.oracle_policy or self.policy.name == "oracle":
            oracle = self.oracle_selection(histogram)
        policies = [(self.policy, None)]
        if self.policy.name == "oracle":
            policies, given = [(oracle_policy(self.config), oracle)], oracle
        if self.oracle_policy:
            policies.append((self.oracle_policy, oracle))
        clip, *with_oracle = engine.segment(list(truth["image"]), policies)
        self.count(clip, truth, places)
        if given is None:  # By the scores of the chunks before, too, where asked for.
            given = clip.frames[0].selection
        self.add_labels(clip.scores, histogram, given)
        for each in with_oracle:
            self.count_oracle(each, truth, places)
        self.num_frames += len(places)
        self.true_pixels += histogram[0]

    def histogram(self, truth: dict) -> Int[np.ndarray, "1 C"]:
        """Pixels of each class in a chunk."""
        _, *size = truth["label_map"].shape
        tall = truth["label_map"].reshape(1, -1, size[1])
        return pixel_histogram(tall, self.info.num_classes)

    def video_metrics(self) -> dict[str, float]:
        return self.label_metrics() | {"frames": self.num_frames}

    def strip(self, places: range) -> list[int]:
        """Frames of a chunk that the report shows: of the first one of a few videos."""
        if places.start or len(self.pictures) >= NUM_REPORT_EXAMPLES // 2:
            return []
        count = min(STRIP_FRAMES, len(places))
        return np.linspace(0, len(places) - 1, count).round().astype(int).tolist()

    def keep_strip(
        self,
        labels: PictureLabels,
        truth: dict,
        chosen: list[int],
        prediction: Int[np.ndarray, "n H W"] | UInt[np.ndarray, "n H W"],
    ) -> None:
        """Keeps the frames ``chosen`` of a chunk, of which these are the labels and
        the prediction.
        """
        arrays = {
            "strip": truth["image"][chosen],
            "strip_truth": self.truth_of(truth)[chosen],
            "strip_prediction": prediction,
        }
        # Scores are of the chunk, and so are the labels that they are compared with.
        there = labels_there(self.histogram(truth)[0])
        first = {"image": truth["image"][0], "label_map": there}
        self.pictures.append((first, prediction[0], arrays, labels))

    @abc.abstractmethod
    def truth_of(self, truth: dict) -> Int[np.ndarray, "T H W"]:
        """What is compared with the prediction in pictures."""

    def save_pictures(self, path: epath.Path) -> None:
        arrays = {"names": np.asarray(self.info.class_names)}
        for i, (example, prediction, strip, labels) in enumerate(self.pictures):
            arrays |= self.label_arrays(i, example, labels)
            arrays[f"prediction_{i}"] = prediction.astype(np.int32)
            arrays |= {f"{name}_{i}": value for name, value in strip.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
