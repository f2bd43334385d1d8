"""Videos as examples: clips that are drawn for training, whole videos otherwise.

What reads videos has ``info``, ``videos`` (of `Video`, whose ``start`` only readers of
frames need) and ``read(index, places)``: some frames of one, as arrays with an axis
T in front: ``image``, ``label_map`` and, where it knows instances, ``instance_map``,
in which an object has one number in all frames of its video; where frames are files,
``frame_names``, a tuple. One that reads a file of tracks also has ``ids`` of the
videos and ``tracks`` (`video_json`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.info import DataError


@dataclasses.dataclass(frozen=True)
class Video:
    """A video of a split.

    Attributes:
      name: its name.
      start: index of its first frame among the examples of the split.
      length: number of its frames.
    """

    name: str
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of one video, read when they are asked for.

    Attributes:
      videos: what reads them.
      index: of the video.
    """

    videos: object
    index: int

    @property
    def name(self) -> str:
        return self.videos.videos[self.index].name

    def __len__(self) -> int:
        return self.videos.videos[self.index].length

    def read(self, places: Sequence[int]) -> dict:
        """``image`` uint8 ``[T H W 3]``, ``label_map`` int32 ``[T H W]``, perhaps
        ``instance_map`` int32 ``[T H W]``.
        """
        return self.videos.read(self.index, places)

    @property
    def video_id(self) -> int | str:
        """What the data set's own files call it; its name where there are none."""
        ids = getattr(self.videos, "ids", None)
        return self.name if ids is None else ids[self.index]

    def tracks(self) -> list[tuple[int, bool, list]] | None:
        """As `video_json.JsonVideos.tracks`; None where the maps say it all."""
        tracks = getattr(self.videos, "tracks", None)
        return tracks and tracks(self.index)


class Clips:
    """A source whose examples are videos.

    ``[index]`` is the frame in the middle of a video, as a picture for whoever looks at
    a data set, and beside it ``frames``, the whole of it. `draw` is a clip to train on.

    Args:
      videos: what reads them; see the module docstring.
      num_frames: T of the clips.
      frame_window: how many frames the others may be from the reference frame.
    """

    def __init__(self, videos, num_frames: int, frame_window: int):
        self.info = videos.info
        self._videos = videos
        self._num_frames = num_frames
        self._window = frame_window

    def __len__(self) -> int:
        return len(self._videos.videos)

    def __getitem__(self, index: int) -> dict:
        frames = Frames(self._videos, index)
        middle = frames.read([len(frames) // 2])
        middle.pop("frame_names", None)
        return {key: value[0] for key, value in middle.items()} | {
            "name": frames.name,
            "frames": frames,
        }

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """A clip of video ``index``: arrays of T frames, and its ``name``."""
        frames = Frames(self._videos, index)
        places = draw_places(len(frames), self._num_frames, self._window, rng)
        return frames.read(places) | {"name": frames.name}


def read_frames(source, video: Video, places: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays [T ...] of some frames of a video whose frames stand side by side in a
    source, and their ``frame_names``.

    Raises:
      DataError: they differ in size.
    """
    examples = [source[video.start + place] for place in places]
    sizes = {example["label_map"].shape for example in examples}
    if len(sizes) > 1:
        raise DataError(
            f"Video {video.name} has frames of the sizes {sorted(sizes)}, "
            "which are no clip; scale them to one size and prepare again."
        )
    keys = ("image", "label_map", "instance_map")
    kept = [key for key in keys if key in examples[0]]
    arrays = {key: np.stack([example[key] for example in examples]) for key in kept}
    names = (example["name"].rpartition("/")[2] for example in examples)
    return arrays | {"frame_names": tuple(names)}


def draw_places(
    length: int, num_frames: int, window: int, rng: np.random.Generator
) -> list[int]:
    """A reference frame, and others within so many frames of it, in order of time.

    Others are drawn with replacement, as published (masks.md 6.2). The only frame of a
    video is taken again and again.
    """
    reference = int(rng.integers(length))
    near = range(max(0, reference - window), min(length, reference + window + 1))
    others = [place for place in near if place != reference] or [reference]
    return sorted([reference, *rng.choice(others, num_frames - 1).tolist()])
