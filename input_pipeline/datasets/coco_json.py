"""Anyone's own COCO or LVIS JSON, or panoptic PNG and JSON, read as it is.

Layouts of the folder; SPLIT is the name of the split, such as train or train2017::

    annotations/instances_SPLIT.json, SPLIT.json, annotations/SPLIT.json,
    annotations/panoptic_SPLIT.json, annotations/lvis_v1_SPLIT.json (or without
    annotations/), or SPLIT/_annotations.coco.json
    images/SPLIT/, SPLIT/ or images/          the images that the JSON names
    annotations/panoptic_SPLIT/, panoptic_SPLIT/ or panoptic/       PNG of segments
    classes.json                              optional: category id -> class | ignore

Masks are laid over each other by area, the smallest on top, so that an object on a
table stays visible; or in the order of the file, the first on top, as in COCO+LVIS.
Pixels without a mask are IGNORE, or a class of their own if `background` names one.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline import segments
from input_pipeline.datasets import (
    coco_format,
    coco_images,
    instances,
    label_schema,
    panoptic,
)
from input_pipeline.datasets.raw_source import RawSource
from input_pipeline.files import coco_masks, images, text
from input_pipeline.info import DataError, DatasetInfo, raise_fault
from input_pipeline.preparation.prepared import RawExample
from mlseg_jax.typing import IGNORE

PAINT_ORDERS = ("area", "file")


def list_examples(
    json_path: str | os.PathLike,
    image_dir: str | os.PathLike,
    *,
    name: str = "coco_json",
    paint_order: str = "area",
    background: str = "",
    classes: str | os.PathLike = "",
    report: Callable[[DataError], None] = raise_fault,
    max_pixels: int = images.MAX_PIXELS,
) -> tuple[DatasetInfo, list[RawExample]]:
    """Classes and examples of a JSON file of instances, in the order of its images.

    Args:
      json_path: COCO or LVIS JSON.
      image_dir: folder of the images.
      name: name of the data set.
      paint_order: "area" or "file"; see the module docstring.
      background: name of a last class for pixels without a mask; "" ignores them.
      classes: JSON file category id -> name | null; "" makes each category a class.
      report: called with each fault of an image or annotation in the JSON, which is
        left out if it returns; where a dropped annotation is, pixels are ignored.
      max_pixels: height times width of the largest image.

    Raises:
      DataError: the JSON is damaged or contradicts itself.
      ValueError: another paint order.
    """
    if paint_order not in PAINT_ORDERS:
        raise ValueError(
            f"Paint order is {paint_order!r}; choose one of {PAINT_ORDERS}."
        )
    path = pathlib.Path(json_path)
    file = coco_format.read(path, report=report)
    extra = [background] if background else []
    text.check_name(background, "data.background")
    if classes:
        info, class_of = _join_classes(file, classes, name, extra)
    else:
        info, class_of = file.info(name, extra), file.class_of()
    info = dataclasses.replace(info, raw_values=_raw_values(info, class_of, extra))
    empty = info.num_classes - 1 if background else IGNORE
    folders = [pathlib.Path(image_dir), path.parent]
    raws = []
    for number, image in file.owners.items():
        where = f"Image {number!r} of {path}"
        try:
            width, height = image.get("width"), image.get("height")
            size = coco_masks.check_image_size(width, height, where, max_pixels)
            image_name, places = coco_images.image_places(image, folders, path)
        except DataError as fault:
            report(fault)
            continue
        regions = _regions_of(file, number, class_of)
        regions = [_without_lines(*region, size, path, report) for region in regions]
        make_label = functools.partial(
            label_regions, size, regions, path, paint_order, empty
        )
        elsewhere = tuple(places[1:])
        raws.append(
            RawExample(image_name, places[0], make_label, elsewhere, image_id=number)
        )
    return info, coco_images.short_keys(raws)


def _raw_values(info, class_of, extra) -> tuple[int, ...] | None:
    """The first category id of each class; 0 for the background, if it is free."""
    first = {}
    for number, class_id in class_of.items():
        first.setdefault(class_id, number)
    if extra:
        if 0 in class_of:
            return None
        first[info.num_classes - 1] = 0
    return tuple(first[class_id] for class_id in range(info.num_classes))


def _regions_of(file, number, class_of) -> list[tuple[int, dict]]:
    """Class id and annotation of everything in an image."""
    regions = [(class_of[a["category_id"]], a) for a in file.annotations[number]]
    # Something is there that nobody can name: it is no background either.
    lost = [(IGNORE, a | {"iscrowd": 0}) for a in file.lost.get(number, ())]
    return regions + lost


def _without_lines(
    class_id: int, annotation: dict, size, path, report
) -> tuple[int, dict]:
    """A region without those of its polygons that have under three points.

    Where none is left, it is a region to ignore, behind all others, that surrounds the
    points: what was meant is unknown.
    """
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not polygons:
        return class_id, annotation
    lines = [p for p in polygons if coco_masks.is_line(p)]
    if not lines:
        return class_id, annotation
    where = coco_format.name_annotation(annotation, path)
    report(coco_masks.line_fault(lines[0], where))
    kept = [p for p in polygons if not coco_masks.is_line(p)]
    if kept:
        return class_id, annotation | {"segmentation": kept}
    around = coco_masks.surround(lines, size)
    return IGNORE, annotation | {"segmentation": around, "iscrowd": 1}


def label_regions(
    size: tuple[int, int],
    regions: list[tuple[int, dict]],
    path: pathlib.Path,
    paint_order: str,
    empty: int,
) -> dict[str, np.ndarray]:
    """Label map and instance map of one image.

    Args:
      size: (H, W).
      regions: class id or IGNORE, and annotation.
      path: JSON file, for errors.
      paint_order: see the module docstring.
      empty: class id where no mask is.

    Returns:
      ``label_map`` int32 [H W] and ``instance_map`` as stored: annotations are numbered
      from 1 in the order of the file; crowds and ignored classes are IGNORE. And
      ``instances``, a tuple of `segments.Instance`: all annotations of a class, whole
      though others lie over them.

    Raises:
      DataError: a segmentation is damaged or does not fit the image.
    """

    # Run lengths, as there may be thousands.
    shapes = [coco_format.run_lengths(region[1], size, path) for region in regions]

    order = range(len(regions))
    if paint_order == "area":
        order = sorted(order, key=lambda i: int(coco_mask.area(shapes[i])))
    # Crowds are drawn generously: what is told apart lies over them.
    order = sorted(order, key=lambda i: bool(regions[i][1].get("iscrowd")))
    top = coco_masks.paint(
        ((i, coco_masks.draw(shapes[i])) for i in order), size, empty=-1
    )
    class_ids, numbers = [empty], [0]
    for i, (class_id, annotation) in enumerate(regions):
        crowd = annotation.get("iscrowd") or class_id == IGNORE
        class_ids.append(class_id)
        numbers.append(IGNORE if crowd else i + 1)
    return {
        "label_map": np.int32(class_ids)[top + 1],
        "instance_map": instances.to_file(np.int32(numbers)[top + 1], str(path)),
        "instances": tuple(
            segments.Instance(class_id, shape, bool(a.get("iscrowd")), _area(a))
            for (class_id, a), shape in zip(regions, shapes, strict=True)
            if class_id != IGNORE
        ),
    }


def _area(annotation: dict) -> float | None:
    """What the file says, if that can be."""
    area = annotation.get("area")
    is_number = isinstance(area, int | float) and math.isfinite(area) and area > 0
    return float(area) if is_number else None


def open_coco_json(
    root: str | os.PathLike,
    split: str,
    *,
    reading: images.ReadOptions = images.USUAL,
    **options,
) -> RawSource:
    """Opens a folder with a COCO or LVIS JSON.

    Args:
      root: the folder.
      split: name of the split.
      reading: how images are read.
      **options: of `list_examples`.
    """
    root = pathlib.Path(root).expanduser()
    json_path = _find_json(root, split, ("instances_", "lvis_v1_", "stuff_", ""))
    classes = root / "classes.json"
    if classes.is_file():
        options = {"classes": classes} | options
    image_dir = _find_images(root, split, json_path)
    options |= {"name": root.name, "max_pixels": reading.max_pixels}
    return RawSource(*list_examples(json_path, image_dir, **options), reading)


def open_panoptic(
    root: str | os.PathLike,
    split: str,
    report: Callable[[DataError], None] = raise_fault,
    reading: images.ReadOptions = images.USUAL,
) -> RawSource:
    """Opens a folder with a panoptic JSON, its PNG files and images."""
    root = pathlib.Path(root).expanduser()
    json_path = _find_json(root, split, ("panoptic_", ""))
    places = [f"annotations/panoptic_{split}", f"panoptic_{split}", "panoptic"]
    places += [f"annotations/{split}"]
    png_dir = coco_format.find(root, places, "folder of panoptic PNG files")
    image_dir = _find_images(root, split, json_path)
    options = {"with_table": True, "max_pixels": reading.max_pixels}
    listed = panoptic.list_examples(
        json_path, png_dir, image_dir, root.name, report, **options
    )
    return RawSource(*listed, reading)


def _find_json(root: pathlib.Path, split: str, prefixes) -> pathlib.Path:
    if not root.is_dir():
        raise DataError(f"There is no data folder {root}; check the path.")
    places = [f"{d}{p}{split}.json" for p in prefixes for d in ("annotations/", "")]
    places.append(f"{split}/_annotations.coco.json")
    return coco_format.find(root, places, f"JSON of the split {split!r}")


def _find_images(
    root: pathlib.Path, split: str, json_path: pathlib.Path
) -> pathlib.Path:
    places = [f"images/{split}", split, "images"]
    if not any((root / place).exists() for place in places):
        for folder in (json_path.parent, root):
            suffixes = {path.suffix.lower() for path in folder.iterdir()}
            if not suffixes.isdisjoint(images.IMAGE_SUFFIXES):
                return folder
    return coco_format.find(root, places, "folder of images")


def _join_classes(
    file: coco_format.CocoFile, path: str | os.PathLike, name: str, extra: list[str]
) -> tuple[DatasetInfo, dict[int, int]]:
    """Classes and class id by category id as a classes.json says.

    A class is a thing if a category of it is.
    """
    table = label_schema.read_class_table(path)
    if table.by_colour:
        raise DataError(
            f"{path} names colours, but a JSON of annotations has numbers of "
            "categories; write those."
        )
    names, class_of = table.names, table.class_of
    unknown = [number for number in file.categories if number not in class_of]
    if unknown:
        raise DataError(
            f"{path} does not name the category {unknown[0]} of {file.path}; add it, "
            "with null to ignore it."
        )
    twice = sorted(set(names) & set(extra))
    if twice:
        raise DataError(
            f"{path} has the class {twice[0]!r}, which is the name of the background "
            "too; rename one."
        )
    things = [False] * (len(names) + len(extra))
    for number, category in file.categories.items():
        if class_of[number] != IGNORE:
            things[class_of[number]] |= coco_format.flag(
                category, "isthing", f"Category {number} of {file.path}", default=1
            )
    return DatasetInfo(name, (*names, *extra), tuple(things)), class_of
