"""Polygons and run lengths, drawn as COCO does, and damaged ones."""

import array

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from input_pipeline.info import DataError

SIZE = (10, 12)
WHERE = "Annotation 3 of a.json"


def _message(segmentation, size=SIZE):
    with pytest.raises(DataError) as error:
        coco_masks.decode(segmentation, size, WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and message.endswith(".") and "\n" not in message
    return message


def _compress(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle["counts"].decode()


def _uncompress(mask):
    """Run lengths of a mask by counting, one pixel after another."""
    counts, current = [0], 0
    for value in mask.T.ravel():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


def test_both_kinds_of_run_lengths():
    rng = np.random.default_rng(0)
    for trial in range(60):
        size = tuple(rng.integers(1, 80, 2).tolist())
        share = (0, 1, rng.random())[trial % 3]
        blocks = rng.random(size) < share
        mask = np.kron(blocks, np.ones((1 + trial % 5, 2), bool)).astype(bool)
        size = list(mask.shape)
        text, counts = _compress(mask), _uncompress(mask)
        for given in (text, text.encode(), counts, array.array("q", counts)):
            drawn = coco_masks.decode(
                {"size": size, "counts": given}, tuple(size), WHERE
            )
            assert drawn.dtype == bool
            np.testing.assert_array_equal(drawn, mask)


def test_polygons():
    square = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]
    expected = np.zeros(SIZE, bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(coco_masks.decode([square], SIZE, WHERE), expected)
    expected[7:9, 0:2] = True
    other = array.array("d", [0, 7, 2, 7, 2, 9, 0, 9])
    drawn = coco_masks.decode([square, other], SIZE, WHERE)
    np.testing.assert_array_equal(drawn, expected)
    # A little outside, as drawing tools leave them, is cut off.
    drawn = coco_masks.decode([[-1.5, -1, 13, -1, 13, 11.5, -1.5, 11.5]], SIZE, WHERE)
    assert drawn.all()


def test_damaged_run_lengths():
    rle = {"size": [10, 12], "counts": [5, 200]}
    assert "overrun its mask (205 of 120 pixels)" in _message(rle)
    assert "overrun" in _message(rle | {"counts": "5X6"})
    assert "do not fill its mask (10 of 120" in _message(rle | {"counts": [10]})
    # Sums that would wrap around to 120 in 64 bits.
    assert "overrun" in _message(rle | {"counts": [2**62] * 4 + [120]})
    cut = _compress(np.eye(12, dtype=bool)[:10])[:-1]
    for counts in ([-1, 121], [5.0, 115.0], [2**64, 1], "", "é", "P", cut):
        assert "run lengths" in _message(rle | {"counts": counts}), counts
    for counts in (None, {}, [[120]], ["120"]):
        assert "damaged" in _message(rle | {"counts": counts})
    turned = {"size": [12, 10], "counts": [120]}
    assert "height and width are swapped" in _message(turned)
    assert "for 20x20 pixels, but its image is 12x10" in _message(
        {"size": [20, 20], "counts": [400]}
    )
    for size in (None, 5, [10], [10, 12, 1], ["10", "12"], [10.0, 12.0]):
        assert "not [height, width]" in _message({"size": size, "counts": [120]})


def test_damaged_polygons():
    square = [2, 1, 6, 1, 6, 4, 2, 4]
    for other in ([100, 100, 110, 100, 110, 110], [0, 0, 1e9, 0, 5, 5]):
        assert "outside its image (x from" in _message([square, other])
    assert "(y from -30 to 4" in _message([[2, -30, 6, 1, 6, 4]])
    assert "outside" in _message([[float("nan"), 0, 1, 1, 2, 2]])
    # pycocotools takes four numbers for a box.
    for polygon in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [], "abcdef", None, [1, 2, "x"] * 2):
        assert "three points" in _message([polygon])
    for segmentation in ([], None, "x", 7):
        assert "neither a list of polygons nor run lengths" in _message(segmentation)


def test_paint_keeps_the_first():
    left, right = np.zeros((2, *SIZE), bool)
    left[:, :6], right[:, 4:8] = True, True
    canvas = coco_masks.paint([(300, left), (7, right)], SIZE, empty=-1)
    assert canvas.dtype == np.int32
    row = [300] * 6 + [7] * 2 + [-1] * 4
    np.testing.assert_array_equal(canvas, np.tile(row, (10, 1)))


def test_claimed_sizes():
    assert coco_masks.check_image_size(12, 10, "Image 1") == SIZE
    for width, height in ((0, 5), (-3, -5), (2**20, 2**20), ("12", 10), (None, 3)):
        with pytest.raises(DataError, match="Image 1 has the size"):
            coco_masks.check_image_size(width, height, "Image 1")
