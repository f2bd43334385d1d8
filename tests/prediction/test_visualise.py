"""Palette, overlays and error maps, on the sizes and names that break drawing code."""

import numpy as np
import pytest

from input_pipeline.datasets.names import read_info
from mlseg_jax.prediction import legend, visualise
from mlseg_jax.typing import IGNORE


def _oklab_distance(first, second):
    return np.linalg.norm(
        visualise._oklab(first.astype(float)) - visualise._oklab(second.astype(float)),
        axis=-1,
    )


def test_palette_is_distinct_and_prefixes_agree():
    colours = visualise.palette(10_000)
    assert colours.dtype == np.uint8 and colours.shape == (10_000, 3)
    assert len(np.unique(colours, axis=0)) == 10_000
    for count in (0, 1, 40, 150, 256, 257, 1284):
        np.testing.assert_array_equal(visualise.palette(count), colours[:count])
    np.testing.assert_array_equal(visualise.palette(10_002)[10_000:], colours[:2])


def test_palette_does_not_change_between_versions():
    # Reports made in different years are compared side by side.
    expected = [[44, 121, 212], [226, 233, 2], [219, 65, 2]]
    np.testing.assert_array_equal(visualise.palette(3), expected)


def test_neighbouring_ids_differ_and_first_classes_are_far_apart():
    colours = visualise.palette(10_000)
    assert _oklab_distance(colours[1:], colours[:-1]).min() > 0.1
    assert _oklab_distance(colours[2:], colours[:-2]).min() > 0.05
    first = colours[:40]
    pairs = _oklab_distance(first[:, None], first[None])
    assert pairs[~np.eye(40, dtype=bool)].min() > 0.09


def test_classes_of_published_data_sets_have_their_colours():
    for name, count in (("ade20k", 150), ("coco_stuff", 171), ("coco_panoptic", 133)):
        info = read_info(name, name)
        colours = visualise.class_colours(info.class_names)
        assert colours.shape == (count, 3) and colours.dtype == np.uint8
        assert info.num_classes == count and not any(
            "\t" in n for n in info.class_names
        )
    names = list(read_info("x", "ade20k").class_names)
    colours = visualise.class_colours(names)
    assert tuple(colours[names.index("sky")]) == (6, 230, 230)
    context = read_info("x", "pascal_context").class_names
    np.testing.assert_array_equal(
        visualise.class_colours(context)[1:], visualise.class_colours(context[1:])
    )
    others = visualise.class_colours(names[1:])
    np.testing.assert_array_equal(others, visualise.palette(149))
    picture = np.zeros((60, 60, 3), np.uint8)
    shown = visualise.overlay(picture, np.full((60, 60), 2, np.int32), names, alpha=1.0)
    assert tuple(shown[30, 30]) == (6, 230, 230)


def test_colourise_maps_ids_and_ignore():
    label_map = np.array([[0, 39], [IGNORE, 7]], np.int32)
    colours = visualise.palette(40)
    expected = [[colours[0], colours[39]], [visualise.IGNORE_COLOUR, colours[7]]]
    np.testing.assert_array_equal(visualise.colourise(label_map, colours), expected)


@pytest.mark.parametrize("wrong", [-2, 40, 255])
def test_colourise_names_values_that_are_no_class(wrong):
    with pytest.raises(ValueError, match=rf"{wrong}.*0\.\.39"):
        visualise.colourise(np.full((2, 2), wrong, np.int32), visualise.palette(40))


def test_error_map_tells_four_kinds_apart():
    truth = np.array([[1, 1, 2, IGNORE, IGNORE]], np.int32)
    prediction = np.array([[1, 2, 1, 1, IGNORE]], np.int32)
    right, confused = visualise.CORRECT_COLOUR, visualise.CONFUSED_COLOUR
    lost, ignored = visualise.NOT_SELECTED_COLOUR, visualise.IGNORE_COLOUR
    np.testing.assert_array_equal(
        visualise.error_map(truth, prediction),
        [[right, confused, confused, ignored, ignored]],
    )
    np.testing.assert_array_equal(
        visualise.error_map(truth, prediction, [1]),
        [[right, confused, lost, ignored, ignored]],
    )
    with pytest.raises(ValueError, match="shape"):
        visualise.error_map(truth, prediction[:, :2])


def test_present_labels_are_sorted_by_share():
    label_map = np.array([[5, 5, 2, IGNORE]], np.int32)
    assert visualise.present_labels(label_map) == {5: 0.5, 2: 0.25}
    assert list(visualise.present_labels(label_map)) == [5, 2]
    assert visualise.present_labels(np.full((2, 2), IGNORE, np.int32)) == {}


NAMES = [f"sign GREEK SMALL LETTER ÄΩж日\n\0{i} <&\"'>" for i in range(1284)]


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (20, 700), (700, 20), (300, 500)])
@pytest.mark.parametrize("scored", [False, True])
def test_overlay_works_at_any_size(size, scored):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label_map = rng.integers(-1, 1284, size).astype(np.int32)
    scores = rng.uniform(size=1284) if scored else None
    picture = visualise.overlay(image, label_map, NAMES, scores)
    assert picture.dtype == np.uint8 and picture.ndim == 3
    assert max(picture.shape) >= visualise.MIN_PICTURE_SIDE
    assert picture.shape[0] * picture.shape[1] > size[0] * size[1]
    assert picture.max() == 255  # the paper of the legend


def test_overlay_keeps_a_large_picture_and_its_ignored_pixels():
    image = np.full((3000, 6000, 3), 77, np.uint8)
    label_map = np.full((3000, 6000), IGNORE, np.int32)
    label_map[:100, :100] = 3
    picture = visualise.overlay(image, label_map, NAMES, {3: 0.5}, alpha=1.0)
    assert picture.shape[0] > 3000 and picture.shape[1] == 6000  # legend below
    np.testing.assert_array_equal(picture[2000, 3000], [77, 77, 77])
    np.testing.assert_array_equal(picture[50, 50], visualise.palette(4)[3])


def test_legend_lists_only_the_largest_labels():
    label_map = np.arange(30, dtype=np.int32).repeat(np.arange(1, 31))[None]
    rows = visualise._legend_rows(visualise.present_labels(label_map), NAMES, None)
    assert [row[0] for row in rows[:2]] == [29, 28]
    assert len(rows) == visualise.MAX_LEGEND_ROWS + 1
    assert rows[-1][:2] == (None, "+10 more")
    assert visualise._legend_rows({}, NAMES, None) == [(None, "no labels", "")]


def test_overlay_refuses_different_sizes():
    with pytest.raises(ValueError, match="resize"):
        visualise.overlay(
            np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.int32), ["a"]
        )


def test_shorten_keeps_both_ends():
    assert legend.shorten("wall", 10) == "wall"
    assert legend.shorten("a\nb", 10) == "a b"
    assert legend.shorten("sign GREEK SMALL LETTER ALPHA", 16) == "sign G…TER ALPHA"
    for limit in range(1, 12):
        assert len(legend.shorten("abcdefghijkl", limit)) <= limit
    assert legend.shorten("abc", 0) == "…"


@pytest.mark.parametrize("size", [(500, 300), (300, 700)])
def test_bands_of_a_drawing_are_its_rows(size, monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label_map = np.kron(rng.integers(0, 9, (10, 10)), np.ones((70, 70), int))
    label_map = label_map[: size[0], : size[1]].astype(np.uint8)
    scores = dict(enumerate(rng.uniform(size=9)))
    whole = visualise.overlay(image, label_map.astype(np.int32), NAMES, scores)
    for step in (1, 7, 100):
        monkeypatch.setattr(
            legend,
            "row_bands",
            lambda size, step=step: [
                slice(y, min(y + step, size[0])) for y in range(0, size[0], step)
            ],
        )
        drawing = visualise.draw_overlay(image, label_map, NAMES, scores)
        bands = list(drawing.bands())
        assert {len(band) for band in bands[:-1]} == {step}
        np.testing.assert_array_equal(np.concatenate(bands), whole)
        np.testing.assert_array_equal(drawing.whole(), whole)


def test_labels_of_unsigned_maps():
    label_map = np.array([[255, 255, 0, 7]], np.uint8)
    counts = visualise.count_labels(label_map, 256)
    assert counts.sum() == 4 and counts[[0, 7, 255]].tolist() == [1, 1, 2]
    assert visualise.present_labels(label_map) == {255: 0.5, 0: 0.25, 7: 0.25}
    colours = visualise.palette(256)
    np.testing.assert_array_equal(
        visualise.colourise(label_map, colours)[0], colours[[255, 255, 0, 7]]
    )
