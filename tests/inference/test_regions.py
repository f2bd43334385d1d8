"""Label maps, segments and instances of regions against whole-picture loops."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from naive_regions import full_masks, instances, panoptic, semantic_scores
from pycocotools import mask as coco_mask

from benchmarks import lost_things
from mlseg_jax.inference import mask_tiles as tiles
from mlseg_jax.inference.instances import instance_segments
from mlseg_jax.inference.mask_tiles import Masks, mask_axes, tile_size
from mlseg_jax.inference.panoptic import panoptic_segments
from mlseg_jax.inference.pixel_counts import count_pixels
from mlseg_jax.inference.regions import (
    RegionWindow,
    SegmentedRegions,
    regions_of_views,
)
from mlseg_jax.inference.views import make_views
from mlseg_jax.label_selection import Selection
from mlseg_jax.metrics.mean_iou import MeanIoU
from mlseg_jax.typing import IGNORE

NUM_CLASSES = 300
SIZE, RESIZED, PADDED = (75, 101), (50, 67), (64, 96)
CLASS_IDS = np.int32([7, 290, 3, 44, 5])
NAMES = [f"class {i}" for i in range(NUM_CLASSES)]
IS_THING = np.arange(NUM_CLASSES) % 2 == 1  # 290 and 44 are stuff


SCORES = np.zeros((1, NUM_CLASSES), np.float32)


def select(class_ids):
    return Selection(class_ids[None], None, NUM_CLASSES)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several tiles, with ends over the picture's border, and several strips."""
    monkeypatch.setattr(tiles, "tile_bytes", lambda: 2**15)


def make_logits(seed, cells=(16, 24), num_queries=11, num_ranks=5, confident=6.0):
    """Queries that own smooth blobs; some sure of a class, some of none."""
    random = np.random.default_rng(seed)
    centres = random.random((num_queries, 2)) * cells
    grid = np.stack(np.indices(cells), -1)[None]
    distance = np.sqrt(np.square(grid - centres[:, None, None]).sum(-1))
    radius = random.uniform(2, 8, (num_queries, 1, 1))
    masks = 1.5 * (radius - distance) + random.normal(0, 0.7, (num_queries, *cells))
    logits = random.normal(0, 1, (num_queries, num_ranks + 1))
    chosen = random.integers(0, num_ranks + 1, num_queries)
    logits[np.arange(num_queries), chosen] += confident * random.random(num_queries) + 2
    return logits.astype(np.float32), masks.astype(np.float32)


def axes(size=SIZE, resized=RESIZED, padded=PADDED, flip=False):
    return [
        mask_axes(*lengths[:2], (0,), lengths[1], lengths[2], lengths[2] // 4, flip=f)[
            0
        ]
        for lengths, f in zip(zip(size, resized, padded, strict=True), (False, flip))  # noqa: B905
    ]


def picture_of(class_logits, masks, factored=False):
    source = Masks(masks.transpose(1, 2, 0)[None])
    if factored:  # the same logits as a product of two
        basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(masks),) * 2))
        basis = basis.astype(np.float32)
        features = np.einsum("nyx,ne->yxe", masks, basis)
        source = Masks(np.stack([features * 0 - 3, features]), basis, 1)
    window = RegionWindow(class_logits, source, *axes())
    return SegmentedRegions(SIZE, (window,), select(CLASS_IDS), SCORES)


def test_where_every_mask_underflows_no_label_has_a_share():
    logits, masks = make_logits(0)
    (_,), (shares,) = picture_of(logits, np.full_like(masks, -200)).top_labels(3)
    np.testing.assert_array_equal(shares, 0)


def test_masks_of_the_benchmark_of_lost_things():
    logits, masks = make_logits(0)
    found, names = lost_things.region_masks(picture_of(logits, masks))
    expected = full_masks(masks, PADDED, RESIZED, SIZE)
    assert found.shape == expected.shape == (len(masks), *SIZE)
    sure = np.abs(expected) > 1e-4
    np.testing.assert_array_equal(found[sure], (expected > 0)[sure])
    np.testing.assert_array_equal(names, CLASS_IDS[logits[:, :-1].argmax(axis=1)])


@pytest.mark.parametrize("factored", [False, True])
def test_label_map(factored):
    logits, masks = make_logits(0)
    picture = picture_of(logits, masks, factored)
    scores = semantic_scores(logits, full_masks(masks, PADDED, RESIZED, SIZE))
    ordered = np.sort(scores, axis=0)
    sure = ordered[-1] - ordered[-2] > 1e-4
    assert sure.mean() > 0.99
    (labels,) = picture.label_maps()
    assert labels.dtype == np.uint16 and labels.shape == SIZE
    np.testing.assert_array_equal(labels[sure], CLASS_IDS[scores.argmax(0)][sure])
    assert len(np.unique(labels)) > 2
    for y, x, tile in picture.score_tiles():
        inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
        np.testing.assert_allclose(np.asarray(tile)[inside], scores[:, y, x], atol=3e-5)
    (top,), (shares,) = picture.top_labels(3)
    np.testing.assert_array_equal(top[0], labels)
    expected = ordered[:-4:-1] / scores.sum(0)
    np.testing.assert_allclose(shares, expected, atol=2e-3)
    assert picture.top_labels(9)[0].shape == (1, 5, *SIZE)
    truth = np.where(np.arange(SIZE[1]) % 3 == 0, 290, labels).astype(np.int32)
    truth[:, -9:], truth[-5:] = 17, IGNORE  # not selected; not labelled
    counts = count_pixels(picture, truth[None])
    present = np.isin(labels, truth)
    expected = MeanIoU.from_maps(
        *map(jnp.asarray, (labels.astype(np.int32), truth, truth != 17)),
        NUM_CLASSES,
        jnp.asarray(present),
    )
    jax.tree.map(np.testing.assert_array_equal, counts, expected.to_host())


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic(seed, inside):
    logits, masks = make_logits(seed, num_queries=14)
    full = full_masks(masks, PADDED, RESIZED, SIZE)
    thresholds = (0.5, 0.6)
    expected, segments, margin = panoptic(
        logits, full, CLASS_IDS, IS_THING, *thresholds, inside
    )
    found = panoptic_segments(
        picture_of(logits, masks, factored=seed == 1),
        NAMES,
        IS_THING,
        object_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
        inside_mask=inside,
    )
    sure = margin > 1e-4
    assert sure.mean() > 0.99 and len(segments) > 1
    assert found.segment_map.dtype == np.int32
    np.testing.assert_array_equal(found.segment_map[sure], expected[sure])
    assert found.classes == {i: s[0] for i, s in enumerate(segments, start=1)}
    for segment, (class_id, score, rank) in zip(found.segments, segments, strict=True):
        mask = found.segment_map == segment.segment_id
        assert segment.label == NAMES[class_id] and segment.rank == rank
        assert segment.score == pytest.approx(score, abs=1e-5)
        assert segment.area == mask.sum() > 0
        assert segment.box == tuple(coco_mask.toBbox(segment.run_lengths))
        np.testing.assert_array_equal(segment.mask, mask)


def test_one_segment_of_each_class_of_stuff():
    logits, masks = make_logits(3, num_queries=6)
    logits[:] = 0.0
    logits[:, 1] = 9.0  # all are the stuff 290
    logits[2, [1, 0]] = 0.0, 9.0  # but one, a thing
    found = panoptic_segments(
        picture_of(logits, masks), NAMES, IS_THING, overlap_threshold=0.0
    )
    assert [s.class_id for s in found.segments] == [290, 7]
    assert set(np.unique(found.segment_map)) == {0, 1, 2}


def test_nothing_is_found():
    logits, masks = make_logits(0)
    logits[:, -1] = 50.0
    picture = picture_of(logits, masks)
    found = panoptic_segments(picture, NAMES, IS_THING)
    assert not found.segments and not found.segment_map.any()
    assert found.segment_map.shape == SIZE
    logits[:, -1] = -50.0
    hidden = picture_of(logits, np.full_like(masks, -9.0))
    assert not panoptic_segments(hidden, NAMES, IS_THING).segments
    assert instance_segments(hidden, NAMES) == ()
    things = np.zeros(NUM_CLASSES, bool)
    assert instance_segments(picture, NAMES, things) == ()


@pytest.mark.parametrize("factored", [False, True])
def test_instances(factored, monkeypatch):
    monkeypatch.setattr("mlseg_jax.inference.instances.STRIP_BYTES", 4000)
    logits, masks = make_logits(5)
    masks[4] = -5.0  # never seen
    full = full_masks(masks, PADDED, RESIZED, SIZE)
    expected = instances(logits, full, CLASS_IDS, 20)
    found = instance_segments(
        picture_of(logits, masks, factored), NAMES, max_instances=20
    )
    assert 10 < len(found) == len(expected) < 20
    for segment, (class_id, score, mask) in zip(found, expected, strict=True):
        assert segment.class_id == class_id
        assert segment.score == pytest.approx(score, abs=1e-5)
        assert segment.mask.shape == SIZE and (segment.mask != mask).sum() <= 2
        own = coco_mask.encode(np.asfortranarray(segment.mask, np.uint8))
        assert segment.run_lengths == own  # the bytes, too
        assert segment.area == coco_mask.area(own)
        assert segment.box == tuple(coco_mask.toBbox(own))
    assert [s.segment_id for s in found] == list(range(1, len(found) + 1))
    things = instance_segments(
        picture_of(logits, masks), NAMES, IS_THING, max_instances=20
    )
    assert [s.class_id for s in things] == [
        s.class_id for s in found if IS_THING[s.class_id]
    ]
    best = instance_segments(picture_of(logits, masks), NAMES, score_threshold=0.3)
    assert all(s.score >= 0.3 for s in best) and 0 < len(best) < len(found)
    # Ranks that only pad are nothing, also where there are not enough pairs of others.
    logits[:, [0, 3, 4]] = -100.0
    some = Selection(CLASS_IDS[None], np.bool_([[0, 1, 1, 0, 0]]), NUM_CLASSES)
    picture = dataclasses.replace(picture_of(logits, masks, factored), selection=some)
    pairs = instance_segments(picture, NAMES, max_instances=30)
    assert {(s.class_id, s.rank) for s in pairs} == {(290, 1), (3, 2)}
    assert len(pairs) == 2 * sum(bool((mask > 0).any()) for mask in full)
    assert picture.selected_class_ids == {290, 3}


def test_windows_scales_and_mirror_images():
    """Two views, one of them mirrored and in overlapping windows, whose labels
    differ.
    """
    settings = ml_collections.ConfigDict(
        {"mode": "slide", "window": (76, 72), "stride": (76, 40), "flip": True}
    )
    settings.update(scales=(1.0,), base_size=(0, 0))
    image = np.zeros((*SIZE, 3), np.uint8)
    settings_whole = settings.copy_and_resolve_references()
    settings_whole.update(mode="whole", flip=False)
    grid_length = lambda pixels: -(-pixels // 4)  # noqa: E731
    whole = make_views(image, settings_whole, grid_length, True, 4)
    mirrored = make_views(image, settings, grid_length, True, 4)[1:]
    assert mirrored[0].columns.starts == (0, 29) and whole[0].num_windows == 1
    # Of the whole the masks are longer than its real part.
    cells = whole[0].rows.canvas_cells, whole[0].columns.canvas_cells
    assert cells > (19, 26)
    ranks = np.int64([[0, 1, 2, 4, 3, 6], [0, 3, 1, 3, 2, 4], [3, 2, 3, 3, 1, 0]])
    windows, scores = [], np.zeros((6, *SIZE))
    logits, masks = make_logits(0, cells=cells)
    windows.append((logits, Masks(masks.transpose(1, 2, 0)[None])))
    full = full_masks(masks[:, :19, :26], (76, 104), SIZE, SIZE)
    own = semantic_scores(logits, full)
    for label, rank in enumerate(ranks[0]):
        if rank < 5:
            scores[label] += own[rank] / 2
    total, covered = np.zeros((6, *SIZE)), np.zeros(SIZE[1])
    for row, start in zip(ranks[1:], mirrored[0].columns.starts, strict=True):
        logits, masks = make_logits(7 + start, cells=(19, 18), num_ranks=3)
        windows.append((logits, Masks(masks.transpose(1, 2, 0)[None])))
        own = semantic_scores(logits, full_masks(masks, (76, 72), (75, 72), (75, 72)))
        for label, rank in enumerate(row):
            if rank < 3:
                total[label, :, start : start + 72] += own[rank]
        covered[start : start + 72] += 1
    scores += (total / covered)[:, :, ::-1] / 2
    class_ids = np.int32([*CLASS_IDS, 111])
    picture = regions_of_views(
        SIZE, [*whole, *mirrored], windows, select(class_ids), SCORES, ranks
    )
    for y, x, tile in picture.score_tiles():
        inside = (..., slice(y.stop - y.start), slice(x.stop - x.start))
        np.testing.assert_allclose(np.asarray(tile)[inside], scores[:, y, x], atol=3e-5)
    with pytest.raises(ValueError, match="one window, not of 3"):
        panoptic_segments(picture, NAMES, IS_THING)


def test_windows_of_another_scale_share_each_pixel():
    starts, size = (0, 20, 33), 30
    parts = mask_axes(101, 63, starts, size, 32, 8)
    np.testing.assert_allclose(sum(p.share for p in parts), 1.0, atol=1e-6)
    for part, start in zip(parts, starts, strict=True):
        np.testing.assert_allclose(part.weights.sum(1), part.share > 0, atol=1e-6)
        seen = np.flatnonzero(part.share)
        assert abs(seen[0] - start * 101 / 63) < 2
        assert abs(seen[-1] + 1 - (start + size) * 101 / 63) < 2


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (129, 7)])
def test_tiny_pictures(size):
    logits, masks = make_logits(2, cells=(8, 8))
    window = RegionWindow(
        logits, Masks(masks.transpose(1, 2, 0)[None]), *axes(size, (20, 17), (32, 32))
    )
    labels = Selection(CLASS_IDS[None], None, 40)
    picture = SegmentedRegions(size, (window,), labels, SCORES[:, :40])
    full = full_masks(masks, (32, 32), (20, 17), size)
    (labels,) = picture.label_maps()
    assert labels.dtype == np.uint8
    expected = CLASS_IDS[semantic_scores(logits, full).argmax(0)]
    assert (labels == expected.astype(np.uint8)).mean() > 0.99
    assert panoptic_segments(picture, NAMES, IS_THING).segment_map.shape == size
    assert all(s.mask.shape == size for s in instance_segments(picture, NAMES))


def test_tiles_are_bounded(monkeypatch):
    monkeypatch.undo()
    for values in (10, 500, 2_000, 20_000):
        height, width = tile_size(values, (4000, 5000))
        assert 4 * values * height * width <= max(tiles.tile_bytes(), 256 * values)
    assert tile_size(10, (5, 9)) == (8, 16)
    assert jax.default_backend() == "cpu"
