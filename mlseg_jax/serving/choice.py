"""What a request asks for, out of the part of its address after the question mark."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import NoReturn

from mlseg_jax.serving.problems import RequestProblem

KEYS = (
    *("k", "allowed", "without", "also", "minimum_score"),
    *("scales", "longest", "top"),
)

MOST_SCALES = 8
SCALES = (0.1, 4.0)
"""Smallest and largest of a picture's sizes beside its own."""

MAX_NAMES = 10_000
"""Names in one list."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which labels a picture is segmented among, and how the result is wanted.

    Attributes:
      k: most labels of a window; None for the usual number.
      allowed: class ids of the only labels to consider; None for all.
      without: class ids of labels that are not considered.
      also: class ids that are selected beside the k best, whatever their score and
        whether or not they are among ``allowed``; ``without`` goes before.
      minimum_score: least probability of a label.
      scales: sizes, beside its own, at which a picture is looked at; None for those of
        evaluation.
      longest: longest side of maps, which may be larger than the picture's; None for
        its own size.
      top: how many of the likeliest labels of each pixel are wanted.
    """

    k: int | None = None
    allowed: tuple[int, ...] | None = None
    without: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    minimum_score: float | None = None
    scales: tuple[float, ...] | None = None
    longest: int | None = None
    top: int = 0


def parse_choice(
    query: dict[str, list[str]], names: Sequence[str], most: int
) -> Choice:
    """Of ``urllib.parse.parse_qs``.

    Args:
      query: values of each key.
      names: of the classes.
      most: largest k.

    Raises:
      RequestProblem: an unknown key or name, a number out of its range.
    """
    for key in query:
        if key not in KEYS:
            _refuse(f"There is no parameter {key!r}; there are {', '.join(KEYS)}.")
    given = {key: values[-1] for key, values in query.items()}
    lists = {
        key: _class_ids(key, query[key], names)
        for key in ("allowed", "without", "also")
        if key in query
    }
    score = given.get("minimum_score")
    return Choice(
        k=_whole(given, "k", 1, most),
        longest=_whole(given, "longest", 16, 8192),
        top=_whole(given, "top", 0, 8) or 0,
        scales=_scales(given["scales"]) if "scales" in given else None,
        minimum_score=None if score is None else _probability(score),
        **lists,
    )


def _refuse(sentence: str) -> NoReturn:
    raise RequestProblem(400, sentence)


def whole_number(text: str) -> int | None:
    """Of ASCII digits; None of any other text. What has more than 12 of them is cut
    short, and still larger than anything that is allowed: Python refuses thousands.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text.lstrip("0")[:13] or "0")


def _whole(given: dict[str, str], key: str, low: int, high: int) -> int | None:
    if key not in given:
        return None
    number = whole_number(given[key])
    if number is None or not low <= number <= high:
        text = given[key][:40]
        _refuse(f"{key} is {text!r}; give a whole number from {low} to {high}.")
    return number


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        _refuse(f"minimum_score is {text[:40]!r}; give a number from 0 to 1.")
    return value


def _scales(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(",", MOST_SCALES))
    except ValueError:
        values = ()
    low, high = SCALES
    if not 0 < len(values) <= MOST_SCALES or not all(low <= x <= high for x in values):
        _refuse(
            f"scales is {text[:40]!r}; give up to {MOST_SCALES} numbers from {low:g} "
            f"to {high:g}, such as 0.75,1,1.25."
        )
    return tuple(dict.fromkeys(values))


def _class_ids(key: str, values: list[str], names: Sequence[str]) -> tuple[int, ...]:
    """Of names, each a value of its own (names may have commas), or ``#`` and an id."""
    if len(values) > MAX_NAMES:
        _refuse(f"{key} has more than {MAX_NAMES:,} names.")
    place, result = None, []
    for value in values:
        number = whole_number(value[1:]) if value.startswith("#") else None
        if number is not None:
            if number < len(names):
                result.append(number)
                continue
            _refuse(f"{key} names class {value[:40]}; ids end at {len(names) - 1}.")
        if place is None:
            place = {name: i for i, name in enumerate(names)}
        if value not in place:
            near = difflib.get_close_matches(value[:80], names[:2000], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see /labels."
            _refuse(f"There is no class {value[:80]!r}{hint}")
        result.append(place[value])
    return tuple(dict.fromkeys(result))
