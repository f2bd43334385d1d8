"""Segments in COCO's files, which other tools read: panoptic and instances.

Panoptic: a PNG of each picture, segment id = R + 256 G + 65,536 B with 0 for void, and
one JSON that names the class of each segment (masks.md 5.1). Instances: masks as run
lengths, once as annotations with their pictures and classes, as data sets have them,
and once as the bare list of results that COCO's evaluators take.
"""

import json
import os
from collections.abc import Mapping, Sequence

import cv2
import jax
import numpy as np
from etils import epath

from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.processes import gather
from mlseg_jax.errors import UserError
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction.visualise import class_colours
from mlseg_jax.typing import VOID, Int, UInt8

MAX_SEGMENT_ID = 2**24 - 1
"""Three bytes hold no more."""

_MISSING = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_STUFF = (92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141)
_STUFF += (144, 145, 147, 148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175)
_STUFF += (176, 177, 178, 180, 181, *range(184, 201))
CATEGORY_IDS = {
    "coco_panoptic": tuple(i for i in range(1, 91) if i not in _MISSING) + _STUFF,
}
"""Category of each class in a data set's own files, which a prepared one forgets."""


def categories_of(info: DatasetInfo, otherwise: Sequence[int]) -> tuple[int, ...]:
    """The category of each class in the files that it came from, so that those written
    mean the same; ``otherwise`` where that is not known, or is no number.
    """
    raw_values = info.raw_values or ()
    if raw_values and all(isinstance(value, int) for value in raw_values):
        return tuple(raw_values)
    published = CATEGORY_IDS.get(info.name, ())
    return tuple(published if len(published) == info.num_classes else otherwise)


def encode_segment_ids(
    segment_map: Int[np.ndarray, "H W"], where: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Segment ids as colours (RGB).

    Raises:
      UserError: an id needs more than three bytes, or is negative.
    """
    low, high = segment_map.min(initial=0), segment_map.max(initial=0)
    if low < 0 or high > MAX_SEGMENT_ID:
        wrong = low if low < 0 else high
        raise UserError(
            f"{where} has the segment id {wrong}, but a panoptic PNG holds 0 to "
            f"{MAX_SEGMENT_ID:,}; number the segments of each picture anew."
        )
    picture = np.empty((*segment_map.shape, 3), np.uint8)
    for channel in range(3):
        picture[..., channel] = (segment_map >> 8 * channel) & 255
    return picture


class _CocoWriter:
    """What both kinds of files share: pictures, classes, and categories."""

    def __init__(
        self,
        folder: str | os.PathLike,
        info: DatasetInfo,
        category_ids: Sequence[int] | None = None,
    ):
        self.folder = epath.Path(folder)
        if category_ids is None:
            category_ids = categories_of(info, range(info.num_classes))
        self.category_ids = tuple(category_ids)
        # Viewers, and panopticapi's `IdGenerator`, take the colours from here.
        colours = class_colours(info.class_names).tolist()
        columns = self.category_ids, info.class_names, info.is_thing, colours
        self.categories = [
            {"id": number, "name": name, "isthing": int(thing), "color": colour}
            for number, name, thing, colour in zip(*columns, strict=True)
        ]
        self.images = []
        self.annotations = []

    def _add_image(self, image_id: int | str, file_name: str, size) -> None:
        height, width = (int(side) for side in size)
        self.images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )

    def _write(self, name: str) -> None:
        parts = ("images", "annotations", "categories")
        text = json.dumps({part: getattr(self, part) for part in parts})
        (self.folder / name).write_text(text)

    def gather(self) -> None:
        """Takes over what the writers of all processes have, each its own pictures."""
        parts = gather((self.images, self.annotations))
        self.images = [image for images, _ in parts for image in images]
        self.annotations = [each for _, annotations in parts for each in annotations]

    def identify(self, image_ids: Mapping[int | str, int | str]) -> None:
        """Other ids for images that have their whole names as ids so far. A file is
        then named without its folder, if that leaves no two names equal.
        """
        names = [image["file_name"] for image in self.images]
        short = _first_unique([os.path.basename(name) for name in names], names)
        for image, name in zip(self.images, short, strict=True):
            image |= {"id": image_ids[image["id"]], "file_name": name}
        for annotation in self.annotations:
            annotation["image_id"] = image_ids[annotation["image_id"]]


class PanopticWriter(_CocoWriter):
    """Writes ``panoptic/*.png`` as pictures come, and ``panoptic.json`` at the end.

    Args:
      folder: where to; it is made if it is not there.
      info: the classes.
      category_ids: number of each class in the JSON; by default as in the data set's
        own files (`categories_of`), else the class id.
    """

    def add(
        self, image_id: int | str, file_name: str, stem: str, panoptic: Panoptic
    ) -> None:
        """Writes a picture's segments.

        Args:
          image_id, file_name: of the picture, as other files call it.
          stem: name of its PNG without the ending, perhaps with folders; unique.
          panoptic: its segments.

        Raises:
          UserError: a segment id needs more than three bytes.
        """
        where = f"The picture {file_name}"
        colours = encode_segment_ids(panoptic.segment_map, where)
        png = self.folder / "panoptic" / f"{stem}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        _, data = cv2.imencode(".png", colours[..., ::-1])
        png.write_bytes(data.tobytes())
        self._add_image(image_id, file_name, panoptic.segment_map.shape)
        self.annotations.append(
            {
                "image_id": image_id,
                "file_name": f"{stem}.png",
                "segments_info": [
                    {
                        "id": segment.segment_id,
                        "category_id": self.category_ids[segment.class_id],
                        "area": segment.area,
                        "bbox": list(segment.box),
                        "iscrowd": 0,
                        "score": segment.score,
                    }
                    for segment in panoptic.segments
                    if segment.segment_id != VOID
                ],
            }
        )

    def close(self) -> None:
        """Writes the JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("panoptic.json")


class InstanceWriter(_CocoWriter):
    """Writes ``instances.json`` and ``instances_results.json`` at the end.

    The first is a data set with scores, the second COCO's bare list of results.
    Arguments are those of `PanopticWriter`.
    """

    def add(
        self,
        image_id: int | str,
        file_name: str,
        size: tuple[int, int],
        segments: Sequence[Segment],
    ) -> None:
        """Takes a picture's instances, by falling score."""
        self._add_image(image_id, file_name, size)
        for segment in segments:
            runs = segment.run_lengths
            counts = runs["counts"].decode("ascii")
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[segment.class_id],
                    "segmentation": {"size": list(runs["size"]), "counts": counts},
                    "area": segment.area,
                    "bbox": list(segment.box),
                    "iscrowd": 0,
                    "score": segment.score,
                }
            )

    def close(self) -> None:
        """Writes both files."""
        for number, annotation in enumerate(self.annotations, start=1):
            annotation["id"] = number
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("instances.json")
        # No boxes: pycocotools would take the areas from them.
        kept = ("image_id", "category_id", "segmentation", "score")
        results = [{key: entry[key] for key in kept} for entry in self.annotations]
        (self.folder / "instances_results.json").write_text(json.dumps(results))


def image_ids_of(names: Sequence[str]) -> list[int | str]:
    """The number of each picture whose files are called after it, as COCO's are, else
    as much of its name as tells all ``names``, which differ, apart.
    """
    paths = [os.path.splitext(name)[0] for name in names]
    stems = [os.path.basename(path) for path in paths]
    numbers = [int(stem) if stem.isdecimal() else stem for stem in stems]
    return _first_unique(numbers, stems, paths, names)


def _first_unique(*choices: Sequence) -> list:
    """The first list that has nothing twice, or the last."""
    unique = (each for each in choices if len(set(each)) == len(each))
    return list(next(unique, choices[-1]))


class SegmentFiles:
    """Writes what a task found in pictures, in the files that its evaluators take.

    Args:
      task: ``panoptic`` or ``instance``.
      folder: where to.
      info: the classes.
    """

    def __init__(self, task: str, folder: str | os.PathLike, info: DatasetInfo):
        self._writer = _WRITERS[task](folder, info)
        self._image_ids: dict[str, int | str | None] = {}

    def add(
        self, name: str, stem: str, size, found, image_id: int | str | None = None
    ) -> None:
        """The segments of a picture: `Panoptic`, or instances.

        Args:
          name: of the picture's file, or of the example; each has another.
          stem: of files that are written for it alone; it may have folders.
          size: its height and width.
          found: its segments.
          image_id: as the data set's own file has it; None makes one of the name.
        """
        self._image_ids[name] = image_id
        if isinstance(found, Panoptic):
            self._writer.add(name, name, stem, found)
        else:
            self._writer.add(name, name, size, found)

    def close(self) -> None:
        """Writes the JSON, of all processes' pictures; all must call it."""
        self._writer.gather()
        image_ids = {}
        for part in gather(self._image_ids):
            image_ids |= part
        if jax.process_index() == 0:
            made = zip(image_ids, image_ids_of(list(image_ids)), strict=True)
            self._writer.identify(
                {
                    name: made_id if image_ids[name] is None else image_ids[name]
                    for name, made_id in made
                }
            )
            self._writer.close()


_WRITERS = {
    "panoptic": PanopticWriter,
    "instance": InstanceWriter,
    "video_instance": InstanceWriter,
}
