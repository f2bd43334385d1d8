"""What was found in videos, in the files that the benchmarks take.

YouTubeVIS: ``results.json``, one entry a track with run lengths or null for each frame.
VSPW: a PNG of class ids for each frame, in the size of its mask.
"""

import json
import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from input_pipeline.files.images import write_label_map
from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.processes import gather
from mlseg_jax.inference.tracks import Track
from mlseg_jax.prediction.coco_files import categories_of
from mlseg_jax.typing import Int, UInt


class TrackFiles:
    """Writes ``results.json`` of YouTubeVIS at the end (masks.md 6.4).

    Args:
      folder: where to; it is made if it is not there.
      info: the classes; a category is that of the data set's own files, and one more
        than the class where that is not known, as in YouTubeVIS 2019.
    """

    def __init__(self, folder: str | os.PathLike, info: DatasetInfo):
        self._folder = epath.Path(folder)
        self._categories = categories_of(info, range(1, info.num_classes + 1))
        self._entries = []

    def add(self, example: dict, tracks: Sequence[Track]) -> None:
        """The tracks of a video, which has the id of the data set's own file."""
        video_id = example["frames"].video_id
        self._entries += [
            {
                "video_id": video_id,
                "category_id": self._categories[track.class_id],
                "score": track.score,
                "segmentations": [
                    None
                    if runs is None
                    else {
                        "size": list(runs["size"]),
                        "counts": runs["counts"].decode("ascii"),
                    }
                    for runs in track.run_lengths
                ],
            }
            for track in tracks
        ]

    def close(self) -> None:
        """Writes the file, of all processes' videos; all must call it."""
        parts = gather(self._entries)
        if jax.process_index() > 0:
            return
        entries = [entry for part in parts for entry in part]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "results.json").write_text(json.dumps(entries))


class LabelMapFiles:
    """Writes ``VIDEO/FRAME.png`` as frames come, class ids from 0 (VSPW; masks.md 6.3).

    Arguments are those of `TrackFiles`.
    """

    def __init__(self, folder: str | os.PathLike, info: DatasetInfo):
        self._folder = epath.Path(folder)
        self._num_classes = info.num_classes

    def add(
        self,
        example: dict,
        label_map: UInt[np.ndarray, "H W"] | Int[np.ndarray, "H W"] | None,
    ) -> None:
        """A frame; ``example`` has the names of the video and of the frame. None takes
        back all frames of a video, which cannot be read to its end.
        """
        folder = self._folder / example["name"]
        if label_map is None:
            for path in folder.glob("*.png"):
                path.unlink()
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{example['frame_name']}.png"
        write_label_map(path, label_map, self._num_classes)

    def close(self) -> None:
        """Nothing is left to write."""


VIDEO_FILES = {"video_semantic": LabelMapFiles, "video_instance": TrackFiles}
"""By task."""
