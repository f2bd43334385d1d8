"""Text that people write: lists of names, as lines; and names as they may be shown."""

import os
import re
import unicodedata

from etils import epath

from input_pipeline.info import DataError

# Control characters, lone halves of surrogate pairs (names of files that are no UTF-8),
# and the two other characters that end a line.
_NOT_IN_NAMES = ("Cc", "Cs", "Zl", "Zp")


def read_text(path: str | os.PathLike) -> str:
    """The text with its line ends as they are; raises DataError.

    The file must be there and UTF-8, with or without a mark at its beginning.
    """
    try:
        return epath.Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}); save it as UTF-8."
        ) from error


def split_lines(text: str) -> list[str]:
    """Lines without space around them, also empty ones, but not at the end.

    They end in a line feed, perhaps after a carriage return, or in carriage returns
    where there is no line feed; nothing else in a name ends a line.
    """
    lines = text.split("\n" if "\n" in text else "\r")
    lines = [line.removesuffix("\r").strip(" \t") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a file that are not empty; raises DataError."""
    return [line for line in split_lines(read_text(path)) if line]


def natural(name: str) -> list:
    """A key by which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(p), p) if p.isdecimal() else (-1, p) for p in parts]


def check_name(name: str, where: str) -> None:
    """Raises DataError if a name holds what would end a line, or cannot be written.

    Args:
      name: of a class.
      where: what has it, for the sentence: "Line 3 of classes.txt".
    """
    for character in name:
        if unicodedata.category(character) in _NOT_IN_NAMES:
            raise DataError(
                f"{where} has the name {name!r}, which holds the control character "
                f"{character!r}; write a name of one line, without it."
            )
