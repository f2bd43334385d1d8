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

import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np
from etils import epath

from input_pipeline.datasets import coco_format, instances, label_schema, panoptic
from input_pipeline.files import images, masks
from input_pipeline.info import DataError, DatasetInfo, raise_fault
from input_pipeline.preparation.prepared import RawExample
from mlseg_jax.typing import IGNORE

PAINT_ORDERS = ("area", "file")


class RawSource:
    """A source of raw examples that are read without having been prepared.

    Args:
      info: the classes.
      raws: the examples.

    Raises:
      DataError: there are none, or two have one name.
    """

    def __init__(self, info: DatasetInfo, raws: list[RawExample]):
        self.info = info
        self._raws = raws
        seen = set()
        for raw in raws:
            if raw.key in seen:
                raise DataError(
                    f"Data set {info.name!r} has two images named {raw.key!r}; rename "
                    "one or remove the copy from the JSON."
                )
            seen.add(raw.key)
        if not raws:
            raise DataError(f"Data set {info.name!r} has no images; add some.")

    def __len__(self) -> int:
        return len(self._raws)

    def __getitem__(self, index: int) -> dict:
        """Returns ``image``, ``label_map``, ``instance_map`` and ``name``.

        Raises:
          DataError: the image cannot be read or its size is not that of its label, or
            the label is damaged.
        """
        raw = self._raws[index]
        image = images.read_image(raw.image)
        made = raw.make_label()
        label_map = made["label_map"]
        if image.shape[:2] != label_map.shape:
            raise DataError(
                f"Image {raw.image} is {image.shape[1]}x{image.shape[0]} pixels "
                "(turned as its EXIF says) but its annotations are for "
                f"{label_map.shape[1]}x{label_map.shape[0]}; export them again.",
                kind="size",
            )
        instance_map = instances.from_file(made["instance_map"])
        example = {"image": image, "label_map": label_map, "name": raw.key}
        return example | {"instance_map": instance_map}


def list_examples(
    json_path: str | os.PathLike,
    image_dir: str | os.PathLike,
    *,
    name: str = "coco_json",
    paint_order: str = "area",
    background: str = "",
    classes: str | os.PathLike = "",
    report: Callable[[DataError], None] = raise_fault,
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
        left out if it returns.

    Raises:
      DataError: the JSON is damaged or contradicts itself.
      ValueError: another paint order.
    """
    if paint_order not in PAINT_ORDERS:
        raise ValueError(
            f"Paint order is {paint_order!r}; choose one of {PAINT_ORDERS}."
        )
    file = coco_format.read(json_path, report=report)
    extra = [background] if background else []
    if classes:
        info, class_of = _join_classes(file, epath.Path(classes), name, extra)
    else:
        info, class_of = file.info(name, extra), file.class_of()
    empty = info.num_classes - 1 if background else IGNORE
    raws = []
    for number, image in file.owners.items():
        where = f"Image {number!r} of {file.path}"
        image_name = image.get("file_name") or coco_format.lvis_image_name(image)
        try:
            size = masks.check_image_size(
                image.get("width"), image.get("height"), where
            )
            path = coco_format.image_file(
                pathlib.Path(image_dir), image_name, file.path
            )
        except DataError as fault:
            report(fault)
            continue
        if "file_name" not in image and not path.parent.is_dir():
            path = path.parent.parent / path.name  # LVIS: the folder of one split.
        regions = [(class_of[a["category_id"]], a) for a in file.annotations[number]]
        raws.append(
            RawExample(
                key=str(pathlib.PurePosixPath(image_name).with_suffix("")),
                image=path,
                make_label=functools.partial(
                    label_regions, size, regions, file.path, paint_order, empty
                ),
            )
        )
    return info, raws


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
      from 1 in the order of the file; crowds and ignored classes are IGNORE.

    Raises:
      DataError: a segmentation is damaged or does not fit the image.
    """

    def draw(i: int) -> np.ndarray:  # Again rather than kept: there may be thousands.
        return coco_format.draw(regions[i][1], size, path)

    order = range(len(regions))
    if paint_order == "area":
        order = sorted(order, key=lambda i: np.count_nonzero(draw(i)))
    # Crowds are drawn generously: what is told apart lies over them.
    order = sorted(order, key=lambda i: bool(regions[i][1].get("iscrowd")))
    top = masks.paint(((i, draw(i)) for i in order), size, empty=-1)
    class_ids, numbers = [empty], [0]
    for i, (class_id, annotation) in enumerate(regions):
        crowd = annotation.get("iscrowd") or class_id == IGNORE
        class_ids.append(class_id)
        numbers.append(IGNORE if crowd else i + 1)
    return {
        "label_map": np.int32(class_ids)[top + 1],
        "instance_map": instances.to_file(np.int32(numbers)[top + 1], str(path)),
    }


def open_coco_json(root: str | os.PathLike, split: str, **options) -> RawSource:
    """Opens a folder with a COCO or LVIS JSON; options as of `list_examples`."""
    root = pathlib.Path(root)
    json_path = _find_json(root, split, ("instances_", "lvis_v1_", "stuff_", ""))
    classes = root / "classes.json"
    if classes.is_file():
        options = {"classes": classes} | options
    image_dir = _find_images(root, split)
    return RawSource(*list_examples(json_path, image_dir, name=root.name, **options))


def open_panoptic(
    root: str | os.PathLike,
    split: str,
    report: Callable[[DataError], None] = raise_fault,
) -> RawSource:
    """Opens a folder with a panoptic JSON, its PNG files and images."""
    root = pathlib.Path(root)
    json_path = _find_json(root, split, ("panoptic_", ""))
    places = [f"annotations/panoptic_{split}", f"panoptic_{split}", "panoptic"]
    places += [f"annotations/{split}"]
    png_dir = coco_format.find(root, places, "folder of panoptic PNG files")
    image_dir = _find_images(root, split)
    return RawSource(
        *panoptic.list_examples(json_path, png_dir, image_dir, root.name, report)
    )


def _find_json(root: pathlib.Path, split: str, prefixes) -> pathlib.Path:
    if not root.is_dir():
        raise DataError(f"There is no data folder {root}; check the path.")
    places = [f"{d}{p}{split}.json" for p in prefixes for d in ("annotations/", "")]
    places.append(f"{split}/_annotations.coco.json")
    return coco_format.find(root, places, f"JSON of the split {split!r}")


def _find_images(root: pathlib.Path, split: str) -> pathlib.Path:
    places = [f"images/{split}", split, "images"]
    return coco_format.find(root, places, "folder of images")


def _join_classes(
    file: coco_format.CocoFile, path: pathlib.Path, name: str, extra: list[str]
) -> tuple[DatasetInfo, dict[int, int]]:
    """Classes and class id by category id as a classes.json says.

    A class is a thing if a category of it is.
    """
    names, class_of = label_schema.read_class_table(path)
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
            things[class_of[number]] |= bool(category.get("isthing", 1))
    return DatasetInfo(name, (*names, *extra), tuple(things)), class_of
