"""Videos out of a source of frames whose names say which video they are of."""

import itertools
from collections.abc import Sequence

from input_pipeline.datasets.clips import Video, read_frames
from input_pipeline.info import DataError


class FrameVideos:
    """A source of frames, in which the frames of a folder are a video.

    Args:
      source: of frames, in order of ``names``.
      names: of all frames, without reading any: ``street/0001`` is of the video
        ``street``.
      what: the data set, for errors.

    Raises:
      DataError: a frame is in no folder, or the frames of one are not side by side.
    """

    def __init__(self, source, names: Sequence[str], what: str):
        self.info = source.info
        self._source = source
        found, start = [], 0
        for video, run in itertools.groupby(names, lambda n: n.rpartition("/")[0]):
            length = len(list(run))
            found.append(Video(video, start, length))
            start += length
        folders = [video.name for video in found]
        if not all(folders) or len(set(folders)) < len(folders):
            raise DataError(
                f"{what} has frames that belong to no video; put those of each video "
                "into a folder of its own, named in the order of time."
            )
        self.videos = tuple(found)

    def read(self, index: int, places: Sequence[int]) -> dict:
        """As `clips.read_frames`."""
        return read_frames(self._source, self.videos[index], places)
