"""Neighbouring examples of a split, by the names that TFDS has made usual.

``train[:80%]`` and ``train[80%:]`` are the first four fifths of ``train`` and the rest;
without ``%`` they are numbers of examples. Neighbours, because the pictures of a film
resemble the next ones: a validation split of scattered frames would be known already.
"""

import re
from typing import NamedTuple

_PART = re.compile(r"([^\[\]]+)\[(\d*)(%?):(\d*)(%?)\]")


class SplitPart(NamedTuple):
    """The split's name, and where the part begins and ends; shares are of one."""

    name: str
    start: int | float
    stop: int | float | None

    def of(self, length: int) -> range:
        """The indices of the part among ``length`` examples; perhaps none."""
        return range(length)[_place(self.start, length) : _place(self.stop, length)]


def split_part(text: str) -> SplitPart:
    """Reads ``NAME`` or ``NAME[START:STOP]``; any other text is a name."""
    match = _PART.fullmatch(text)
    if match is None:
        return SplitPart(text, 0, None)
    name, start, start_unit, stop, stop_unit = match.groups()
    return SplitPart(name, _number(start, start_unit) or 0, _number(stop, stop_unit))


def _number(digits: str, unit: str) -> int | float | None:
    if not digits:
        return None
    return int(digits) / 100 if unit else int(digits)


def _place(value: int | float | None, length: int) -> int | None:
    # Rounded the same way at the end of one part and at the start of the next.
    return round(value * length) if isinstance(value, float) else value
