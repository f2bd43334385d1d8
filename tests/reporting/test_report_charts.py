"""The axes of the report's charts."""

import json
import re

import pytest

from mlseg_jax.reporting import charts


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.4, 0.99), (3, 3), (0, 0), (-1e-9, 7e5), (1e-4, 1.1e-4)]
)
def test_ticks_enclose_the_values(low, high):
    ticks = charts.tick_values(low, high, 4)
    assert 2 <= len(ticks) <= 7
    margin = 1e-5 * (ticks[-1] - ticks[0])
    assert ticks[0] <= low + margin and high - margin <= ticks[-1]
    assert len({charts.format_number(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    "k, note",
    [
        (10, "50.0% of the images have at most K = 10 labels."),
        (256, "50.0% of the images have 256 labels or more; K = 256."),
        (5000, "50.0% of the images have 256 labels or more; K = 5000."),
    ],
)
def test_the_last_bin_of_labels_is_open(k, note):
    counts = 257 * [0]
    counts[5] = counts[256] = 3
    page = charts.selection_charts(
        json.dumps({"k": k, "classes_per_image": counts}).encode()
    )
    assert f"<p>{note}</p>" in page
    shares = re.findall("labels in the image .*?: (.*?)%", page)
    assert max(map(float, shares)) == 50.0
