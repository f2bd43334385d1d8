"""A video through a model of pictures: frames come in, results go out, few are held."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import no_type_check

import numpy as np

from input_pipeline.files.images import ReadOptions
from input_pipeline.files.video import AbstractVideo, open_video
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError
from mlseg_jax.inference.clips import Clips
from mlseg_jax.prediction.pictures import as_picture
from mlseg_jax.prediction.prediction import Prediction
from mlseg_jax.prediction.tracks import Tracker
from mlseg_jax.typing import UInt8

Predict = Callable[[Sequence[np.ndarray], str | Clips], Iterator[Prediction]]


@dataclasses.dataclass
class VideoState:
    """What is known of the frames before.

    Attributes:
      clip: number of the next clip.
      tracker: follows segments; None where the task finds none.
      memory: what the model remembers, with which each of its calls begins; at first as
        `segmenter.Segmenter.video_memory` gave it.
    """

    clip: int = 0
    tracker: Tracker | None = None
    memory: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def stream(
    predict: Predict,
    frames: Iterator[UInt8[np.ndarray, "_ _ 3"]],
    size: int,
    scope: str | Clips,
    tracker: Tracker | None,
) -> Iterator[Prediction]:
    """The prediction of each frame, of which ``size`` are read at a time."""
    while chosen := list(itertools.islice(frames, size)):
        for i, prediction in enumerate(predict(chosen, scope)):
            more = {}
            if isinstance(scope, Clips) and scope.numbers:
                more["clip"] = scope.numbers[i]
            if tracker is not None:
                more["tracks"] = tracker.add(prediction.segments)
            yield dataclasses.replace(prediction, **more) if more else prediction
            del prediction


@no_type_check
def pictures_of(
    frames: Iterable, options: ReadOptions
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Frames as arrays, each made when it is asked for.

    Args:
      frames: the path of a video file or of a folder of frames, an array ``[T H W 3]``,
        or anything that gives pictures one after another (`pictures.as_picture`).
      options: how files are read.

    Raises:
      UserError: it is none of these; a frame that is no picture, when it is reached.
      DataError: a file that cannot be read, or only in part, when that is reached.
    """
    if isinstance(frames, str | os.PathLike):
        return _frames_of_file(open_video(frames, options))
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise UserError(
            f"A video must be an array [frames, height, width, 3], not "
            f"{list(frames.shape)}; give [image] for a single picture."
        )
    if isinstance(frames, bytes | bytearray) or not isinstance(frames, Iterable):
        raise UserError(
            f"A value of type {type(frames).__name__} is no video; give the path of a "
            f"video or of a folder of frames, or pictures one after another."
        )
    return (as_picture(frame, options) for frame in frames)


def _frames_of_file(video: AbstractVideo) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    for frame in video.frames():
        yield frame.image
    if video.problems:
        raise DataError(" ".join(video.problems[:3]))
