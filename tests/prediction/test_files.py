"""Files of ``predict``: which are read, what is written, and when."""

import itertools
import logging
import os

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mlseg_jax.errors import UserError
from mlseg_jax.prediction.batches import check_done, predictions
from mlseg_jax.prediction.files import (
    LABELS,
    check_output,
    output_names,
    picture_paths,
    replaced_when_complete,
)


def make(path, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a_overlay.png"],
        ["a.png", "a_overlay.png", "a_overlay_overlay.png"],
        ["a.png", "a.jpg", "a_overlay.jpg"],
        ["x/a.png", "y/a.png", "z/x/a.png"],
        ["x/a.png", "x_a_png.png", "y/a.png"],
        ["x/a.b.png", "x/a_b.png", "x/a.b.jpg", "x_a_b_png.jpg"],
        ["A.png", "a.png", "a.PNG", "STRASSE.png", "straße.png"],
        ["\u00e9.png", "e\u0301.png"],
        [f"{'x' * 251}.png", f"{'x' * 251}.jpg", f"y{'x' * 250}.png"],
        [f"{'日' * 80}.png", f"x{'日' * 80}.png"],
        ["labels.jsonl", "labels.png", "a"],
        [os.fsdecode(b"\xff\xfe.png"), os.fsdecode(b"\xff.png")],
        [".png", "..png", "a..png"],
    ],
)
def test_no_output_replaces_another(names):
    for order in itertools.permutations(names, len(names)):
        pairs = output_names([epath.Path(name) for name in order])
        flat = [name for pair in pairs for name in pair]
        assert len({name.casefold() for name in flat}) == 2 * len(names)
        assert LABELS not in flat
        assert all(len(os.fsencode(name)) <= 230 and "/" not in name for name in flat)


def test_names_that_are_unique_are_kept():
    paths = map(epath.Path, ["x/a.png", "x/b.jpg", "y/b.jpg"])
    assert output_names(list(paths)) == [
        ("a.png", "a_overlay.png"),
        ("x_b_jpg.png", "x_b_jpg_overlay.png"),
        ("y_b_jpg.png", "y_b_jpg_overlay.png"),
    ]


def test_no_output_replaces_an_input(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("a.png", "A.PNG", "a_overlay.png", "panoptic/a.png"):
        given = epath.Path(tmp_path / name)
        for folder in ("", "link", "sub/.."):
            output = epath.Path(tmp_path / folder)
            with pytest.raises(UserError, match="another --output"):
                check_output(output, [("a.png", "a_overlay.png")], [given])
    check_output(epath.Path(tmp_path), [("b.png", "c.png")], [given])


def test_hidden_files_are_passed_over_and_folders_are_said(tmp_path, caplog):
    for name in ("b.PNG", "a.jpg", "sub/c.png", ".hidden/d.png"):
        make(tmp_path / name)
    for name in ("._a.png", ".a.png", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "d.png").mkdir()
    with caplog.at_level(logging.INFO):
        paths, problems = picture_paths([str(tmp_path), str(tmp_path / "a.jpg")])
    assert [path.name for path in paths] == ["a.jpg", "b.PNG"] and not problems
    assert "those in d.png, sub" in caplog.text and ".hidden" not in caplog.text
    assert "Thumbs.db, notes.txt: no picture by the ending" in caplog.text
    # Who names a file means it.
    (path,), _ = picture_paths([str(tmp_path / ".a.png")])
    assert path.name == ".a.png"


def test_names_that_lead_nowhere_do_not_end_it(tmp_path, monkeypatch):
    make(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    paths, problems = picture_paths(["~/a.png", "~/b.png", str(tmp_path / "empty")])
    assert [path.name for path in paths] == ["a.png"]
    assert "no picture ~/b.png" in problems[0] and "empty holds no" in problems[1]
    with pytest.raises(UserError, match="no picture b.png.*holds no pictures"):
        picture_paths(["b.png", str(tmp_path / "empty")])
    with pytest.raises(UserError, match="No pictures are given"):
        picture_paths([])


def test_results_replace_older_ones_when_complete(tmp_path):
    output = epath.Path(tmp_path / "deep" / "out")
    for text in ("old", "new"):
        with replaced_when_complete(output) as folder:
            (folder / LABELS).write_text(text)
            (folder / "a.png").write_text(text)
            (folder / "panoptic").mkdir()
            (folder / "panoptic" / f"{text}.png").write_text(text)
            assert text == "old" or (output / LABELS).read_text() == "old"
        assert {path.name for path in output.iterdir()} == {LABELS, "a.png", "panoptic"}
        assert (output / LABELS).read_text() == (output / "a.png").read_text() == text


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_results_stay_where_it_ends_early(tmp_path, caplog, error):
    output = epath.Path(tmp_path)
    (output / LABELS).write_text("old")
    with pytest.raises(error), replaced_when_complete(output) as folder:
        (folder / LABELS).write_text("new")
        (folder / "a.png").write_text("new")
        raise error
    assert (output / LABELS).read_text() == "old"
    assert (folder / "a.png").read_text() == "new" and str(folder) in caplog.text
    folder.rmtree()
    with pytest.raises(error), replaced_when_complete(output) as folder:
        (folder / LABELS).write_text("")
        raise error
    assert [path.name for path in output.iterdir()] == [LABELS]


def test_bad_pictures_are_said_and_passed_over(tmp_path, caplog):
    paths = [
        make(tmp_path / "a.png", (4, 5)),
        tmp_path / "page.jpg",
        tmp_path / "gone.png",
        make(tmp_path / "b.png", (6, 7)),
        tmp_path / "broken.png",
        make(tmp_path / "c.png", (8, 9)),
    ]
    paths[1].write_text("<html>")
    paths[4].symlink_to(tmp_path / "nothing")
    problems, batches = [], []

    def predict(images):
        batches.append(len(images))
        return [image.shape for image in images]

    made = list(predictions(paths, predict, 2, problems))
    assert made == [(0, (5, 4, 3)), (3, (7, 6, 3)), (5, (9, 8, 3))]
    assert batches == [2, 1] and len(problems) == 3
    for name, sentence in zip(("page", "gone", "broken"), problems, strict=True):
        assert name in sentence and sentence in caplog.text
    with pytest.raises(UserError, match=r"page.*2 more, said above\); the other 3"):
        check_done(3, problems, "out")
    with pytest.raises(UserError, match=r"only is bad; out is as it was"):
        check_done(0, ["only is bad."], "out")
    check_done(3, [], "out")


def test_large_pictures_come_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mlseg_jax.prediction.batches.MAX_BATCH_PIXELS", 100)
    sizes = [(5, 5), (8, 8), (20, 20), (4, 4), (5, 5), (5, 5)]
    paths = [make(tmp_path / f"{i}.png", size) for i, size in enumerate(sizes)]
    batches = []
    list(predictions(paths, lambda x: batches.append(len(x)) or x, 3, []))
    assert batches == [2, 1, 3]


def test_what_is_too_large_for_the_memory_is_passed_over(tmp_path):
    paths = [make(tmp_path / f"{side}.png", (side, side)) for side in (4, 9, 5)]

    def predict(images):
        if max(image.shape[0] for image in images) > 8:
            raise MemoryError
        return [np.mean(image) for image in images]

    problems = []
    assert [i for i, _ in predictions(paths, predict, 8, problems)] == [0, 2]
    assert len(problems) == 1 and "9.png (9x9) needs more memory" in problems[0]

    def fail(images):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(predictions(paths, fail, 8, []))
