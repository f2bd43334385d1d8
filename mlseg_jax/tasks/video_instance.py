"""Instance segmentation of videos: objects, each with a mask in every frame."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from mlseg_jax.inference.clip_engine import SegmentedClip
from mlseg_jax.inference.tracks import Track, Tracker
from mlseg_jax.metrics.instance_precision import InstancePrecision
from mlseg_jax.metrics.tracks import found_track, true_track
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.tasks.selection_evaluation import LABEL_STATES, labels_of
from mlseg_jax.tasks.video_evaluation import VIDEO_COUNTS, AbstractVideoEvaluation
from mlseg_jax.typing import IGNORE, Int


class VideoInstanceEvaluation(AbstractVideoEvaluation):
    """YouTubeVIS's average precision and recall of tracks."""

    states = ("precision", "oracle_precision", *LABEL_STATES)
    counts = VIDEO_COUNTS

    def __init__(self, config, info, **more):
        super().__init__(config, info, **more)
        empty = InstancePrecision.empty(info.num_classes, is_video=True)
        self.precision = self.oracle_precision = empty

    def begin(self, example: dict) -> None:
        self._size = example["image"].shape[:2]
        self._true = TrueTracks(self._size)
        self._tracker, self._oracle_tracker = self._make(), self._make()
        self._kept = None

    def _make(self) -> Tracker:
        return Tracker(
            self.info.class_names,
            np.asarray(self.info.is_thing, bool),
            self.config.eval.max_instances,
            whole=not self.config.eval.num_frames,
        )

    def histogram(self, truth: dict) -> Int[np.ndarray, "1 C"]:
        """Of things alone; crowds count, too."""
        everything = super().histogram(truth)
        return np.where(np.asarray(self.info.is_thing)[None], everything, 0)

    def count(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        self._true.add(truth["label_map"], truth["instance_map"])
        self._tracker.add(clip)
        if chosen := self.strip(places):
            self._kept = *labels_of(clip.frames[0]), truth, chosen

    def count_oracle(self, clip: SegmentedClip, truth: dict, places: range) -> None:
        self._oracle_tracker.add(clip)

    def end(self, example: dict) -> None:
        true, is_thing = self._true.finish(self.info.is_thing), self.info.is_thing
        if (tracks := example["frames"].tracks()) is not None:  # The file's own.
            true = tuple(
                true_track(class_id, runs, self._size, is_crowd)
                for class_id, is_crowd, runs in tracks
                if is_thing[class_id]
            )
        tracks = self._tracker.finish()
        name, size = example["name"], self._size
        found = _found(tracks, size)
        self.precision = self.precision.update(name, size, true, found)
        if self.oracle_policy:
            found = _found(self._oracle_tracker.finish(), size)
            self.oracle_precision = self.oracle_precision.update(
                name, size, true, found
            )
        if self._kept is not None:
            *_, chosen = self._kept
            self.keep_strip(*self._kept, lay_over(tracks, size, chosen))
        if self.on_segments is not None:
            self.on_segments(example, tracks)

    def truth_of(self, truth: dict) -> Int[np.ndarray, "T H W"]:
        return truth["instance_map"]

    def compute(self) -> dict[str, float]:
        metrics = self.precision.compute()
        if self.oracle_policy:
            metrics["oracle_AP"] = self.oracle_precision.compute()["AP"]
        return metrics | self.video_metrics()

    def details(self, model: MLSeg) -> dict:
        precision = self.precision.per_class()
        return self.details_of_labels(
            model,
            **{name: precision[name] for name in ("AP", "AP50", "AP75", "AR10")},
            pixel_share=self.true_pixels / max(self.true_pixels.sum(), 1),
        )


class TrueTracks:
    """The objects of a video out of its maps, frame by frame, as run lengths."""

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._num_frames = 0
        self._tracks: dict[tuple[int, int], list] = {}

    def add(
        self,
        label_maps: Int[np.ndarray, "T H W"],
        instance_maps: Int[np.ndarray, "T H W"],
    ) -> None:
        """The next frames. A crowd is one track for each class."""
        for label_map, instance_map in zip(label_maps, instance_maps, strict=True):
            is_object = (instance_map != 0) & (label_map != IGNORE)
            pairs = np.stack([instance_map[is_object], label_map[is_object]], axis=1)
            for number, class_id in np.unique(pairs, axis=0).tolist():
                inside = (instance_map == number) & (label_map == class_id)
                runs = coco_mask.encode(np.asfortranarray(inside, np.uint8))
                frames = self._tracks.setdefault((number, class_id), [])
                frames += [None] * (self._num_frames - len(frames))
                frames.append(runs)
            self._num_frames += 1

    def finish(self, is_thing: Sequence[bool]) -> tuple:
        """All tracks of things."""
        return tuple(
            true_track(
                class_id,
                [*frames, *[None] * (self._num_frames - len(frames))],
                self._size,
                number == IGNORE,
            )
            for (number, class_id), frames in self._tracks.items()
            if is_thing[class_id]
        )


def _found(tracks: Sequence[Track], size: tuple[int, int]) -> tuple:
    return tuple(
        found_track(track.class_id, track.run_lengths, size, track.score)
        for track in tracks
    )


def lay_over(
    tracks: Sequence[Track],
    size: tuple[int, int],
    places: Sequence[int],
    least_score: float = 0.5,
) -> Int[np.ndarray, "T H W"]:
    """Numbers of the tracks in some frames, the best on top; 0 where there is none.

    Those under ``least_score`` are left out, unless all are.
    """
    shown = [track for track in tracks if track.score >= least_score] or tracks[:1]
    maps = np.zeros((len(places), *size), np.int32)
    for track in reversed(shown):
        for row, place in enumerate(places):
            runs = track.run_lengths[place]
            if runs is not None:
                maps[row][coco_masks.draw(dict(runs)) > 0] = track.track_id
    return maps
