"""Letters for the names of classes, in any script.

The letters that come with matplotlib have Latin, Greek, Cyrillic and some more. For
others a font of the setting ``eval.font``, or one that is installed, is looked for. A
name that no font has all letters of is not drawn as empty boxes: its class id stands in
its place, and a sentence in the log says so.
"""

import functools
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib import font_manager, ft2font
from PIL import ImageDraw, ImageFont, features

from mlseg_jax.errors import UserError

logger = logging.getLogger(__name__)

OWN = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")

LAST_SIMPLE = 0x052F
"""Up to here (Latin, Greek, Cyrillic) letters just follow each other."""

_PLACEHOLDERS = ("lastresort", "adobeblank", "notdef")
"""Fonts that have a box, or nothing, for every character there is."""


def check(font: str) -> None:
    """Whether the setting ``eval.font`` can be used.

    Raises:
      UserError: it names no file of letters.
    """
    if font and not _characters(os.path.expanduser(font)):
        raise UserError(
            f"eval.font is {font!r}, which is no font that can be read; give a file "
            f"ending in .ttf, .otf or .ttc."
        )


def legible(names: Sequence[str], class_ids: Iterable[int], font: str = "") -> dict:
    """Per class id its name, or ``class ID`` where a letter is in no font."""
    chosen, lost = {}, []
    for class_id in class_ids:
        name = clean(str(names[class_id]))
        drawn = bool(name) and all(path for path, _ in _runs(name, font))
        chosen[class_id] = name if drawn else f"class {class_id}"
        if not drawn:
            lost.append(name)
    if lost:
        _say_once(tuple(lost), font)
    return chosen


def clean(name: str) -> str:
    """A name without what is no letter: control characters, halves of pairs."""
    kept = [" " if c.isspace() else c for c in unicodedata.normalize("NFC", name)]
    text = "".join(c for c in kept if unicodedata.category(c) not in ("Cc", "Cs"))
    return " ".join(text.split())


def drawable(text: str, font: str = "") -> str:
    """A text with "?" for what is in no font."""
    runs = _runs(clean(text), font)
    return "".join(part if path else "?" * len(part) for path, part in runs)


@functools.cache
def _say_once(names: tuple[str, ...], font: str) -> None:
    shown = ", ".join(map(repr, names[:3])) + (" ..." if names[3:] else "")
    logger.warning(
        "no font here has all letters of %d names of classes (%s), so their numbers "
        "are drawn; install a font of their script, or give one: "
        "--config.eval.font=FILE.ttf%s",
        *(len(names), shown, f" (that is now {font})" if font else ""),
    )


# ------------------------------------------------------------------------ drawn text


def length(text: str, size: int, font: str = "") -> float:
    """Pixels that a text is wide."""
    return sum(letters.getlength(part) for letters, part in _parts(text, size, font))


def ellipsis_for(text: str, font: str = "") -> str:
    """What stands for a part of the text that is left out, in the same letters."""
    path = _runs(text, font)[-1][0] if text else OWN
    return "…" if ord("…") in _characters(path or OWN) else "..."


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    ink: tuple[int, int, int],
    size: int,
    font: str = "",
) -> None:
    """Writes from ``place`` on, the middle of the text's left edge."""
    parts = _parts(text, size, font)
    own = own_letters(size)
    if [letters for letters, _ in parts] == [own]:
        draw.text(place, text, ink, own, anchor="lm")
        return
    ascent, descent = own.getmetrics()
    x, baseline = place[0], place[1] + (ascent - descent) / 2
    for letters, part in parts:
        draw.text((x, baseline), part, ink, letters, anchor="ls")
        x += letters.getlength(part)


def own_letters(size: int) -> ImageFont.FreeTypeFont:
    """The letters that are there everywhere, of a size in pixels."""
    return _open(OWN, size, False)


def _parts(text: str, size: int, font: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """The text in pieces of one font each."""
    parts = []
    for path, part in _runs(text, font):
        # Letters that go right to left, join or stack need more than their shapes.
        shaped = max(map(ord, part)) > LAST_SIMPLE and features.check("raqm")
        parts.append((_open(path or OWN, size, shaped), part))
    return parts


@functools.lru_cache(maxsize=4096)
def _runs(text: str, font: str) -> tuple[tuple[str | None, str], ...]:
    """Pieces of a text with a font for each, of one font where there is one; None:
    no font.
    """
    needed = {ord(c) for c in text if not _is_invisible(c)}
    first = [path for path in (os.path.expanduser(font), OWN) if path]
    path = _first_with(needed, first)
    if path is None:
        others = needed - frozenset().union(*map(_characters, first))
        path = _first_with(needed, _installed())
        first += filter(None, [_first_with(others, _installed())])
    if path is not None:
        return ((path, text),) if text else ()
    runs: list[tuple[str | None, str]] = []
    for c in text:
        if runs and (_is_invisible(c) or ord(c) in _characters(runs[-1][0] or "")):
            path = runs[-1][0]
        else:
            path = _first_with({ord(c)}, (*first, *_installed()))
        if runs and runs[-1][0] == path:
            runs[-1] = path, runs[-1][1] + c
        else:
            runs.append((path, c))
    return tuple(runs)


def _first_with(needed: set[int], paths: Iterable[str]) -> str | None:
    return next((path for path in paths if needed <= _characters(path)), None)


@functools.cache
def _open(path: str, size: int, shaped: bool) -> ImageFont.FreeTypeFont:
    layout = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, size, layout_engine=layout)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Code points that a font has letters of; none where it cannot be used."""
    try:
        face = ft2font.FT2Font(path)
        if not face.scalable:  # pictures of letters, in a single size
            return frozenset()
        ImageFont.truetype(path, 16)
        return frozenset(code for code, glyph in face.get_charmap().items() if glyph)
    except (OSError, RuntimeError, ValueError, TypeError):
        return frozenset()


@functools.cache
def _installed() -> tuple[str, ...]:
    """Fonts of this computer, upright ones of usual weight first."""

    def rank(path: str) -> tuple[bool, str]:
        name = os.path.basename(path).lower()
        return any(x in name for x in ("bold", "italic", "oblique", "light")), path

    found = {
        path
        for ending in ("ttf", "otf")
        for path in font_manager.findSystemFonts(fontext=ending)
    }
    usual = [
        path
        for path in found
        if not any(x in os.path.basename(path).lower() for x in _PLACEHOLDERS)
    ]
    return tuple(sorted(usual, key=rank))


def _is_invisible(character: str) -> bool:
    """Spaces, and what only joins, parts or varies letters."""
    varies = 0xFE00 <= ord(character) < 0xFE10
    return varies or unicodedata.category(character) in ("Zs", "Cf")
