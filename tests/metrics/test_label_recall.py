"""LabelRecall and label_histogram against loops over images and k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.metrics.label_recall import (
    MAX_CLASSES_PER_IMAGE,
    LabelRecall,
    label_histogram,
)
from mlseg_jax.typing import IGNORE

from_batch = jax.jit(LabelRecall.from_batch)
CURVES = ("pixel_recall", "image_recall", "image_precision")


def make_batch(seed, batch, num_classes, num_selected, used=None, with_valid=False):
    rng = np.random.default_rng(seed)
    used = num_classes if used is None else used
    label_map = rng.integers(-1, used, (batch, 5, 7)).astype(np.int32)
    scores = rng.normal(size=(batch, num_classes))
    class_ids = np.argsort(-scores, axis=1)[:, :num_selected].astype(np.int32)
    valid = rng.random(class_ids.shape) < 0.6 if with_valid else None
    return class_ids, valid, label_map


def loop_curve(class_ids, valid, label_map, keep):
    num_selected = class_ids.shape[1]
    sums = np.zeros((3, num_selected))
    for b in np.flatnonzero(keep):
        pixels = [int(c) for c in label_map[b].ravel() if c != IGNORE]
        present = set(pixels)
        for k in range(1, num_selected + 1):
            chosen = {
                int(class_ids[b, r]) for r in range(k) if valid is None or valid[b, r]
            }
            inside = sum(c in chosen for c in pixels)
            sums[0, k - 1] += inside / len(pixels) if pixels else 1
            sums[1, k - 1] += len(chosen & present) / len(present) if present else 1
            sums[2, k - 1] += len(chosen & present) / k
    return dict(zip(CURVES, sums / keep.sum(), strict=True))


def make_state(class_ids, valid, label_map, num_classes, keep=None):
    keep = np.ones(len(class_ids), bool) if keep is None else keep
    histogram = label_histogram(jnp.asarray(label_map), num_classes)
    return from_batch(jnp.asarray(class_ids), valid, histogram, keep)


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(
    ("batch", "num_classes", "num_selected", "used"),
    [(1, 9, 4, 9), (3, 50, 7, 5), (3, 6, 6, 3), (2, 1, 1, 1)],
)
def test_curve_equals_the_loop(batch, num_classes, num_selected, used, with_valid):
    class_ids, valid, label_map = make_batch(
        0, batch, num_classes, num_selected, used, with_valid
    )
    label_map[-1] = IGNORE  # an image with nothing labelled
    state = make_state(class_ids, valid, label_map, num_classes)
    expected = loop_curve(class_ids, valid, label_map, np.ones(batch, bool))
    curve = state.curve()
    np.testing.assert_array_equal(curve["k"], np.arange(1, num_selected + 1))
    scores = state.compute()
    assert scores.keys() == {f"{name}_at_k" for name in CURVES}
    for name in CURVES:
        np.testing.assert_allclose(curve[name], expected[name], atol=1e-6)
        assert scores[f"{name}_at_k"] == pytest.approx(expected[name][-1], abs=1e-6)


def test_small_example_by_hand():
    label_map = np.array([[[0, 0, 0, 2, IGNORE]]], np.int32)
    state = make_state(np.array([[0, 1, 2]], np.int32), None, label_map, 4)
    curve = state.curve()
    np.testing.assert_allclose(curve["pixel_recall"], [0.75, 0.75, 1])
    np.testing.assert_allclose(curve["image_recall"], [0.5, 0.5, 1])
    np.testing.assert_allclose(curve["image_precision"], [1, 0.5, 2 / 3])
    assert state.classes_per_image[2] == state.num_images == 1


def test_nothing_labelled_has_recall_one_and_no_image_has_none():
    label_map = np.full((2, 3, 3), IGNORE, np.int32)
    class_ids = np.array([[0, 1], [1, 0]], np.int32)
    state = make_state(class_ids, None, label_map, 2)
    assert list(state.compute().values()) == [1.0, 1.0, 0.0]
    assert state.classes_per_image[0] == 2
    padded = make_state(class_ids, None, label_map, 2, np.zeros(2, bool))
    for nothing in (padded, LabelRecall.empty(2)):
        assert np.isnan(list(nothing.compute().values())).all()
        assert nothing.curve()["image_recall"].shape == (2,)
        assert nothing.classes_per_image.sum() == 0


def test_padding_counts_nowhere():
    class_ids, valid, label_map = make_batch(1, 5, 8, 3, with_valid=True)
    keep = np.array([1, 0, 1, 1, 0], bool)
    padded = make_state(class_ids, valid, label_map, 8, keep)
    exact = make_state(class_ids[keep], valid[keep], label_map[keep], 8)
    for first, second in zip(
        jax.tree.leaves(padded), jax.tree.leaves(exact), strict=True
    ):
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_invalid_ranks_may_hold_any_id():
    label_map = np.array([[[0, 1]]], np.int32)
    class_ids = np.array([[1, 0, -1, 99]], np.int32)
    valid = np.array([[True, False, False, False]])
    state = make_state(class_ids, valid, label_map, 2)
    np.testing.assert_allclose(state.curve()["pixel_recall"], [0.5] * 4)


def test_merge_equals_all_at_once_on_device_host_and_mixed():
    class_ids, valid, label_map = make_batch(2, 6, 12, 5, 4, with_valid=True)
    whole = make_state(class_ids, valid, label_map, 12)
    first = make_state(class_ids[:2], valid[:2], label_map[:2], 12)
    second = make_state(class_ids[2:], valid[2:], label_map[2:], 12)
    merged = {
        "device": first.merge(second),
        "host": first.to_host().merge(second.to_host()),
        "mixed": first.merge(second.to_host()),
        "from empty": LabelRecall.empty(5).merge(first).merge(second),
    }
    for name, state in merged.items():
        for got, expected in zip(
            jax.tree.leaves(state), jax.tree.leaves(whole), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)
            assert isinstance(got, jax.Array if name == "device" else np.ndarray)
            assert got.itemsize == (4 if name == "device" else 8)
    with pytest.raises(ValueError, match="Cannot merge two LabelRecall"):
        LabelRecall.empty(1).merge(whole)


def test_host_sums_pass_int32():
    limit = np.iinfo(np.int32).max
    state = make_state(*make_batch(3, 1, 4, 2), 4)
    state = state.replace(num_images=jnp.int32(limit), hits=jnp.full(2, limit))
    total = LabelRecall.empty(2).merge(state).merge(state).merge(state)
    assert total.num_images == 3 * limit
    np.testing.assert_allclose(total.curve()["image_precision"], [1, 0.5])


def test_classes_per_image_clips_into_the_last_bin():
    counts = [0, 3, MAX_CLASSES_PER_IMAGE - 1, MAX_CLASSES_PER_IMAGE, 300]
    histogram = (np.arange(320)[None] < np.array(counts)[:, None]).astype(np.int32)
    state = from_batch(np.zeros((5, 1), np.int32), None, histogram, np.ones(5, bool))
    bins = np.asarray(state.classes_per_image)
    assert bins.shape == (MAX_CLASSES_PER_IMAGE + 1,)
    assert bins.sum() == 5
    assert bins[[0, 3, 255, 256]].tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 4, 7), (2, 0, 4)])
def test_label_histogram_equals_the_loop(shape):
    num_classes = 6
    rng = np.random.default_rng(4)
    label_map = rng.integers(-1, num_classes, shape).astype(np.int32)
    if label_map.size:
        label_map[0] = IGNORE
        label_map[-1, 0, 0] = num_classes  # no class either
    expected = np.zeros((shape[0], num_classes), int)
    for b in range(shape[0]):
        for c in label_map[b].ravel():
            if 0 <= c < num_classes:
                expected[b, c] += 1
    histogram = jax.jit(label_histogram, static_argnums=1)(label_map, num_classes)
    assert histogram.dtype == jnp.int32
    np.testing.assert_array_equal(histogram, expected)
