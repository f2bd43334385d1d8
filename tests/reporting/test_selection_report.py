"""Differences over seeds."""

import numpy as np
from scipy import stats

from mlseg_jax.reporting.selection_report import paired_difference


def test_paired_differences():
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        first, second = rng.normal(size=(2, count))
        pair = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
        interval = stats.ttest_rel(second, first).confidence_interval(0.95)
        low, high = pair.mean - pair.half, pair.mean + pair.half
        np.testing.assert_allclose((low, high), interval)
        assert pair.pairs == count
    only = paired_difference({0: 1.0, 1: 3.0}, {1: 2.0, 2: 9.0})
    assert (only.mean, only.half, only.pairs) == (-1.0, np.inf, 1)
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
