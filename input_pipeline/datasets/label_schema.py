"""What raw values mean: classes.txt, classes.json or labelmap.txt to class names.

See `folder` for what the files hold.
"""

import dataclasses
import json
import os
import pathlib
import re

from input_pipeline.files import text
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE, MAX_CLASSES

IGNORED_NAME = "ignore"
"""A name that stands for no class, as null does."""

LABELME_IGNORED = "__ignore__"
"""What Labelme calls it, in the first line of its labels.txt."""

CLASS_FILES = ("classes.txt", "classes.json", "labelmap.txt")

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes, and which raw values mean them.

    Attributes:
      path: the file that says so, for errors.
      names: of the classes, by class id.
      class_of: class id or IGNORE by raw value, an integer from 0: of a mask, or
        65,536 red + 256 green + blue of its colours.
      by_colour: whether colours stand for classes.
      keeps_ignore: whether 255 in 8 bits and 65535 in 16 bits mean IGNORE where they
        are no classes.
    """

    path: str
    names: tuple[str, ...]
    class_of: dict[int, int]
    by_colour: bool = False
    keeps_ignore: bool = False

    @property
    def raw_values(self) -> tuple[int | str, ...]:
        """The first raw value of each class, colours as "#rrggbb"."""
        first = {}
        for raw, class_id in self.class_of.items():
            first.setdefault(class_id, f"#{raw:06x}" if self.by_colour else raw)
        return tuple(first[class_id] for class_id in range(len(self.names)))


def read_classes(root: pathlib.Path) -> ClassTable:
    """Reads the one of `CLASS_FILES` that a folder has."""
    there = [name for name in CLASS_FILES if (root / name).is_file()]
    if not there:
        raise DataError(
            f"Folder {root} has no classes.txt; write one with a class name a line, "
            "the first line being mask value 0."
        )
    if len(there) > 1:
        raise DataError(f"Folder {root} has both {' and '.join(there)}; keep one.")
    path = root / there[0]
    if there == ["classes.json"]:
        return read_class_table(path)
    if there == ["labelmap.txt"]:
        return _read_labelmap(path)
    lines = _read_class_lines(path)
    names = tuple(name for name in lines if name != LABELME_IGNORED)
    if not names:
        raise DataError(f"{path} names no class; write one class name a line.")
    ids = {name: i for i, name in enumerate(names)}
    class_of = {raw: ids.get(name, IGNORE) for raw, name in enumerate(lines)}
    return ClassTable(str(path), names, class_of, keeps_ignore=True)


def _read_class_lines(path: pathlib.Path) -> tuple[str, ...]:
    lines = text.split_lines(text.read_text(path))
    if not lines:
        raise DataError(f"{path} is empty; write one class name a line.")
    if len(lines) > MAX_CLASSES:
        raise DataError(
            f"{path} has {len(lines)} lines, but a 16-bit mask holds at most "
            f"{MAX_CLASSES} classes; use fewer."
        )
    line_of = {}
    for number, name in enumerate(lines, start=1):
        text.check_name(name, f"Line {number} of {path}")
        name = name.strip()
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
    return tuple(line_of)


def read_class_table(path: str | os.PathLike) -> ClassTable:
    """Reads a classes.json."""
    example = 'like {"0": "ignore", "1": "road"}'
    try:
        # Pairs, because a dict would hide a raw value that is given twice.
        pairs = json.loads(text.read_text(path), object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); correct it, {example}."
        ) from error
    if not isinstance(pairs, list) or not all(isinstance(p, tuple) for p in pairs):
        raise DataError(f"{path} must map raw values to names, {example}; rewrite it.")
    by_colour = any(_COLOUR.fullmatch(key) for key, _ in pairs)
    name_of = {}
    for key, name in pairs:
        raw = _raw_value(key, by_colour, path)
        if raw in name_of:
            raise DataError(f"{path} names the raw value {key} twice; keep one.")
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise DataError(
                f"{path} gives the raw value {key} the name {name!r}; write a text, or "
                "null for pixels to ignore."
            )
        text.check_name((name or "").strip(" \t"), f"The raw value {key} of {path}")
        name_of[raw] = name and name.strip()
    # Numbers have an order of their own, and colours only that of the file.
    order = name_of if by_colour else sorted(name_of)
    return _join({raw: name_of[raw] for raw in order}, path, by_colour)


def _raw_value(key: str, by_colour: bool, path) -> int:
    if by_colour:
        if not _COLOUR.fullmatch(key):
            raise DataError(
                f"{path} has the raw value {key!r} among colours; write all as "
                '"#rrggbb" of hexadecimal digits, or all as numbers.'
            )
        return int(key[1:], 16)
    if not (key.isascii() and key.isdigit() and int(key) < 2**16):
        raise DataError(
            f"{path} has the raw value {key!r}, but masks hold whole numbers from "
            '0 to 65535, or colours written "#rrggbb"; correct it.'
        )
    return int(key)


def _read_labelmap(path: pathlib.Path) -> ClassTable:
    """Reads a labelmap.txt of CVAT: lines ``name:red,green,blue:parts:actions``."""
    name_of = {}
    for number, line in enumerate(text.split_lines(text.read_text(path)), start=1):
        if not line or line.startswith("#"):
            continue
        where = f"Line {number} of {path}"
        name, *rest = line.rsplit(":", 3)
        colour = rest[0].split(",") if len(rest) == 3 else []
        levels = [int(x) for x in colour if x.strip().isdecimal() and int(x) < 256]
        if len(levels) != 3 or len(colour) != 3 or not name.strip():
            raise DataError(
                f"{where} is {line!r} and not name:red,green,blue:parts:actions with "
                "three numbers up to 255; export the labels again or correct it."
            )
        raw = levels[0] << 16 | levels[1] << 8 | levels[2]
        if raw in name_of:
            raise DataError(f"{where} has a colour that stands before; give another.")
        text.check_name(name.strip(" \t"), where)
        name_of[raw] = name.strip()
    return _join(name_of, path, by_colour=True)


def _join(name_of: dict[int, str | None], path, by_colour: bool) -> ClassTable:
    """Values with one name share a class; classes are numbered as they come."""
    ids, class_of = {}, {}
    for raw, name in name_of.items():
        if name is None or name == IGNORED_NAME:
            class_of[raw] = IGNORE
        else:
            class_of[raw] = ids.setdefault(name, len(ids))
    if not 0 < len(ids) <= MAX_CLASSES:
        raise DataError(f"{path} names {len(ids)} classes; name 1 to {MAX_CLASSES}.")
    return ClassTable(str(path), tuple(ids), class_of, by_colour)


def read_things(path: pathlib.Path, names: tuple[str, ...]) -> tuple[bool, ...]:
    """Whether each class is a thing, from a list of those that are."""
    if not path.is_file():
        return (False,) * len(names)
    things = set(text.read_lines(path))
    for name in sorted(things.difference(names)):
        raise DataError(
            f"{path} names {name!r}, which is no class; correct it or add the class."
        )
    return tuple(name in things for name in names)
