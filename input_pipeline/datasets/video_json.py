"""Anyone's own videos with a JSON as of YouTubeVIS, read as they are.

Layouts of the folder; SPLIT is the name of the split, such as train or valid::

    annotations/SPLIT.json, annotations/instances_SPLIT.json, or SPLIT.json
    SPLIT/JPEGImages/, images/SPLIT/, JPEGImages/, SPLIT/ or images/    the frames

The JSON has ``videos`` (``id``, ``width``, ``height``, ``file_names``), ``categories``
and ``annotations``, tracks with ``video_id``, ``category_id`` and ``segmentations``:
polygons, run lengths or null for each frame. A split without annotations is read, too:
nothing is known of its frames. The frames of a video lie in a folder of their own.
"""

import dataclasses
import os
import pathlib

from input_pipeline.datasets import coco_format, youtube_vis
from input_pipeline.datasets.frame_videos import FrameVideos
from input_pipeline.datasets.raw_source import RawSource
from input_pipeline.files import coco_masks, images
from input_pipeline.info import DataError

_FRAMES = "{0}/JPEGImages", "images/{0}", "JPEGImages", "{0}", "images"


class JsonVideos:
    """The videos of a split; see the module docstring.

    Attributes:
      info: the classes, all of them things unless the file says otherwise.
      videos: in the order of the file.
      ids: of the videos, as the file has them.

    Raises:
      DataError: a file or folder is missing or contradicts another one.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        reading: images.ReadOptions = images.USUAL,
    ):
        root = pathlib.Path(root).expanduser()
        if not root.is_dir():
            raise DataError(f"There is no data folder {root}; check the path.")
        names = f"annotations/{split}.json", f"annotations/instances_{split}.json"
        places = [*names, f"{split}.json"]
        path = coco_format.find(root, places, f"JSON of the split {split!r}")
        folders = [place.format(split) for place in _FRAMES]
        image_dir = coco_format.find(root, folders, "folder of frames")
        file = coco_format.read(path, owners="videos", secret=True)
        raws = [
            raw
            for index, number in enumerate(file.owners)
            for raw in youtube_vis.list_frames(file, number, index, image_dir)
        ]
        info = file.info(root.name)
        info = dataclasses.replace(info, raw_values=tuple(file.categories))
        source = RawSource(info, raws, reading)
        self._frames = FrameVideos(source, [raw.key for raw in raws], str(path))
        self._file = file
        self.info, self.videos = source.info, self._frames.videos
        self.ids = tuple(file.owners)

    def read(self, index: int, places) -> dict:
        """As `clips.read_frames`; where tracks overlap, the first is on top."""
        return self._frames.read(index, places)

    def tracks(self, index: int) -> list[tuple[int, bool, list]]:
        """Class, whether it is a crowd, and run lengths or None in each frame of all
        tracks of a video, whatever lies over them.
        """
        number = self.ids[index]
        video, class_of = self._file.owners[number], self._file.class_of()
        size = video["height"], video["width"]
        found = []
        for track in self._file.annotations[number]:
            where = f"Track {track.get('id')} of {self._file.path}"
            runs = [
                None if value is None else coco_masks.encode(value, size, where)
                for value in youtube_vis.segmentations(
                    track, video["file_names"], self._file
                )
            ]
            is_crowd = coco_format.flag(track, "iscrowd", where)
            found.append((class_of[track["category_id"]], is_crowd, runs))
        return found
