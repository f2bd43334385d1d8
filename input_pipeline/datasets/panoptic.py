"""Panoptic labels: a PNG of segment ids beside a JSON file, as COCO writes them.

A pixel's segment is R + 256 G + 65,536 B; 0 is void. The JSON says of each segment its
category and whether it is a crowd.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from input_pipeline.datasets import coco_format, coco_images, instances
from input_pipeline.files import images, mask_files
from input_pipeline.info import DataError, DatasetInfo, raise_fault
from input_pipeline.preparation.prepared import RawExample
from input_pipeline.segments import SegmentEntry
from mlseg_jax.typing import IGNORE, VOID

MAX_ID = 2**24 - 1
"""Largest segment id that fits in the three bytes of a pixel."""


def list_examples(
    json_path: str | os.PathLike,
    png_dir: str | os.PathLike,
    image_dir: str | os.PathLike,
    name: str,
    report: Callable[[DataError], None] = raise_fault,
    *,
    with_table: bool = False,
    max_pixels: int = images.MAX_PIXELS,
) -> tuple[DatasetInfo, list[RawExample]]:
    """Classes and examples of a panoptic JSON file, in the order of its images.

    Args:
      json_path: file with images, annotations and categories.
      png_dir: folder of the PNG files that the annotations name.
      image_dir: folder of the images.
      name: name of the data set.
      report: called with each fault of an image or annotation in the JSON, which is
        left out if it returns.
      with_table: whether examples also have the file's own segments; builders have no
        feature for them.
      max_pixels: height times width of the largest PNG that is read.

    Returns:
      Classes in order of category id, and examples that make `label_segments`' maps.

    Raises:
      DataError: the JSON is damaged or contradicts itself.
    """
    file = coco_format.read(json_path, report=report)
    for number, category in file.categories.items():
        if category.get("isthing") is None:
            raise DataError(
                f"Category {number} of {file.path} has isthing None; write 1 for "
                "things and 0 for stuff."
            )
    info = file.info(name)
    info = dataclasses.replace(info, raw_values=tuple(file.categories))
    options, raws = {"with_table": with_table, "max_pixels": max_pixels}, []
    for number, image in file.owners.items():
        if number in file.lost and not file.annotations[number]:
            continue  # Its whole annotation was reported.
        try:
            raw = _example(file, number, image, png_dir, image_dir, info, **options)
            raws.append(raw)
        except DataError as fault:
            report(fault)
    return info, coco_images.short_keys(raws)


def _example(
    file, number, image, png_dir, image_dir, info, with_table, max_pixels
) -> RawExample:
    if len(file.annotations[number]) != 1:
        raise DataError(
            f"Image {number!r} of {file.path} has {len(file.annotations[number])} "
            "annotations instead of one; correct the file or remove the image.",
            kind="listing",
        )
    (annotation,) = file.annotations[number]
    folders = [pathlib.Path(image_dir), file.path.parent]
    image_name, places = coco_images.image_places(image, folders, file.path)
    png = coco_images.image_file(
        pathlib.Path(png_dir), annotation.get("file_name"), file.path
    )
    where = f"Image {number!r} of {file.path}"
    segments = _segments(annotation, file.class_of(), info, where)
    # The pixels of segments that were reported are void.
    known = {segment for segment, *_ in segments}
    lost = [segment.get("id") for segment in file.lost.get(number, ())]
    lost = [i for i in lost if type(i) is int and 0 < i <= MAX_ID and i not in known]
    segments += tuple((segment, IGNORE, 0) for segment in lost)
    areas = dict.fromkeys(lost) | _areas(annotation)
    table = _table(annotation, file.class_of()) if with_table else None
    limit = {"max_pixels": max_pixels}
    return RawExample(
        key=image_name,
        image=places[0],
        make_label=functools.partial(label_segments, png, segments, table, **limit),
        elsewhere=tuple(places[1:]),
        remarks=functools.partial(odd_segments, png, areas, where, **limit),
        image_id=number,
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
        if not 0 < number <= MAX_ID:
            raise DataError(
                f"{where} has a segment with the id {number}, but the three bytes of a "
                f"pixel hold 1 to {MAX_ID:,}; number the segments of each image anew.",
                kind="listing",
            )
        class_id = class_of[segment["category_id"]]
        instance = 0
        if info.is_thing[class_id]:
            count += 1
            instance = IGNORE if segment.get("iscrowd") else count
        result[number] = (number, class_id, instance)
    return tuple(result.values())


def _areas(annotation: dict) -> dict[int, Any]:
    """What the file says of each segment's area; None where it says nothing."""
    return {s["id"]: s.get("area") for s in annotation.get("segments_info", ())}


def _whole(area: Any) -> int:
    """An area as a number of pixels; some tools write 150.0. -1 is no number."""
    is_number = isinstance(area, int | float) and not isinstance(area, bool)
    return round(area) if is_number and math.isfinite(area) else -1


def _table(annotation: dict, class_of: dict[int, int]) -> tuple[SegmentEntry, ...]:
    """The segments as the file has them; an area below 1 is to be counted."""
    return tuple(
        SegmentEntry(
            segment["id"],
            class_of[segment["category_id"]],
            bool(segment.get("iscrowd")),
            _whole(segment.get("area")),
        )
        for segment in annotation.get("segments_info", ())
    )


def label_segments(
    png: str | os.PathLike,
    segments: Sequence[tuple[int, int, int]],
    table: tuple[SegmentEntry, ...] | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> dict[str, Any]:
    """Reads a PNG of segment ids.

    Args:
      png: the file.
      segments: segment id, class id (IGNORE: void) and instance (0 for stuff, IGNORE
        for a crowd).
      table: the segments for an evaluation; None makes no ``segments``.
      max_pixels: height times width of the largest PNG that is read.

    Returns:
      ``label_map`` int32 [H W], void being IGNORE, and ``instance_map`` as stored; with
      a table also ``segment_map`` int32 [H W] of the file's ids, and ``segments``.

    Raises:
      DataError: the file cannot be read, holds an id that is not listed, or none of
        those that are.
    """
    meaning = {0: (IGNORE, 0)} | {number: rest for number, *rest in segments}
    ids = _read_segments(png, meaning, max_pixels)
    found, index, areas = np.unique(ids, return_inverse=True, return_counts=True)
    if segments and found.tolist() == [0]:
        raise DataError(
            f"Panoptic PNG {png} is 0 everywhere, though its JSON lists "
            f"{len(segments)} segments; get both files again."
        )
    values = np.int32([meaning[number] for number in found.tolist()])
    label_map, instance_map = np.moveaxis(values[index.reshape(ids.shape)], -1, 0)
    maps = {
        "label_map": label_map,
        "instance_map": instances.to_file(instance_map, str(png)),
    }
    if table is None:
        return maps
    area_of = dict(zip(found.tolist(), areas.tolist(), strict=True))
    counted = tuple(
        s if s.area > 0 else s._replace(area=area_of.get(s.segment_id, 0))
        for s in table
    )
    segment_map = np.where(label_map == IGNORE, VOID, ids).astype(np.int32)
    return maps | {"segment_map": segment_map, "segments": counted}


def odd_segments(
    png: str | os.PathLike,
    areas: Mapping[int, Any],
    where: str,
    max_pixels: int = images.MAX_PIXELS,
) -> list[DataError]:
    """Faults if the JSON lists segments without a pixel, or with another area.

    Args:
      png: the file.
      areas: what the JSON says of each segment's area, None for nothing.
      where: the image, for the faults.
      max_pixels: height times width of the largest PNG that is read.

    Raises:
      DataError: the file cannot be read or holds an id that is not listed.
    """
    ids = _read_segments(png, areas.keys() | {0}, max_pixels)
    pixels = dict(zip(*(x.tolist() for x in np.unique_counts(ids)), strict=True))
    empty = [str(number) for number in sorted(areas.keys() - pixels)]
    differing = [
        f"{number}: {area!r} for {pixels[number]}"
        for number, area in sorted(areas.items())
        if number in pixels and area is not None and area != pixels[number]
    ]
    return [
        DataError(
            f"{where} has {len(found)} segments {what} {png} ({', '.join(found[:3])}"
            f"{', ...' if found[3:] else ''}); {advice}.",
            kind=kind,
        )
        for kind, found, what, advice in (
            ("empty_segment", empty, "without a pixel in", "get both files again"),
            (
                "segment_area",
                differing,
                "whose area is not their number of pixels in",
                "write the areas anew",
            ),
        )
        if found
    ]


def _read_segments(
    png: str | os.PathLike, known: Container[int], max_pixels: int
) -> np.ndarray:
    """Segment of each pixel, int64 [H W], in the first way that gives known ones."""
    unknown = None
    for ids in _readings(images.read_bytes(png), png, max_pixels):
        strange = [i for i in np.unique(ids).tolist() if i not in known]
        if not strange:
            return ids
        unknown = strange[0] if unknown is None else unknown
    raise DataError(
        f"Panoptic PNG {png} holds the segment {unknown}, which its JSON does not "
        "list; get both files again, and keep the PNG in 8-bit RGB."
    )


def _readings(
    data: bytes, png: str | os.PathLike, max_pixels: int
) -> Iterator[np.ndarray]:
    """What the pixels may mean, the likeliest first.

    Programs that write 16 bits put the three bytes of a segment in 16-bit channels, or
    stretch them to 0..65535, or write the segment as one grey value.
    """
    with images.open_picture(data, png, max_pixels) as picture:
        mode, is_png = picture.mode, picture.format == "PNG"
        is_deep = is_png and data[24] == 16  # The 25th byte of a PNG is its depth.
        if is_deep:
            images.load_pixels(picture, png)  # It knows damage that cv2 passes over.
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            values = values.astype(np.int64)
    if not is_deep:
        options = images.ReadOptions(max_pixels)
        yield _join_bytes(images.image_from_bytes(data, png, options).astype(np.int64))
        if is_png and mode in ("1", "L", "P"):
            values, _ = mask_files.mask_from_bytes(data, png, max_pixels)
            yield values.astype(np.int64)
        return
    if values.ndim == 3:  # Blue, green, red, perhaps alpha.
        values = values[..., 2::-1]
    for ids in (values,) if (values % 257).any() else (values, values // 257):
        yield _join_bytes(ids) if ids.ndim == 3 else ids


def _join_bytes(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.int64([1, 256, 65536])
