"""Videos: frames are the examples, a reader puts them together to clips again.

Builders store the frames of a video one after another, each with ``video`` (name),
``video_index`` (place of the video in the split), ``video_length`` (its frames) and
``frame`` (place of the frame in the video, from 0).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import instances
from input_pipeline.datasets.clips import Video, read_frames
from input_pipeline.info import DataError
from input_pipeline.preparation import class_statistics, prepared

_NUMBERS = ("video_index", "video_length", "frame")


def features() -> dict[str, Any]:
    """The TFDS features of a frame beside those of an image."""
    numbers = {name: tfds.features.Scalar(dtype=np.int32) for name in _NUMBERS}
    return {"video": tfds.features.Text()} | numbers


@dataclasses.dataclass(frozen=True)
class Frame:
    """Which frame of which video; its fields are those of `features`."""

    video: str
    video_index: int
    video_length: int
    frame: int


class PreparedVideos:
    """A split of a prepared data set of videos, by random access.

    ``len`` and ``[index]`` are frames, as `prepared.Prepared` has them; `clip` reads
    several. Where the data set has instances, ``instance_map`` holds the same number
    for an object in all frames of its video.

    Raises:
      DataError: nothing was prepared there, it has no such split, or no videos.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self._path, self._split = pathlib.Path(path), split
        self._frames = prepared.Prepared(path, split)
        self.info = self._frames.info
        builder = tfds.builder_from_directory(self._path)
        if "video_index" not in builder.info.features:
            raise DataError(
                f"Data set {self._path} has images and no videos; choose a data set of "
                "videos for clips."
            )
        skip = tfds.decode.SkipDecoding()
        pictures = ("image", "label", "instance_map")
        self._records = builder.as_data_source(
            split=split,
            decoders={p: skip for p in pictures if p in builder.info.features},
        )

    def __reduce__(self):
        return PreparedVideos, (self._path, self._split)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map``, ``name``, maybe ``instance_map``."""
        example = self._frames[index]
        if "instance_map" in example:
            example["instance_map"] = instances.from_file(example["instance_map"])
        return {k: v for k, v in example.items() if k not in ("video", *_NUMBERS)}

    @property
    def presence(self) -> class_statistics.Presence:
        """As `prepared.Prepared.presence`, of frames."""
        return self._frames.presence

    @functools.cached_property
    def videos(self) -> tuple[Video, ...]:
        """All videos, in order; found at first use, without decoding pictures."""
        found, start = [], 0
        while start < len(self):
            record = self._records[start]
            stop = self._find_end(start, record)
            found.append(Video(record["video"].decode(), start, stop - start))
            start = stop
        return tuple(found)

    def _find_end(self, start: int, record: dict) -> int:
        """Index after the last frame of the video that begins at `start`.

        Frames may be missing, skipped in preparation, so this is a binary search.
        """

        def is_inside(index: int) -> bool:
            return self._records[index]["video_index"] == record["video_index"]

        last = min(start + int(record["video_length"] - record["frame"]), len(self)) - 1
        if is_inside(last):
            return last + 1
        inside, outside = start, last
        while outside - inside > 1:
            middle = (inside + outside) // 2
            inside, outside = (
                (middle, outside) if is_inside(middle) else (inside, middle)
            )
        return outside

    def clip(
        self,
        index: int,
        num_frames: int | None = None,
        start: int = 0,
        stride: int = 1,
    ) -> dict:
        """Reads frames of one video.

        Args:
          index: of the video in `videos`.
          num_frames: frames wanted; None takes all from `start`. There are fewer where
            the video ends.
          start: its first frame.
          stride: 2 takes every second frame.

        Returns:
          ``image`` uint8 [T H W 3], ``label_map`` int32 [T H W], ``name`` str, and
          ``instance_map`` int32 [T H W] where the data set has instances: 0 for none,
          1.. for tracks, the same in all frames, IGNORE for a crowd.

        Raises:
          IndexError: there is no such video.
          DataError: num_frames or stride is below 1, the video has no frame `start`, or
            its frames differ in size.
        """
        if not 0 <= index < len(self.videos):
            raise IndexError(
                f"There is no video {index}; use 0..{len(self.videos) - 1}."
            )
        video = self.videos[index]
        stop = video.length if num_frames is None else start + num_frames * stride
        frames = range(video.length)[start : max(stop, 0) : max(stride, 1)]
        if stride < 1 or start < 0 or not frames:
            raise DataError(
                f"Video {video.name} has {video.length} frames, so none for start="
                f"{start}, num_frames={num_frames}, stride={stride}; correct these."
            )
        clip = self.read(index, frames)
        del clip["frame_names"]
        return clip | {"name": f"{video.name}/{frames[0]}"}

    def read(self, index: int, places: Sequence[int]) -> dict:
        """Any frames of video ``index``: as `clip`, but without its name.

        Raises:
          DataError: they differ in size.
        """
        return read_frames(self, self.videos[index], places)


def label_frame(make_label, frame: Frame) -> dict[str, Any]:
    """Adds which frame it is to the label, or the dict of labels, of an image."""
    made = make_label()
    made = made if isinstance(made, dict) else {"label_map": made}
    return made | dataclasses.asdict(frame)
