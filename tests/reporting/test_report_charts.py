"""The axes of the report's charts."""

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
