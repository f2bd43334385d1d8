"""From the ``data`` part of a configuration to a source of examples."""

import os
from collections.abc import Callable

import ml_collections
from etils import epath

from input_pipeline import segments
from input_pipeline.datasets import bad_examples, clips
from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.folder_files import USUAL_LAYOUT, FolderLayout
from input_pipeline.datasets.frame_videos import FrameVideos
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.datasets.sign_videos import SignVideos
from input_pipeline.datasets.split_parts import SplitPart, split_part
from input_pipeline.files import images
from input_pipeline.files.local_copy import local_copy
from input_pipeline.info import DataError, raise_fault
from input_pipeline.preparation.builders import BUILDERS, find_prepared

TFDS_PREFIX = "tfds:"
"""What stands before the name of any data set of TFDS."""

# Readers take (data, split, report): what to do with each fault of the files' listing.
# Those that know TFDS import it, for other data sets need not wait for it.


def _place(data: ml_collections.ConfigDict, what: str) -> str:
    if not data.path:
        raise DataError(
            f"The {data.name} data set has no place; add {what} as "
            "--config.data.path=DIRECTORY."
        )
    return local_copy(os.path.expanduser(data.path))


def read_options(data: ml_collections.ConfigDict) -> images.ReadOptions:
    """How pictures are read; runs of before these keys were there have the defaults."""
    return images.ReadOptions(
        max_pixels=getattr(data, "max_pixels", images.MAX_PIXELS),
        exif=getattr(data, "exif", True),
        white=getattr(data, "white_value", images.WHITE),
    )


def _open_folder(data: ml_collections.ConfigDict, split: str, report):
    usual = USUAL_LAYOUT
    layout = FolderLayout(
        image_folder=getattr(data, "image_folder", usual.image_folder),
        mask_folder=getattr(data, "mask_folder", usual.mask_folder),
        image_ending=getattr(data, "image_ending", usual.image_ending),
        mask_ending=getattr(data, "mask_ending", usual.mask_ending),
    )
    place = _place(data, "its folder")
    return Folder(place, split, report, layout, read_options(data))


def _open_sign_scenes(data: ml_collections.ConfigDict, split: str, report):
    is_train = split == split_part(data.train_split).name
    count = data.train_examples if is_train else data.eval_examples
    scenes = SignScenes(
        num_classes=data.num_classes,
        image_size=tuple(data.crop_size),
        split=split,
        num_examples=count,
        touching=getattr(data, "touching", 0.0),
    )
    if data.get("num_frames", 0):
        return SignVideos(scenes=scenes, length=data.get("video_length", 8))
    return scenes


def _open_coco_json(data: ml_collections.ConfigDict, split: str, report):
    from input_pipeline.datasets import coco_json

    if data.paint_order not in coco_json.PAINT_ORDERS:
        raise DataError(
            f"data.paint_order is {data.paint_order!r}; choose one of "
            f"{', '.join(coco_json.PAINT_ORDERS)}."
        )
    options = {}
    if data.classes:
        options["classes"] = os.path.expanduser(data.classes)
    return coco_json.open_coco_json(
        _place(data, "the folder of annotations and images"),
        split,
        paint_order=data.paint_order,
        background=data.background,
        report=report,
        reading=read_options(data),
        **options,
    )


def _open_coco_panoptic_json(data: ml_collections.ConfigDict, split: str, report):
    from input_pipeline.datasets import coco_json

    place = _place(data, "the folder of annotations and images")
    return coco_json.open_panoptic(place, split, report, read_options(data))


def _open_video_json(data: ml_collections.ConfigDict, split: str, report):
    from input_pipeline.datasets import video_json

    place = _place(data, "the folder of annotations and frames")
    return video_json.JsonVideos(place, split, read_options(data))


def _open_tfds(data: ml_collections.ConfigDict, split: str, report):
    from input_pipeline.datasets import tfds_source

    path = _place(data, "what was --data_dir of `tfds build`")
    if not data.classes:
        raise DataError(
            f"The data set {data.name!r} needs the meaning of its mask values; write a "
            'JSON file like {"0": "ignore", "1": "road"} and add it as '
            "--config.data.classes=FILE."
        )
    return tfds_source.TfdsSource(
        data.name.removeprefix(TFDS_PREFIX),
        path,
        split,
        image_key=data.image_key,
        label_key=data.label_key,
        classes=os.path.expanduser(data.classes),
        options=read_options(data),
    )


def _open_prepared(data: ml_collections.ConfigDict, split: str, report):
    from input_pipeline.datasets import instances, videos
    from input_pipeline.preparation import class_statistics, prepared

    command = (
        f"python main.py prepare --dataset={data.name} --manual_dir=RAW_FILES "
        f"--data_dir={data.path or 'DIRECTORY'}"
    )
    if not data.path:
        raise DataError(
            f"The data set {data.name!r} has no place; run `{command}` once, and add "
            "--config.data.path=DIRECTORY."
        )
    path = epath.Path(os.path.expanduser(data.path))
    if not (path / class_statistics.CLASSES_FILE).is_file():
        path = find_prepared(data.name, os.path.expanduser(data.path))
    if not (path / class_statistics.CLASSES_FILE).is_file():
        raise DataError(
            f"The data set {data.name!r} is not prepared in {data.path}; run: {command}"
        )
    # Of all that may be in ``data.path``, this data set alone.
    path = local_copy(str(path))
    features = prepared.stored_features(path)
    if "video_index" in features:
        return videos.PreparedVideos(path, split)
    if "instance_map" in features:
        return instances.PreparedInstances(path, split)
    return prepared.Prepared(path, split)


DATASETS = {
    "folder": _open_folder,
    "sign_scenes": _open_sign_scenes,
    "coco_json": _open_coco_json,
    "lvis_json": _open_coco_json,
    "coco_panoptic_json": _open_coco_panoptic_json,
    "video_json": _open_video_json,
    **dict.fromkeys(BUILDERS, _open_prepared),
}


def open_dataset(
    data: ml_collections.ConfigDict,
    *,
    train: bool,
    report: Callable[[DataError], None] | None = None,
):
    """The training or the evaluation split of the configured data set.

    Args:
      data: the part of a configuration.
      train: which of the splits; each may be a part of one (`split_parts`).
      report: called with each fault of a listing, such as an image without a mask, or a
        path in a JSON file that leaves its folder; the examples it concerns are left
        out if it returns. By default it does what ``data.on_bad_example`` says.

    Raises:
      DataError: there is no such data set, its files are not as they should be, or it
        has other classes than the configuration says.
    """
    name = data.name.partition("/")[0]  # What follows is a variant: coco_stuff/164k.
    opener = _open_tfds if name.startswith(TFDS_PREFIX) else DATASETS.get(name)
    if opener is None:
        raise DataError(
            f"There is no reader for the data set {data.name!r} (there are "
            f"{', '.join(DATASETS)} and {TFDS_PREFIX}NAME); convert it to a folder of "
            "images and masks."
        )
    split = data.train_split if train else data.eval_split
    skips = bad_examples.Skips()
    if report is None:
        bad_examples.check(data.on_bad_example)
        report = raise_fault if data.on_bad_example == "fail" else skips.add
    part = split_part(split)
    source = opener(data, part.name, report)
    skips.log(f"split {split!r} of {data.name}")
    if data.get("num_frames", 0):
        source = _as_clips(source, data)
    elif name == "video_json":
        raise DataError(
            "The data set 'video_json' is of videos; start from a recipe with "
            "task=video_instance or task=video_semantic (docs/video.md)."
        )
    if data.num_classes not in (0, source.info.num_classes):
        raise DataError(
            f"Data set {data.name!r} has {source.info.num_classes} classes, but "
            f"data.num_classes is {data.num_classes}; set it to 0 or correct the data."
        )
    chosen = _examples(part, data, train, len(source))
    truth = "none" if train or data.get("num_frames", 0) else data.segments
    cache = train and data.cache  # Others are read once, or a few times.
    if len(chosen) < len(source) or cache or truth != "none":
        return _Subset(source, chosen, cache, truth)
    return source


def _as_clips(source, data: ml_collections.ConfigDict) -> clips.Clips:
    """The videos of a data set, where clips are to be looked at and not pictures."""
    if isinstance(source, Folder):
        source = source.in_order_of_time()
        source = FrameVideos(source, source.names, f"The folder {data.path}")
    if getattr(source, "videos", None) is None:
        raise DataError(
            f"The task needs videos, and the data set {data.name!r} has pictures; "
            "give data.name=folder with a folder of frames for each video, "
            "video_json, vspw, youtube_vis_2019 or sign_scenes (docs/video.md)."
        )
    return clips.Clips(source, data.num_frames, data.frame_window)


def _examples(part: SplitPart, data, train: bool, length: int) -> range:
    """Of the part the first ones, as many as the configuration wants."""
    chosen = part.of(length)
    if not chosen:
        raise DataError(
            f"The part {data.train_split if train else data.eval_split!r} of "
            f"{length} examples of {data.name!r} is empty; widen it."
        )
    limit = data.train_examples if train else data.eval_examples
    return chosen[:limit] if limit else chosen


class _Subset:
    """Neighbouring examples of a source, with what an evaluation of segments needs, and
    kept in memory once read if wanted.
    """

    def __init__(self, source, chosen: range, cache: bool, truth: str = "none"):
        self.info = source.info
        self._source = source
        self._chosen = chosen
        self._kept = {} if cache else None
        self._truth = truth

    @property
    def first(self) -> int:
        """Where its first example stands in the split."""
        return self._chosen.start

    def __getstate__(self):  # Worker processes begin with nothing in memory.
        return self.__dict__ | {"_kept": None if self._kept is None else {}}

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict:
        if self._kept is None:
            return self._read(index)
        if index not in self._kept:
            self._kept[index] = self._read(index)
        return self._kept[index]

    @property
    def draw(self):
        """As `clips.Clips.draw`, of a source of videos; None of another."""
        draw = getattr(self._source, "draw", None)
        return draw and (lambda index, rng: draw(self._chosen[index], rng))

    def _read(self, index: int) -> dict:
        return segments.with_truth(
            self._truth, self._source[self._chosen[index]], self.info
        )

    @property
    def presence(self):
        """Of the examples in the subset, or None where they were never counted."""
        presence = getattr(self._source, "presence", None)
        return presence and presence.part(self._chosen)

    @property
    def unused_masks(self) -> tuple[str, ...]:
        """Of the whole source."""
        return getattr(self._source, "unused_masks", ())

    def ignored_value(self, index: int) -> int | None:
        """As `folder.Folder.ignored_value`; None where the source has none."""
        ignored_value = getattr(self._source, "ignored_value", None)
        return ignored_value and ignored_value(self._chosen[index])

    def palette(self, index: int):
        """As `folder.Folder.palette`; None where the source has none."""
        palette = getattr(self._source, "palette", None)
        return palette and palette(self._chosen[index])

    def remarks(self, index: int) -> list[DataError]:
        """As `folder.Folder.remarks`; none where the source makes none."""
        remarks = getattr(self._source, "remarks", None)
        return remarks(self._chosen[index]) if remarks else []
