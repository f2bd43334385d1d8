"""Kinds of values that keys of a configuration have, and how they are said."""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable

from mlseg_jax.errors import UserError
from mlseg_jax.settings.resolve import AUTO


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key may be.

    Attributes:
      wanted: in words, as it stands after "give".
      fits: whether a value is of this kind.
      table: whether the value is a row of a table that stands above the settings.
    """

    wanted: str
    fits: Callable[[object], bool]
    table: bool = False


def check(name: str, value: object, kind: Kind) -> None:
    """Checks a value that is called ``name``; raises UserError."""
    if not kind.fits(value):
        raise UserError(f"{name} is {value!r}; give {kind.wanted}.")


Bound = int | float | None


def whole(least: Bound = None, most: Bound = None) -> Kind:
    """Whole numbers; a bool is none."""

    def fits(value) -> bool:
        return (
            isinstance(value, numbers.Integral)
            and not isinstance(value, bool)
            and (least is None or value >= least)
            and (most is None or value <= most)
        )

    return Kind(f"a whole number{_range(least, most)}", fits)


def number(
    least: Bound = None,
    most: Bound = None,
    *,
    above: Bound = None,
    below: Bound = None,
) -> Kind:
    """Finite numbers; ``above`` and ``below`` are not among them."""

    def fits(value) -> bool:
        return (
            isinstance(value, numbers.Real)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    low = f" above {above:g}" if above is not None else _range(least, None)
    high = f" to below {below:g}" if below is not None else _range(None, most)
    return Kind(f"a number{low}{high}", fits)


def _range(least: Bound, most: Bound) -> str:
    low = "" if least is None else f" from {least:g}"
    return low + ("" if most is None else f" to {most:,}")


def choice(*names: str) -> Kind:
    """One of some names, or of nothing where "" is among them."""
    *others, last = [name or '""' for name in names]
    return Kind(
        f"{', '.join(others)} or {last}",
        lambda value: isinstance(value, str) and value in names,
    )


def tuple_of(kind: Kind, what: str, *, length: int | None = None, least: int = 0):
    """Tuples (or lists) of a kind; ``what`` says which."""

    def fits(values) -> bool:
        return (
            isinstance(values, tuple | list)
            and len(values) >= least
            and length in (None, len(values))
            and all(kind.fits(value) for value in values)
        )

    return Kind(what, fits)


def also(kind: Kind, value, wanted: str) -> Kind:
    """A kind, or one value that it has not."""
    return Kind(wanted, lambda x: kind.fits(x) or _as_tuple(x) == value)


def ordered(kind: Kind) -> Kind:
    """Of several, none of which is larger than the next one."""
    return Kind(kind.wanted, lambda x: kind.fits(x) and list(x) == sorted(x))


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _is_pattern(value) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_factor(value) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and _is_pattern(value[0])
        and FROM_0.fits(value[1])
    )


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text that is not empty", lambda value: TEXT.fits(value) and value != "")
ROW = dataclasses.replace(NAME, table=True)
"""A name in a table of code, which says itself what there is."""

COUNT, COUNT_OR_NONE = whole(1), whole(0)
FROM_0, ABOVE_0 = number(0), number(above=0)
SHARE = Kind("a share, from 0 to 1", number(0, 1).fits)
PROBABILITY = Kind("a probability, from 0 to 1", number(0, 1).fits)
RATE = Kind("a probability, from 0 to below 1", number(0, below=1).fits)
SIDES = tuple_of(
    COUNT, "height and width, whole numbers from 1, such as (512, 512)", length=2
)
COUNTS = tuple_of(COUNT, "a tuple of whole numbers from 1, such as (2, 2)", least=1)
PLACES = tuple_of(COUNT_OR_NONE, "a tuple of whole numbers from 0, such as (3, 7)")
FLAGS = tuple_of(FLAG, "a tuple of True and False", least=1)
PIXEL = tuple_of(number(), "three numbers, such as (127.5, 127.5, 127.5)", length=3)
SPREAD = tuple_of(
    ABOVE_0, "three numbers above 0, such as (127.5, 127.5, 127.5)", length=3
)
PATTERNS = tuple_of(
    Kind("", _is_pattern),
    'a tuple of regular expressions on paths of parameters, such as ("^backbone/",)',
)
FACTORS = tuple_of(
    Kind("", _is_factor),
    'a tuple of pairs of a regular expression and a factor from 0, such as (("norm", '
    "0.0),)",
)
SHARES = tuple_of(SHARE, "a tuple of shares of the training, such as (0.2, 0.6)")


def _is_weight(value) -> bool:
    if not isinstance(value, str):
        return FROM_0.fits(value)
    try:
        return value == AUTO or FROM_0.fits(float(value))
    except ValueError:
        return False


WEIGHT = Kind(
    "a number from 0, or auto for one in proportion to the classes", _is_weight
)
AXIS = also(COUNT, -1, "a whole number from 1, or -1 for all devices that are left")
