"""VSPW, 124 classes in videos at 480p.

Layout of ``manual_dir``, or of ``manual_dir/VSPW_480p``::

    {train,val}.txt                       names of videos, one a line
    data/<video>/origin/*.jpg
    data/<video>/mask/*.png               8 bits: 0 none, 1..124 classes, 125.. none

A frame counts if it has both an image and a mask. The labels of the test videos are not
public.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline.datasets import names, videos
from input_pipeline.files import images, raw_files
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import prepared, stored
from mlseg_jax.typing import IGNORE

NUM_CLASSES = 124
_LABELS = stored.RawLabels(
    {raw: raw - 1 if 0 < raw <= NUM_CLASSES else IGNORE for raw in range(256)}
)
_PUBLISHED_VIDEOS = {"train": 2_806, "val": 343}
_PUBLISHED_FRAMES = {"train": 198_244, "val": 24_502}


class Vspw(prepared.SegmentationBuilder):
    """TFDS builder; frames are named ``<video>/<stem>``; see `videos`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack VSPW_480p in manual_dir."
    # Videos and frames by split, known once raw_splits was called.
    _counts = {"train": (0, 0), "val": (0, 0)}

    def class_info(self) -> DatasetInfo:
        return names.read_info("vspw", "vspw")

    def expected_examples(self) -> dict[str, int]:
        # Complete is a copy with all videos: the published number of frames may count
        # those that lack an image or a mask.
        return {
            split: frames
            if num == _PUBLISHED_VIDEOS[split]
            else _PUBLISHED_FRAMES[split]
            for split, (num, frames) in self._counts.items()
        }

    def extra_features(self) -> dict[str, Any]:
        return videos.features()

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        root = raw_files.find_root(manual_dir, "data", "VSPW_480p")
        splits, self._counts = {}, {}
        for split in ("train", "val"):
            listed = _read_list(root / f"{split}.txt")
            splits[split] = [
                raw
                for index, video in enumerate(listed)
                for raw in _list_frames(root / "data" / video, index)
            ]
            self._counts[split] = (len(listed), len(splits[split]))
        return splits


def _read_list(path: pathlib.Path) -> list[str]:
    listed = raw_files.read_lines(path)
    for video in listed:
        if pathlib.PurePath(video).name != video or video == "..":
            raise DataError(
                f"{path} names the video {video!r}, which is no name of a folder in "
                "data; correct the line."
            )
    if len(set(listed)) < len(listed):
        twice = next(video for video in listed if listed.count(video) > 1)
        raise DataError(f"{path} names the video {twice!r} twice; remove one line.")
    return listed


def _list_frames(folder: pathlib.Path, index: int) -> list[prepared.RawExample]:
    image_of = raw_files.list_files(folder / "origin", images.IMAGE_SUFFIXES)
    mask_of = raw_files.list_files(folder / "mask", (".png",))
    stems = [stem for stem in image_of if stem in mask_of]
    return [
        prepared.RawExample(
            key=f"{folder.name}/{stem}",
            image=image_of[stem],
            make_label=functools.partial(
                videos.label_frame,
                functools.partial(stored.read_label, mask_of[stem], _LABELS),
                videos.Frame(folder.name, index, len(stems), place),
            ),
        )
        for place, stem in enumerate(stems)
    ]
