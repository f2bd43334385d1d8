"""The table beside a drawn picture: colours, names and numbers, and both together."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mlseg_jax.prediction import fonts
from mlseg_jax.typing import UInt8

INK, _MUTED, _PAPER = (24, 24, 27), (110, 110, 116), 255
_ABOVE = 0.3
"""How far a row of the table begins above its coloured square, in letters' sizes."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture that is made a band of rows at a time.

    Attributes:
      size: its height and width.
      bands: makes its rows from the top, ``[n width 3]``.
    """

    size: tuple[int, int]
    bands: Callable[[], Iterator[UInt8[np.ndarray, "_ _ 3"]]]

    def whole(self) -> UInt8[np.ndarray, "height width 3"]:
        picture, y = np.empty((*self.size, 3), np.uint8), 0
        for band in self.bands():
            picture[y : y + len(band)] = band
            y += len(band)
        return picture


def row_bands(size: Sequence[int]) -> list[slice]:
    """Rows of a picture in bands of about a million pixels."""
    height, width = size[:2]
    step = max(2**20 // max(width, 1), 16)
    return [slice(y, min(y + step, height)) for y in range(0, height, step)]


def em_of(shape: Sequence[int]) -> int:
    """Size of letters for a picture of this shape, in pixels."""
    return max(13, round(max(shape[:2]) / 52))


def with_legend(
    size: tuple[int, int],
    make_rows: Callable[[slice], UInt8[np.ndarray, "_ _ 3"]],
    heading: Sequence[str],
    rows: Sequence[tuple],
    font: str = "",
) -> Drawing:
    """A picture with a table to its right, or below if it is wide.

    Args:
      size: height and width of the picture.
      make_rows: makes some rows of it.
      heading: of the table's columns.
      rows: a colour (RGB, or None), a name and as many texts as the heading has after
        its first.
      font: letters for names of other scripts than ours.
    """
    height, width = size
    table = _Table.lay_out(size, heading, rows, font)
    below = table.left == 0
    total = (
        (height + table.height, max(width, table.width))
        if below
        else (max(height, table.height), width + table.width)
    )

    def bands() -> Iterator[np.ndarray]:
        for part in row_bands(total):
            band = np.full((part.stop - part.start, total[1], 3), _PAPER, np.uint8)
            inside = slice(part.start, min(part.stop, height))
            if inside.start < inside.stop:
                band[: inside.stop - inside.start, :width] = make_rows(inside)
            table.paint(band, part)
            yield band

    return Drawing(total, bands)


@dataclasses.dataclass(frozen=True)
class _Table:
    """Where the cells of a table are, which are drawn one by one."""

    top: int
    left: int
    em: int
    column: int
    per_column: int
    heading: tuple
    rows: tuple[tuple, ...]
    font: str

    @classmethod
    def lay_out(cls, size, heading, rows, font) -> "_Table":
        height, width = size
        em = em_of(size)
        longest = max(fonts.length(name, em, font) for _, name, *_ in rows)
        column = round(min(max(longest, 6 * em), 18 * em) + (1 + 4 * len(heading)) * em)
        below = width >= 1.5 * height
        columns = max(1, min(width // column, len(rows))) if below else 1
        per_column = -(-len(rows) // columns)
        top, left = (height, 0) if below else (0, width)
        head = (None, *heading)
        return cls(top, left, em, column, per_column, head, tuple(rows), font)

    @property
    def row(self) -> int:
        return round(1.6 * self.em)

    @property
    def height(self) -> int:
        return (self.per_column + 1) * self.row + 2 * self.em

    @property
    def width(self) -> int:
        return -(-len(self.rows) // self.per_column) * self.column

    def paint(self, band: UInt8[np.ndarray, "_ _ 3"], part: slice) -> None:
        """Draws what is in these rows of the picture over them."""
        above = round(_ABOVE * self.em)
        for c in range(-(-len(self.rows) // self.per_column)):
            chunk = self.rows[c * self.per_column : (c + 1) * self.per_column]
            left = self.left + c * self.column
            for r, texts in enumerate([self.heading, *chunk]):
                y = self.top + self.em + r * self.row - above
                low, high = max(y, part.start), min(y + self.row, part.stop)
                if low < high:
                    cell = self._cell(texts)[low - y : high - y]
                    here = slice(low - part.start, high - part.start)
                    band[here, left : left + self.column] = cell

    def _cell(self, texts: tuple) -> UInt8[np.ndarray, "row column 3"]:
        canvas = Image.new("RGB", (self.column, self.row), (_PAPER,) * 3)
        colour, *texts = texts
        corner = self.em, round(_ABOVE * self.em)
        width = self.column - 2 * self.em
        _draw_row(
            ImageDraw.Draw(canvas), corner, width, self.em, colour, texts, self.font
        )
        return np.asarray(canvas)


def _draw_row(draw, corner, width, em, colour, texts, font) -> None:
    (x, y), (name, *columns) = corner, texts
    letters, ink = fonts.own_letters(em), INK if colour else _MUTED
    if colour:
        draw.rectangle((x, y, x + em, y + em), fill=colour, outline=INK)
    x, right, middle = x + 1.6 * em, x + width, y + em // 2
    for text in reversed(columns):
        draw.text((right, middle), text, ink, letters, anchor="rm")
        right -= 4.2 * em
    ellipsis = fonts.ellipsis_for(name, font)
    measure = functools.partial(fonts.length, size=em, font=font)
    name = shorten(name, right + 0.6 * em - x, measure, ellipsis)
    fonts.draw_text(draw, (x, float(middle)), name, ink, em, font)


def shorten(text: str, limit: float | int, measure=len, ellipsis: str = "…") -> str:
    """``text``, with an ``ellipsis`` in its middle where ``measure`` of it exceeds
    ``limit``.

    Class names differ at their ends ("GREEK SMALL LETTER ALPHA"), so the end stays.
    """
    text = " ".join(text.split())  # line breaks would be drawn
    keep, short = len(text), text
    while keep and measure(short) > limit:
        keep -= 1
        head = keep * 2 // 5
        end = text[len(text) - keep + head :].lstrip()
        short = f"{text[:head].rstrip()}{ellipsis}{end}"
    return short
