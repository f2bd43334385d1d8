"""Drawings of segments: colours that stay, outlines, numbers, sizes that break code."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.prediction import legend
from mlseg_jax.prediction.draw_segments import (
    SHADES,
    draw_segments,
    lay_over,
    number_places,
    segment_colours,
)
from mlseg_jax.prediction.visualise import MAX_LEGEND_ROWS, MIN_PICTURE_SIDE, palette

NAMES = [f"class {i}" for i in range(40)]


def make(number, class_id, pixels, score=0.5):
    mask = pixels == number
    return Segment(
        number,
        class_id,
        NAMES[class_id],
        score,
        int(mask.sum()),
        (0, 0, 1, 1),
        0,
        pixels,
    )


def panoptic_of(segment_map, classes):
    return Panoptic(
        segment_map, tuple(make(i, c, segment_map) for i, c in classes.items())
    )


def test_colours_depend_on_class_and_order_alone():
    ids = np.zeros((2, 2), np.int32)
    few = segment_colours([make(1, 3, ids), make(2, 3, ids)], NAMES)
    more = [make(9, 5, ids), make(4, 3, ids), make(5, 7, ids), make(6, 3, ids)]
    colours = segment_colours(more, NAMES)
    np.testing.assert_array_equal(colours[[1, 3]], few)
    np.testing.assert_array_equal(few[0], palette(40)[3])
    many = segment_colours([make(i, 3, ids) for i in range(len(SHADES))], NAMES)
    assert len(np.unique(many, axis=0)) == len(SHADES)


def test_tint_outline_and_number():
    segment_map = np.zeros((600, 700), np.int32)
    segment_map[100:500, 100:400], segment_map[100:500, 400:600] = 1, 2
    image = np.full((600, 700, 3), 200, np.uint8)
    found = panoptic_of(segment_map, {1: 4, 2: 4})
    drawn = draw_segments(image, found, NAMES).whole()[:600, :700]
    assert (drawn[:90, :90] == 200).all()  # no segment
    assert (drawn[120, 120] != drawn[120, 580]).any()  # shades
    assert (drawn[200, 397:402].min(0) < 60).all()  # the border between them
    # White digits with a dark stroke around the middle, nowhere else.
    middle = drawn[285:315, 235:265].reshape(-1, 3)
    assert (middle == 255).all(1).any() and (middle < 40).all(1).any()
    assert not (drawn[150:250, 150:350] == 255).all(-1).any()


def test_bands_join_without_a_seam(monkeypatch):
    size = (500, 400)
    segment_map = np.zeros(size, np.int32)
    segment_map[:, :200], segment_map[100:, 200:] = 1, 2  # Numbers at many borders.
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    drawing = draw_segments(image, panoptic_of(segment_map, {1: 4, 2: 5}), NAMES)
    whole = drawing.whole()

    def few_rows(size):
        return [slice(y, min(y + 7, size[0])) for y in range(0, size[0], 7)]

    monkeypatch.setattr(legend, "row_bands", few_rows)
    bands = list(drawing.bands())
    assert len(bands) > 70 and len(bands[0]) == 7
    np.testing.assert_array_equal(np.concatenate(bands), whole)


def test_places_of_numbers():
    """In the middle of what is wide, large segments among them; none on a line."""
    segment_map = np.zeros((1500, 1500), np.int32)
    segment_map[100:1480, 120:1480] = 3
    segment_map[20:41, 30:51] = 2
    segment_map[np.arange(1500), np.arange(1500)[::-1]] = 1
    small, large = number_places(segment_map)
    assert small[:3] == (2, 40, 30) and small.radius == pytest.approx(11, abs=0.5)
    # Half its width of 1,360 pixels; the line across it is thinner than what is seen.
    assert large.number == 3 and large.radius == pytest.approx(680, rel=0.06)
    assert abs(large.x - 800) < 50 and abs(large.y - 790) < 50


def test_overlapping_instances():
    first, second = np.zeros((2, 50, 60), bool)
    first[10:40, 10:40], second[20:30, 20:50] = True, True
    instances = tuple(
        Segment(n, 1, "dog", score, int(m.sum()), (0, 0, 1, 1), 0, {
            "size": [50, 60],
            "counts": coco_mask.encode(np.asfortranarray(m, np.uint8))["counts"],
        })
        for n, score, m in ((1, 0.9, first), (2, 0.4, second))
    )  # fmt: skip
    segment_map = lay_over(instances, (50, 60))
    assert (segment_map[first] == 1).all() and (segment_map[second & ~first] == 2).all()
    drawn = draw_segments(np.zeros((50, 60, 3), np.uint8), instances, NAMES).whole()
    assert drawn.shape[0] == MIN_PICTURE_SIDE * 50 // 60


@pytest.mark.parametrize("size", [(2, 2), (3, 400), (500, 5)])
def test_any_size_and_number_of_segments(size):
    height, width = size
    image = np.zeros((*size, 3), np.uint8)
    segment_map = np.arange(height * width, dtype=np.int32).reshape(size) // 3
    classes = {int(i): int(i) % 40 for i in np.unique(segment_map) if i}
    drawn = draw_segments(image, panoptic_of(segment_map, classes), NAMES).whole()
    assert drawn.dtype == np.uint8 and drawn.shape[0] >= height
    nothing = draw_segments(
        image, Panoptic(np.zeros(size, np.int32), ()), NAMES
    ).whole()
    assert nothing.shape[1] >= width
    few = draw_segments(image, (), NAMES).whole()
    unlikely = draw_segments(image, (), NAMES, if_none="3, all below 50%").whole()
    assert few.shape != unlikely.shape or (few != unlikely).any()


def test_table_is_short_and_sizes_must_agree():
    segment_map = np.arange(900, dtype=np.int32).reshape(30, 30)
    found = panoptic_of(segment_map, {i: i % 40 for i in range(1, 900)})
    drawn = draw_segments(np.zeros((30, 30, 3), np.uint8), found, NAMES).whole()
    assert drawn.shape[0] < 2 * MIN_PICTURE_SIDE and MAX_LEGEND_ROWS == 20
    with pytest.raises(ValueError, match="resize one to the other"):
        draw_segments(np.zeros((30, 31, 3), np.uint8), found, NAMES)
