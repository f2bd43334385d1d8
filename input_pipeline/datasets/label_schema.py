"""What raw values mean: classes.txt and classes.json to class names and tables.

See `folder` for what the files hold.
"""

import json
import pathlib

import numpy as np

from input_pipeline.files import images
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE

NO_CLASS = -2
"""Marks raw values without a meaning in the tables raw value -> class id."""


def read_classes(
    root: pathlib.Path,
) -> tuple[tuple[str, ...], dict[int, np.ndarray]]:
    """Reads classes.txt or classes.json of a folder.

    Returns the class names and, by bit depth, the table raw value -> class id.
    """
    text, table = root / "classes.txt", root / "classes.json"
    if text.is_file() and table.is_file():
        raise DataError(
            f"Folder {root} has both classes.txt and classes.json; remove one."
        )
    if text.is_file():
        names = _read_class_lines(text)
        class_of = dict(enumerate(range(len(names))))
        ignored = images.IGNORE_RAW
    elif table.is_file():
        names, class_of = read_class_table(table)
        ignored = {}
    else:
        raise DataError(
            f"Folder {root} has no classes.txt; write one with a class name a line, "
            "the first line being mask value 0."
        )
    tables = {}
    for depth in images.IGNORE_RAW:
        ids = np.full(2**depth, NO_CLASS, np.int32)
        if depth in ignored:
            ids[ignored[depth]] = IGNORE
        for raw, class_id in class_of.items():
            if raw < len(ids):
                ids[raw] = class_id
        tables[depth] = ids
    return names, tables


def _read_class_lines(path: pathlib.Path) -> tuple[str, ...]:
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise DataError(f"{path} is empty; write one class name a line.")
    if len(lines) > images.MAX_CLASSES:
        raise DataError(
            f"{path} has {len(lines)} lines, but a 16-bit mask holds at most "
            f"{images.MAX_CLASSES} classes; use fewer."
        )
    line_of = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise DataError(
                f"Line {number} of {path} is empty, but each line is a class; write a "
                "name there or remove the line."
            )
        if name in line_of:
            raise DataError(
                f"Lines {line_of[name]} and {number} of {path} both say {name!r}; give "
                "each class its own name, or use classes.json to join raw values."
            )
        line_of[name] = number
    return tuple(lines)


def read_class_table(path: pathlib.Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Reads a classes.json: class names, and raw value -> class id or IGNORE."""
    example = 'like {"0": "ignore", "1": "road"}'
    try:
        # Pairs, because a dict would hide a raw value that is given twice.
        pairs = json.loads(read_text(path), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); correct it, {example}."
        ) from error
    if not isinstance(pairs, list) or not all(isinstance(p, tuple) for p in pairs):
        raise DataError(f"{path} must map raw values to names, {example}; rewrite it.")
    name_of = {}
    for key, name in pairs:
        if not (key.isascii() and key.isdigit() and int(key) < 2**16):
            raise DataError(
                f"{path} has the raw value {key!r}, but masks hold whole numbers from "
                "0 to 65535; correct it."
            )
        if int(key) in name_of:
            raise DataError(f"{path} names the raw value {key} twice; keep one.")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise DataError(
                f"{path} gives the raw value {key} the name {name!r}; write a text, or "
                "null for pixels to ignore."
            )
        name_of[int(key)] = None if name is None else name.strip()
    ids, class_of = {}, {}
    for raw in sorted(name_of):
        name = name_of[raw]
        if name is None or name == "ignore":
            class_of[raw] = IGNORE
        else:
            class_of[raw] = ids.setdefault(name, len(ids))
    if not 0 < len(ids) <= images.MAX_CLASSES:
        raise DataError(
            f"{path} names {len(ids)} classes; name 1 to {images.MAX_CLASSES}."
        )
    return tuple(ids), class_of


def read_things(path: pathlib.Path, names: tuple[str, ...]) -> tuple[bool, ...]:
    """Whether each class is a thing, from a list of those that are."""
    if not path.is_file():
        return (False,) * len(names)
    things = {line.strip() for line in read_text(path).splitlines()} - {""}
    for name in sorted(things.difference(names)):
        raise DataError(
            f"{path} names {name!r}, which is no class; correct it or add the class."
        )
    return tuple(name in things for name in names)


def read_text(path: pathlib.Path) -> str:
    """Raises DataError if the file is missing or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}); save it as UTF-8."
        ) from error
