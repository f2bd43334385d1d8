"""Panoptic labels: a PNG of segment ids beside a JSON file, as COCO writes them.

A pixel's segment is R + 256 G + 65,536 B; 0 is void. The JSON says of each segment its
category and whether it is a crowd.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.datasets import coco_format, instances
from input_pipeline.files import images
from input_pipeline.info import DataError, DatasetInfo, raise_fault
from input_pipeline.preparation.prepared import RawExample
from mlseg_jax.typing import IGNORE


def list_examples(
    json_path: str | os.PathLike,
    png_dir: str | os.PathLike,
    image_dir: str | os.PathLike,
    name: str,
    report: Callable[[DataError], None] = raise_fault,
) -> tuple[DatasetInfo, list[RawExample]]:
    """Classes and examples of a panoptic JSON file, in the order of its images.

    Args:
      json_path: file with images, annotations and categories.
      png_dir: folder of the PNG files that the annotations name.
      image_dir: folder of the images.
      name: name of the data set.
      report: called with each fault of an image or annotation in the JSON, which is
        left out if it returns.

    Returns:
      Classes in order of category id, and examples that make `label_segments`' maps.

    Raises:
      DataError: the JSON is damaged or contradicts itself.
    """
    file = coco_format.read(json_path, report=report)
    for number, category in file.categories.items():
        if category.get("isthing") not in (0, 1):
            raise DataError(
                f"Category {number} of {file.path} has isthing "
                f"{category.get('isthing')!r}; write 1 for things and 0 for stuff."
            )
    info = file.info(name)
    raws = []
    for number, image in file.owners.items():
        try:
            raws.append(_example(file, number, image, png_dir, image_dir, info))
        except DataError as fault:
            report(fault)
    return info, raws


def _example(file, number, image, png_dir, image_dir, info) -> RawExample:
    if len(file.annotations[number]) != 1:
        raise DataError(
            f"Image {number!r} of {file.path} has {len(file.annotations[number])} "
            "annotations instead of one; correct the file or remove the image.",
            kind="listing",
        )
    (annotation,) = file.annotations[number]
    image_name = image.get("file_name")
    path = coco_format.image_file(pathlib.Path(image_dir), image_name, file.path)
    png = coco_format.image_file(
        pathlib.Path(png_dir), annotation.get("file_name"), file.path
    )
    where = f"Image {number!r} of {file.path}"
    segments = _segments(annotation, file.class_of(), info, where)
    return RawExample(
        key=str(pathlib.PurePosixPath(image_name).with_suffix("")),
        image=path,
        make_label=functools.partial(label_segments, png, segments),
    )


def _segments(annotation, class_of, info, where) -> tuple[tuple[int, int, int], ...]:
    """(segment id, class id, instance) of each segment; see `instances`."""
    result, count = {}, 0
    for segment in annotation.get("segments_info", ()):
        number = segment.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or number in result:
            raise DataError(
                f"{where} has a segment with the id {number!r}, which is no number or "
                "stands twice; correct it."
            )
        class_id = class_of[segment["category_id"]]
        instance = 0
        if info.is_thing[class_id]:
            count += 1
            instance = IGNORE if segment.get("iscrowd") else count
        result[number] = (number, class_id, instance)
    return tuple(result.values())


def label_segments(
    png: str | os.PathLike, segments: Sequence[tuple[int, int, int]]
) -> dict[str, np.ndarray]:
    """Reads a PNG of segment ids.

    Args:
      png: the file.
      segments: segment id, class id and instance (0 for stuff, IGNORE for a crowd).

    Returns:
      ``label_map`` int32 [H W], void being IGNORE, and ``instance_map`` as stored.

    Raises:
      DataError: the file cannot be read or holds an id that is not listed.
    """
    ids = images.read_image(png).astype(np.int32) @ np.int32([1, 256, 65536])
    table = {0: (IGNORE, 0)} | {number: rest for number, *rest in segments}
    found, index = np.unique(ids, return_inverse=True)
    unknown = sorted(set(found.tolist()).difference(table))
    if unknown:
        raise DataError(
            f"Panoptic PNG {png} holds the segment {unknown[0]}, which its JSON does "
            "not list; get both files again, and keep the PNG in 8-bit RGB."
        )
    values = np.int32([table[number] for number in found.tolist()])
    label_map, instance_map = np.moveaxis(values[index.reshape(ids.shape)], -1, 0)
    return {
        "label_map": label_map,
        "instance_map": instances.to_file(instance_map, str(png)),
    }
