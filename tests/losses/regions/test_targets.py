"""Segments of a crop as targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.label_selection import Selection
from mlseg_jax.losses.regions.targets import (
    class_areas,
    make_targets,
    nearest_pixels,
    segment_areas,
    segment_pixels,
)
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")
CLASSES, SEGMENTS, SIZE = 7, 5, (6, 13)


def make_segments(batch):
    rng = np.random.default_rng(batch)
    class_ids = rng.integers(0, CLASSES, (batch, SEGMENTS)).astype(np.int32)
    class_ids[:, -1] = IGNORE
    ids = rng.integers(-1, SEGMENTS - 2, (batch, *SIZE)).astype(np.int32)  # 3: emptied
    masks = ids[:, None] == np.arange(SEGMENTS)[None, :, None, None]
    return class_ids, ids, masks, np.packbits(masks, axis=-1)


@jax.jit
def run(class_ids, masks, selection):
    areas = segment_areas(masks, SEGMENTS)
    return areas, make_targets(
        class_ids, areas, masks, SIZE, selection, ignore_void=True
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_targets(batch):
    class_ids, ids, masks, bits = make_segments(batch)
    rng = np.random.default_rng(0)
    selected = np.stack([rng.permutation(CLASSES)[:4] for _ in range(batch)])
    valid = np.arange(4) < 3
    selection = Selection(
        jnp.asarray(selected), jnp.asarray(np.tile(valid, (batch, 1))), CLASSES
    )
    masks_of = {"ids": ids, "bits": bits}
    for kind, form in masks_of.items():
        areas, targets = run(class_ids, form, selection)
        np.testing.assert_array_equal(areas, masks.sum(axis=(2, 3)))
        ranks_found, valid_found = np.asarray(targets.ranks), np.asarray(targets.valid)
        for image in range(batch):
            ranks = {c: r for r, c in enumerate(selected[image][:3])}
            for m in range(SEGMENTS):
                rank = ranks.get(class_ids[image, m], IGNORE)
                if not masks[image, m].any():
                    rank = IGNORE
                assert ranks_found[image, m] == rank
                assert valid_found[image, m] == (rank != IGNORE)
        if kind == "ids":
            np.testing.assert_array_equal(targets.void, ids == IGNORE)
        else:
            assert targets.void is None


def test_areas_of_classes():
    class_ids, ids, masks, _ = make_segments(3)
    class_ids[:, 1] = class_ids[:, 0]  # two segments of a class
    areas = masks.sum(axis=(2, 3)).astype(np.int32)
    found = jax.jit(class_areas, static_argnums=2)(class_ids, areas, CLASSES)
    expected = np.zeros((3, CLASSES), int)
    for image, m in np.ndindex(class_ids.shape):
        if class_ids[image, m] != IGNORE:
            expected[image, class_ids[image, m]] += areas[image, m]
    np.testing.assert_array_equal(found, expected)
    # Something that lies under no class counts for none, the last one neither.
    nothing = class_areas(jnp.full((1, 2), IGNORE), jnp.ones((1, 2), int), CLASSES)
    np.testing.assert_array_equal(nothing, np.zeros((1, CLASSES)))


def test_whole_masks():
    _, ids, masks, bits = make_segments(3)
    own = np.asarray([2, 0, 2])
    rows, columns = np.arange(4) * 6 // 4, np.arange(5) * 13 // 5
    for form in (ids, bits):
        found = segment_pixels(jnp.asarray(form[1]), SIZE, jnp.asarray(own))
        np.testing.assert_array_equal(found, masks[1][own])
        found = nearest_pixels(jnp.asarray(form[1]), SIZE, (4, 5), SEGMENTS)
        np.testing.assert_array_equal(found, masks[1][:, rows][:, :, columns])
