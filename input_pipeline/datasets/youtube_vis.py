"""YouTubeVIS 2019, 40 classes of things tracked through videos.

Layout of ``manual_dir``, or of ``manual_dir/ytvis_2019``::

    {train,valid}.json
    {train,valid}/JPEGImages/<video>/*.jpg

The labels of valid are secret (a server scores predictions): its label maps are all
IGNORE. Pixels outside all tracks are IGNORE too, as no class is left for them; where
two tracks overlap, the first of the file is on top. A track has one number in all
frames of its video, and no pixels where it is absent.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_format, coco_images, instances, videos
from input_pipeline.files import coco_masks, raw_files
from input_pipeline.info import DataError
from input_pipeline.preparation import prepared
from mlseg_jax.typing import IGNORE

NUM_CLASSES = 40


class YoutubeVis2019(instances.NamedByFiles):
    """TFDS builder; frames are named ``<video>/<stem>``; see `videos`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack YouTubeVIS 2019 in manual_dir."

    def extra_features(self) -> dict[str, Any]:
        return videos.features() | {"instance_map": instances.feature()}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        root = raw_files.find_root(manual_dir, "train.json", "ytvis_2019")
        splits = {}
        for split, folder in (("train", "train"), ("val", "valid")):
            path = root / f"{folder}.json"
            file = coco_format.read(path, owners="videos", secret=split == "val")
            if len(file.categories) != NUM_CLASSES:
                raise DataError(
                    f"{path} has {len(file.categories)} categories, so it is not "
                    f"YouTubeVIS 2019 with {NUM_CLASSES}; download that version."
                )
            self.found_info = file.info("youtube_vis")
            image_dir = root / folder / "JPEGImages"
            splits[split] = [
                raw
                for index, number in enumerate(file.owners)
                for raw in list_frames(file, number, index, image_dir)
            ]
        return splits


def list_frames(
    file: coco_format.CocoFile, number, index: int, image_dir: pathlib.Path
) -> list[prepared.RawExample]:
    """The frames of the video ``number`` of a file, the ``index``-th of its split."""
    video = file.owners[number]
    where = f"Video {number} of {file.path}"
    size = coco_masks.check_image_size(video.get("width"), video.get("height"), where)
    frame_names = video.get("file_names")
    if not isinstance(frame_names, list) or not frame_names:
        raise DataError(f'{where} has no "file_names"; get the file again.')
    class_of = file.class_of()
    tracks = [
        (
            class_of[track["category_id"]],
            track,
            segmentations(track, frame_names, file),
        )
        for track in file.annotations[number]
    ]
    raws = []
    for place, name in enumerate(frame_names):
        path = coco_images.image_file(image_dir, name, file.path)
        regions = [
            (
                track_number,
                class_id,
                coco_format.flag(track, "iscrowd", where),
                found[place],
            )
            for track_number, (class_id, track, found) in enumerate(tracks, start=1)
            if found[place] is not None
        ]
        make_label = functools.partial(
            label_tracks,
            size,
            regions,
            f"frame {place} of video {number} of {file.path}",
        )
        key = str(pathlib.PurePosixPath(name).with_suffix(""))
        frame = videos.Frame(key.rpartition("/")[0], index, len(frame_names), place)
        raws.append(
            prepared.RawExample(
                key=key,
                image=path,
                make_label=functools.partial(videos.label_frame, make_label, frame),
            )
        )
    return raws


def segmentations(track: dict, frame_names: list, file: coco_format.CocoFile) -> list:
    """Polygons, run lengths or None of a track by frame."""
    found = track.get("segmentations")
    if not isinstance(found, list) or len(found) != len(frame_names):
        text = f"{len(found)} segmentations" if isinstance(found, list) else "none"
        raise DataError(
            f"Track {track.get('id')} of {file.path} has {text} for a video of "
            f"{len(frame_names)} frames; get the file again."
        )
    return [value or None for value in found]


def label_tracks(
    size: tuple[int, int],
    regions: Sequence[tuple[int, int, bool, object]],
    where: str,
) -> dict[str, np.ndarray]:
    """Label map and instance map of one frame.

    Args:
      size: (H, W).
      regions: number of the track, class id, whether it is a crowd, segmentation.
      where: the frame, for errors.

    Returns:
      ``label_map`` int32 [H W] and ``instance_map`` as stored.

    Raises:
      DataError: a segmentation is damaged or does not fit the video.
    """
    top = coco_masks.paint(
        (
            (place, coco_masks.decode(region[3], size, f"Track {region[0]} in {where}"))
            for place, region in enumerate(regions)
        ),
        size,
        empty=-1,
    )
    values = [(IGNORE, 0)]
    values += [
        (class_id, IGNORE if crowd else number)
        for number, class_id, crowd, _ in regions
    ]
    label_map, instance_map = np.moveaxis(np.int32(values)[top + 1], -1, 0)
    return {
        "label_map": label_map,
        "instance_map": instances.to_file(instance_map, where),
    }
