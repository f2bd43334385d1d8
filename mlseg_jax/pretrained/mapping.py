"""Tables between the names and layouts of others and ours, strict both ways.

A table is a list of rows: a name of theirs, a path of ours, and what becomes of the
array. ``{i}`` stands for a number on both sides, ``{i+1}`` for the next one, ``{i*2}``
for its double. Every change is linear and can be undone, so a table also serves
gradients and exports.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlseg_jax.errors import UserError


class Change(NamedTuple):
    """What becomes of arrays on the way to us, and back.

    ``theirs`` takes our array and returns their one, or several where a row has
    several sources; ``ours`` takes as many.
    """

    ours: Callable[..., np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, ...]]


class Row(NamedTuple):
    """``theirs``: one name, or several that become one array of ours."""

    theirs: str | tuple[str, ...]
    ours: str
    change: Change

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def undo(self, array: np.ndarray) -> tuple[np.ndarray, ...]:
        back = self.change.theirs(array)
        return back if isinstance(back, tuple) else (back,)


class Dropped(NamedTuple):
    """Names (a regular expression) that we have no use for, and why."""

    pattern: str
    reason: str


def _same(x):
    return x


def _transpose(x):
    return x.T


SAME = Change(_same, _same)
TRANSPOSED = Change(_transpose, _transpose)
"""torch's Linear [out, in] and our kernel [in, out]."""

UNBATCHED = Change(lambda x: x[0], lambda x: x[None])
"""[1, ...] and [...]."""

TOKEN = Change(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))
"""[1, 1, D] and [D]."""

CONV = Change(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""torch's convolution [out, in, h, w] and [h, w, in, out]."""

POINTWISE = Change(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
"""A 1x1 convolution [out, in, 1, 1] and our kernel [in, out]."""


def _patches(kernel):
    """[p p 3, D] flattened by (row, column, channel) to [p, p, 3, D]."""
    side = math.isqrt(kernel.shape[0] // 3)
    return kernel.reshape(side, side, 3, kernel.shape[1])


FLAX_PATCHES = Change(lambda x: x.reshape(-1, x.shape[-1]), _patches)
PATCHES = Change(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x: _patches(x).transpose(3, 2, 0, 1),
)
"""The patch embedding [D, 3, p, p] (Flax: [p, p, 3, D]) and our [p p 3, D]."""


def _split(parts: int, axis: int, x):
    return tuple(np.split(x, parts, axis=axis))


FUSED_KERNELS = Change(
    lambda *parts: np.concatenate([x.T for x in parts], axis=1),
    lambda x: tuple(part.T for part in _split(3, 1, x)),
)
FUSED_BIASES = Change(
    lambda *parts: np.concatenate(parts), functools.partial(_split, 3, 0)
)
"""Queries, keys and values apart, and as one projection."""


def linear(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED),
        Row(f"{theirs}.bias", f"{ours}/bias", SAME),
    ]


def norm(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.weight", f"{ours}/scale", SAME),
        Row(f"{theirs}.bias", f"{ours}/bias", SAME),
    ]


# ------------------------------------------------------------------------- templates

_NUMBER = re.compile(r"\{(\w)(?:\*(\d+))?(?:\+(\d+))?\}")


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern, dict[str, tuple[int, int]]]:
    """A regular expression with a group a number; each one's factor and summand."""
    made = {}
    text = ""
    end = 0
    for match in _NUMBER.finditer(template):
        name, times, plus = match.groups()
        made[name] = int(times or 1), int(plus or 0)
        text += re.escape(template[end : match.start()]) + rf"(?P<{name}>\d+)"
        end = match.end()
    return re.compile(text + re.escape(template[end:])), made


def _match(template: str, name: str) -> dict[str, int] | None:
    pattern, made = _pattern(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    numbers = {}
    for key, text in match.groupdict().items():
        times, plus = made[key]
        numbers[key], rest = divmod(int(text) - plus, times)
        if rest or numbers[key] < 0:
            return None
    return numbers


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    def number(match: re.Match) -> str:
        return str(numbers[match[1]] * int(match[2] or 1) + int(match[3] or 0))

    return _NUMBER.sub(number, template)


def row_of(rows: Iterable[Row], path: str) -> tuple[Row, dict[str, int]] | None:
    """The row that makes our array ``path``, and the numbers in its name."""
    for row in rows:
        numbers = _match(row.ours, path)
        if numbers is not None:
            return row, numbers
    return None


# ------------------------------------------------------------------------ both ways

Fit = Callable[[str, np.ndarray], "np.ndarray | None"]


class Mapped(NamedTuple):
    """Arrays by our paths, and names of theirs that were left with the reason."""

    arrays: dict[str, np.ndarray]
    dropped: dict[str, str]


def to_ours(
    arrays: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    part: str = "",
    dropped: Sequence[Dropped] = (),
    optional: str = "",
    may_differ: Callable[[str, tuple[int, ...]], bool] = lambda path, shape: False,
) -> Mapped:
    """Renames and lays out; every array used or dropped, every path filled.

    Args:
      arrays: theirs.
      rows: the table.
      shapes: of ours, which are all to be filled.
      part: beginning of our paths that are wanted; theirs of other paths are dropped.
      dropped: theirs that may be there and are not used.
      optional: regular expression of paths of ours that need not be in the file.
      may_differ: whether an array that becomes the path in this shape, which is not
        the one in ``shapes``, is welcome (and will be made to fit).

    Raises:
      UserError: all problems at once: names that are missing, unexpected or of a wrong
        shape.
    """
    left, problems, found = dict(arrays), [], {}
    for path, shape in shapes.items():
        made = row_of(rows, path)
        may_lack = re.fullmatch(optional, path) is not None
        if made is None:
            if not may_lack:
                problems.append(f"nothing in such a file becomes {path}")
            continue
        row, numbers = made
        names = [_fill(source, numbers) for source in row.sources]
        parts = [left.pop(name, None) for name in names]
        missing = [n for n, x in zip(names, parts, strict=True) if x is None]
        if len(missing) < len(names) or not may_lack:
            problems += [f"{name} is missing (it becomes {path})" for name in missing]
        if missing:
            continue
        wanted = [x.shape for x in row.undo(np.broadcast_to(np.float32(0), shape))]
        if [x.shape for x in parts] == wanted:
            found[path] = row.change.ours(*parts)
            continue
        ours = _try(row, parts)
        if ours is not None and may_differ(path, ours.shape):
            found[path] = ours
            continue
        shapes_of = zip(names, [x.shape for x in parts], wanted, strict=True)
        problems += [_wrong_shape(*each) for each in shapes_of if each[1] != each[2]]
    dropped = [*dropped, *_outside(rows, part)]
    reasons = {name: _reason(name, dropped) for name in left}
    problems += [f"{name} is unexpected" for name, why in reasons.items() if not why]
    if problems:
        raise UserError("; ".join(_together(problems)))
    return Mapped(found, reasons)


def to_theirs(
    arrays: Mapping[str, np.ndarray], rows: Sequence[Row]
) -> dict[str, np.ndarray]:
    """The same table read from right to left."""
    found, problems = {}, []
    for path, array in arrays.items():
        made = row_of(rows, path)
        if made is None:
            problems.append(f"{path} has no name there")
            continue
        row, numbers = made
        for source, part in zip(row.sources, row.undo(array), strict=True):
            found[_fill(source, numbers)] = part
    if problems:
        raise UserError("; ".join(_together(problems)))
    return found


def _try(row: Row, parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """Our array where the layout at least can be applied and undone."""
    try:
        ours = row.change.ours(*parts)
        back = [x.shape for x in row.undo(ours)]
    except (ValueError, IndexError):
        return None
    return ours if back == [x.shape for x in parts] else None


def _wrong_shape(name: str, shape: tuple, wanted: tuple) -> str:
    how = " (transposed)" if shape == wanted[::-1] else ""
    return f"{name} is {list(shape)} and should be {list(wanted)}{how}"


def _outside(rows: Sequence[Row], part: str) -> list[Dropped]:
    """What becomes of theirs that would be outside of the wanted part."""
    return [
        Dropped(_pattern(source)[0].pattern, f"outside of {part}")
        for row in rows
        for source in row.sources
        if not row.ours.startswith(part)
    ]


def _reason(name: str, dropped: Sequence[Dropped]) -> str:
    for row in dropped:
        if re.fullmatch(row.pattern, name):
            return row.reason
    return ""


MANY = 20


def _together(problems: list[str]) -> list[str]:
    """Problems that differ in numbers alone become one where there are many."""
    if len(problems) <= MANY:
        return problems
    groups = {}
    for problem in problems:
        name, _, rest = problem.partition(" ")
        kind = tuple(
            re.sub(r"(?<=[._/])\d+(?=[./])", "*", text) for text in (name, rest)
        )
        groups.setdefault(kind, []).append(problem)
    return [
        members[0] if len(members) == 1 else f"{len(members)} times {kind[0]} {kind[1]}"
        for kind, members in groups.items()
    ]
