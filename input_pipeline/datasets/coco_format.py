"""JSON files of the COCO family, checked: instances, LVIS, stuff, panoptic, videos.

Every mistake is found when the file is read, not in the middle of a training run, apart
from pictures and segmentations, which are looked at one by one when they are needed.
"""

import array
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from input_pipeline.files import coco_masks, text
from input_pipeline.info import DataError, DatasetInfo, raise_fault

# What is kept of an annotation; the rest (boxes, key points) would fill the memory.
_KEPT = (
    "id", "image_id", "video_id", "category_id", "iscrowd", "area", "segmentation",
    "segmentations",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """A JSON file of the COCO family.

    Attributes:
      path: the file, for errors.
      owners: what annotations belong to, images or videos, by id in file order.
      annotations: annotations of each owner's id in file order, maybe none.
      categories: categories by id in order of id.
      has_annotations: False if the file keeps them secret, as test sets do.
      lost: annotations and segments of each owner's id that a fault was reported of:
        something is where they are, but nobody knows what.
    """

    path: pathlib.Path
    owners: dict[int | str, dict]
    annotations: dict[int | str, list[dict]]
    categories: dict[int, dict]
    has_annotations: bool = True
    lost: dict[int | str, list[dict]] = dataclasses.field(default_factory=dict)

    def class_of(self) -> dict[int, int]:
        """Class id by category id: categories are numbered in order of their ids."""
        return {category: index for index, category in enumerate(self.categories)}

    def info(self, name: str, extra: Iterable[str] = ()) -> DatasetInfo:
        """Classes of the file, things unless it says ``isthing: 0``, then extra ones.

        Raises:
          DataError: a name is missing or stands twice.
        """
        categories = self.categories.values()
        names = [category["name"].strip() for category in categories] + list(extra)
        if len(set(names)) < len(names):
            ((twice, _),) = collections.Counter(names).most_common(1)
            raise DataError(
                f"{self.path} has two categories named {twice!r}; give each its own "
                "name, or join them in a classes.json of category ids, with null for "
                'what to ignore, such as {"0": null, "1": "car"}.'
            )
        things = [
            flag(category, "isthing", f"Category {number} of {self.path}", default=1)
            for number, category in self.categories.items()
        ]
        things += [False] * (len(names) - len(things))
        return DatasetInfo(name, tuple(names), tuple(things))


def read(
    path: str | os.PathLike,
    *,
    owners: str = "images",
    secret: bool = False,
    report: Callable[[DataError], None] = raise_fault,
) -> CocoFile:
    """Reads a file of instances, stuff or segments.

    Args:
      path: JSON file.
      owners: what annotations belong to: "images" or "videos".
      secret: whether the annotations may be missing.
      report: called with each annotation of an unknown image, video or category, which
        is left out if it returns; of an annotation that lists segments with each such
        segment, which alone is left out.

    Raises:
      DataError: the file is missing, no JSON, lacks a part, names an id twice, or has
        an annotation of an unknown image, video or category.
    """
    path = pathlib.Path(path)
    data = read_json(path)
    owner_of = _by_id(data, owners, path)
    categories = _by_id(data, "categories", path)
    for number, category in categories.items():
        name = category.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"Category {number!r} of {path} has the name {name!r}, but needs a "
                "whole number as its id and a text as its name; correct it."
            )
        text.check_name(name.strip(" \t"), f"Category {number} of {path}")
        flag(category, "isthing", f"Category {number} of {path}")
    if not owner_of or not categories:
        raise DataError(
            f'{path} has no "{"categories" if owner_of else owners}"; export it again.'
        )
    grouped = {number: [] for number in owner_of}
    lost = {}
    has_annotations = data.get("annotations") is not None
    if has_annotations or not secret:
        # Panoptic annotations have no id of their own.
        _by_id(data, "annotations", path, required=False)
        for place, annotation in enumerate(data["annotations"]):
            own = repr(annotation["id"]) if "id" in annotation else f"number {place}"
            what = f"Annotation {own} of {path}"
            number = annotation.get(f"{owners.rstrip('s')}_id")
            try:
                _check_annotation(annotation, owners.rstrip("s"), grouped, what)
            except DataError as fault:
                report(fault)
                if _is_id(number) and number in grouped:
                    lost.setdefault(number, []).append(annotation)
                continue
            sound, faulty = _sort_entries(annotation, categories, what, report)
            if faulty:
                lost.setdefault(number, []).extend(faulty)
            if "segments_info" in annotation:
                annotation["segments_info"] = sound
                sound = [annotation]
            grouped[number] += sound
    in_order = {number: categories[number] for number in sorted(categories)}
    return CocoFile(path, owner_of, grouped, in_order, has_annotations, lost)


def _check_annotation(annotation, owner, owners, what) -> None:
    """Raises `DataError` if nobody knows what it belongs to, or what it lists."""
    number = annotation.get(f"{owner}_id")
    if not _is_id(number) or number not in owners:
        raise DataError(
            f"{what} belongs to the {owner} {number!r}, which the file does not "
            f"list; add the {owner} or remove the annotation.",
            kind="listing",
        )
    segments = annotation.get("segments_info", [])
    if not isinstance(segments, list) or not all(
        isinstance(segment, dict) for segment in segments
    ):
        raise DataError(
            f'{what} has damaged "segments_info"; export it again.', kind="listing"
        )


def _sort_entries(annotation, categories, what, report) -> tuple[list, list]:
    """Sound and faulty ones: of its segments if it lists any, else itself."""
    sound, faulty = [], []
    for entry in annotation.get("segments_info", [annotation]):
        try:
            category = entry.get("category_id")
            if not _is_id(category) or category not in categories:
                raise DataError(
                    f"{what} has the category {category!r}, which the file does not "
                    "list; add the category or remove the annotation.",
                    kind="listing",
                )
            flag(entry, "iscrowd", what)
            sound.append(entry)
        except DataError as fault:
            report(fault)
            faulty.append(entry)
    return sound, faulty


def flag(entry: dict, key: str, where: str, default: int = 0) -> bool:
    """What an entry says with 0, 1, false or true; ``default`` if it says nothing.

    Raises:
      DataError: it says something else, such as "0", which Python takes for true.
    """
    value = entry.get(key)
    if value is None:
        return bool(default)
    if not isinstance(value, int | float) or value not in (0, 1):
        raise DataError(
            f"{where} has the {key} {value!r}; write 0 or 1, or false or true, without "
            "quotes.",
            kind="listing",
        )
    return bool(value)


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON object, keeping of annotations only what labels are made of.

    Raises:
      DataError: the file is missing or no such thing.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file, object_hook=_compact)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the path.") from None
    except OSError as error:
        raise DataError(
            f"File {path} cannot be read ({error.strerror}); check that it is a file "
            "and may be read."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is not valid JSON ({reason}); copy it or export it again."
        ) from error
    if not isinstance(data, dict):
        raise DataError(
            f"{path} holds a {type(data).__name__} instead of an object with images, "
            "annotations and categories; export it in COCO's format."
        )
    return data


def draw(annotation: dict, size: tuple[int, int], path: pathlib.Path) -> np.ndarray:
    """The mask of an annotation, bool [H W]; raises as `coco_masks.decode`."""
    where = name_annotation(annotation, path)
    return coco_masks.decode(annotation.get("segmentation"), size, where)


def run_lengths(annotation: dict, size: tuple[int, int], path: pathlib.Path) -> dict:
    """The mask of an annotation as compressed run lengths; raises as `draw`."""
    where = name_annotation(annotation, path)
    return coco_masks.encode(annotation.get("segmentation"), size, where)


def name_annotation(annotation: dict, path: pathlib.Path) -> str:
    """What errors call an annotation."""
    return f"Annotation {annotation.get('id', 'without an id')} of {path}"


def find(root: pathlib.Path, places: Sequence[str], what: str) -> pathlib.Path:
    """The first of some places under a folder that is there.

    Raises:
      DataError: none is.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(
        f"There is no {what} in {root}; put it at {' or '.join(places)} there."
    )


def _compact(value: dict) -> dict:
    """Drops what labels do not need; 8 bytes a coordinate instead of 32."""
    # What is not numbers stays: `coco_masks` says so, with the annotation's name.
    with contextlib.suppress(TypeError, OverflowError):
        if isinstance(value.get("counts"), list):
            value["counts"] = array.array("q", value["counts"])
    if "segmentation" not in value and "segmentations" not in value:
        return value
    value = {key: value[key] for key in _KEPT if key in value}
    polygons = value.get("segmentation")
    with contextlib.suppress(TypeError, OverflowError):
        if isinstance(polygons, list):
            value["segmentation"] = [array.array("d", polygon) for polygon in polygons]
    return value


def _by_id(data: dict, key: str, path: pathlib.Path, required: bool = True) -> dict:
    """A list of objects by their ids.

    Raises:
      DataError: it is missing or something else, or an id is missing or stands twice.
    """
    values = data.get(key)
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise DataError(
            f'{path} has no list "{key}" of objects; export it in COCO\'s format.'
        )
    result = {}
    for value in values:
        if "id" not in value and not required:
            continue
        number = value.get("id")
        if not _is_id(number):
            raise DataError(
                f'{path} has an entry of "{key}" with the id {number!r}; give it a '
                "number."
            )
        if number in result:
            raise DataError(
                f'{path} has two entries of "{key}" with the id {number!r}; give each '
                "its own."
            )
        result[number] = value
    return result


def _is_id(value) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
