"""Where windows lie, and what labels those of one picture have together."""

import functools
import weakref

import numpy as np
import pytest
from tiny import tiny_config

from mlseg_jax.inference.assemble import unite
from mlseg_jax.inference.views import _plan, plan_axis, round_up

C = 9


def test_unite_against_sets():
    rng = np.random.default_rng(0)
    for windows, ranks, valid_share in [(1, 4, 1.0), (5, 3, 1.0), (6, 4, 0.5)]:
        class_ids = np.stack([rng.permutation(C)[:ranks] for _ in range(windows)])
        class_ids = class_ids.astype(np.int32)
        valid = rng.random(class_ids.shape) < valid_share
        valid[:, 0] = True
        union, real, rank_of = unite(class_ids, None if valid_share == 1 else valid, C)
        sets = [set(i[v].tolist()) for i, v in zip(class_ids, valid, strict=True)]
        expected = sorted(set().union(*sets))
        count = len(expected)
        assert union[:count].tolist() == expected
        assert real.tolist() == [True] * count + [False] * (len(union) - count)
        assert len(union) <= C and (len(union) == C or len(union) % ranks == 0)
        for window, row in enumerate(rank_of):
            for place, rank in enumerate(row):
                if place >= count:
                    assert rank == ranks + 1
                elif union[place] in sets[window]:
                    assert class_ids[window, rank] == union[place]
                else:
                    assert rank == ranks


def test_plan_axis():
    axis = plan_axis(50, 50, 16, 12, 16, 4, 4, False)
    assert axis.starts == (0, 12, 24, 34)
    np.testing.assert_allclose(axis.matrix.sum(axis=1), 1.0, rtol=1e-6)
    mirrored = plan_axis(50, 50, 16, 12, 16, 4, 4, True)
    np.testing.assert_array_equal(mirrored.matrix, axis.matrix[::-1])
    short = plan_axis(30, 11, 16, 12, 16, 3, 4, False)
    assert (short.starts, short.size, short.canvas) == ((0,), 11, 16)
    assert short.matrix.shape == (30, 4)
    np.testing.assert_array_equal(short.matrix[:, 3], 0.0)  # the padding's cells


def test_matrices_of_large_pictures_are_not_kept():
    small = plan_axis(50, 50, 16, 12, 16, 4, 4, False)
    assert small.matrix is small.matrix
    large = plan_axis(4000, 4000, 512, 341, 512, 128, 128, False)
    made = weakref.ref(large.matrix)
    assert made() is None
    np.testing.assert_allclose(large.matrix.sum(axis=1), 1.0, rtol=1e-5)


def test_round_up():
    for length in (1, 32, 33, 100, 512, 5000, 23_168, 23_169, 50_000, 10**6):
        assert length <= round_up(length) <= max(32, 1.5 * length + 16)


@pytest.mark.parametrize("sides, canvas", [((64, 40), (64, 48)), ((70, 64), (80, 64))])
def test_sides_of_the_recipe_are_canvases(sides, canvas):
    """Of whole pictures; the ladder alone has 32, 64 and 80 here."""
    settings = tiny_config({"eval.mode": "whole", "eval.window": (64, 48)}).eval
    picture = np.zeros((*sides, 3), np.uint8)
    plan = functools.partial(_plan, settings, lambda n: n, True, 2, picture, picture)
    assert tuple(plan(axis=i, flip=False).canvas for i in (0, 1)) == canvas


def test_parts_of_an_axis_are_rows_of_its_matrix():
    for axis in (
        plan_axis(50, 50, 16, 12, 16, 4, 4, False),
        plan_axis(50, 87, 16, 7, 16, 4, 4, False),
        plan_axis(50, 31, 16, 12, 16, 4, 4, False),
        plan_axis(30, 11, 16, 12, 16, 3, 4, False),
    ):
        matrix = axis.matrix
        shape = (axis.length, len(axis.starts), axis.canvas_cells)
        for pixels in (slice(0, 7), slice(13, 14), slice(axis.length - 9, axis.length)):
            reaching = axis.reaching(pixels)
            part = axis.part(pixels)
            cells = matrix.reshape(shape)[pixels][:, reaching]
            np.testing.assert_allclose(part, cells.reshape(part.shape), atol=1e-6)
            # Nothing else is needed.
            np.testing.assert_allclose(part.sum(axis=1), 1.0, rtol=1e-5)
