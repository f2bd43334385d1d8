"""Names in any script: with a font that has their letters, never as empty boxes."""

import logging
import os

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw

from mlseg_jax.errors import UserError
from mlseg_jax.prediction import fonts, visualise

FOLDER = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
OTHER = os.path.join(FOLDER, "STIXNonUni.ttf")
"""Has letters of the private area, which our own font has not."""
ONLY_OTHER = "\ue153"
NOWHERE = "\U000f1234"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    """What is installed on this computer must not matter."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda fontext="ttf": [])
    caches = (fonts._runs, fonts._installed, fonts._say_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def drawn(text, font=""):
    canvas = Image.new("RGB", (200, 40), (255, 255, 255))
    fonts.draw_text(ImageDraw.Draw(canvas), (4.0, 20.0), text, (0, 0, 0), 16, font)
    return np.asarray(canvas)


def test_the_fonts_are_what_these_tests_take_them_for():
    assert ord(ONLY_OTHER) in fonts._characters(OTHER)
    assert ord(ONLY_OTHER) not in fonts._characters(fonts.OWN)
    assert {*map(ord, "aßЖλ…")} <= fonts._characters(fonts.OWN)


@pytest.mark.parametrize("text", ["road sign", "Straße Ωmega Дорога", "שלום", "a b"])
def test_our_own_letters_are_enough(text):
    assert fonts.legible([text], [0]) == {0: text}
    assert fonts._runs(text, "") == ((fonts.OWN, text),)
    assert (drawn(text) < 128).any()
    assert fonts.length(text, 16) > 0


def test_a_name_without_letters_has_its_number_and_a_sentence(caplog):
    names = ["road", f"sign {ONLY_OTHER}", NOWHERE, "\0\n", "a\0b\rc"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            shown = fonts.legible(names, range(5))
    assert shown == {0: "road", 1: "class 1", 2: "class 2", 3: "class 3", 4: "ab c"}
    assert len(caplog.records) == 1
    assert "letters of 3 names" in caplog.text and "--config.eval.font" in caplog.text


@pytest.mark.parametrize("installed", [False, True])
def test_a_given_and_an_installed_font(monkeypatch, caplog, installed):
    font = "" if installed else OTHER
    if installed:
        monkeypatch.setattr(
            font_manager,
            "findSystemFonts",
            lambda fontext="ttf": [os.path.join(FOLDER, "missing.ttf"), OTHER],
        )
    name = f"sign {ONLY_OTHER} b"
    assert fonts.legible([name, NOWHERE], [0, 1], font) == {0: name, 1: "class 1"}
    runs = fonts._runs(name, font)
    assert "".join(part for _, part in runs) == name
    assert {path for path, _ in runs} == {fonts.OWN, OTHER}
    alone, other = drawn(ONLY_OTHER, font), drawn(ONLY_OTHER + ONLY_OTHER, font)
    assert (alone < 128).any() and (other < 128).sum() > (alone < 128).sum()
    parts = [fonts.length(part, 16, font) for _, part in runs]
    assert fonts.length(name, 16, font) == pytest.approx(sum(parts))


def test_overlays_use_the_font(caplog):
    image = np.zeros((480, 480, 3), np.uint8)
    label_map = np.zeros((480, 480), np.int32)
    usual = visualise.overlay(image, label_map, ["class 0"])
    without = visualise.overlay(image, label_map, [ONLY_OTHER])
    np.testing.assert_array_equal(usual, without)
    assert "class 0" not in caplog.text and "eval.font" in caplog.text
    with_it = visualise.overlay(image, label_map, [ONLY_OTHER], font=OTHER)
    assert with_it.shape == usual.shape and (with_it != usual).any()


def test_ellipsis_of_letters_that_have_none():
    assert fonts.ellipsis_for("abc") == "…"
    if ord("…") not in fonts._characters(OTHER):
        assert fonts.ellipsis_for(ONLY_OTHER, OTHER) == "..."


def test_what_is_no_font(tmp_path):
    fonts.check("")
    fonts.check(OTHER)
    (tmp_path / "text.ttf").write_text("hello")
    (tmp_path / "empty.ttf").touch()
    for font in ("nowhere.ttf", str(tmp_path), f"{tmp_path}/text.ttf", "a\0b"):
        with pytest.raises(UserError, match="eval.font is .*give a file"):
            fonts.check(font)
    with pytest.raises(UserError, match="no font that can be read"):
        fonts.check(f"{tmp_path}/empty.ttf")
