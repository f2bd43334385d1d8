"""MeanIoU against pixel-by-pixel loops, and the host arithmetic of states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.metrics.mean_iou import MeanIoU, add_states, count_classes
from mlseg_jax.typing import IGNORE

FIELDS = (
    "intersection",
    "predicted",
    "labelled",
    "wrong_unselected",
    "wrong_selected",
    "wrong_absent",
)
from_maps = jax.jit(MeanIoU.from_maps, static_argnums=3)


def make_maps(seed, shape, num_classes, used=None, ignored=0.2):
    rng = np.random.default_rng(seed)
    used = num_classes if used is None else used
    label_map = rng.integers(0, used, shape).astype(np.int32)
    label_map[rng.random(shape) < ignored] = IGNORE
    prediction = rng.integers(0, num_classes, shape).astype(np.int32)
    agree = rng.random(shape) < 0.4
    prediction = np.where(agree & (label_map >= 0), label_map, prediction)
    return prediction, label_map, rng.random(shape) < 0.7


def loop_scores(prediction, label_map, selected, num_classes, present=None):
    present = np.ones(label_map.shape, bool) if present is None else present
    maps = [x.ravel() for x in (prediction, label_map, selected, present)]
    counted = [
        (int(p), int(t), bool(s), bool(here))
        for p, t, s, here in zip(*maps, strict=True)
        if t != IGNORE
    ]
    pixels = [pixel[:3] for pixel in counted]
    ious, present_ious, accuracies, per_class = [], [], [], []
    for c in range(num_classes):
        both = sum(p == c and t == c for p, t, _ in pixels)
        either = sum(p == c or t == c for p, t, _ in pixels)
        truth = sum(t == c for _, t, _ in pixels)
        per_class.append(both / either if either else np.nan)
        if either:
            ious.append(both / either)
        if truth:
            present_ious.append(both / either)
            accuracies.append(both / truth)
    wrong = [s for p, t, s in pixels if p != t]
    mean = lambda x: sum(x) / len(x) if x else np.nan  # noqa: E731
    return per_class, {
        "mIoU": mean(ious),
        "mIoU_present": mean(present_ious),
        "pixel_accuracy": mean([p == t for p, t, _ in pixels]),
        "mean_class_accuracy": mean(accuracies),
        "wrong_pixels": mean([p != t for p, t, _ in pixels]),
        "wrong_not_selected": mean([not s for s in wrong]) if wrong else 0.0,
        "wrong_confused": mean(wrong) if wrong else 0.0,
        "wrong_absent": mean([not here for p, t, _, here in counted if p != t])
        if wrong
        else 0.0,
    }


def assert_same_counts(first, second):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("shape", "num_classes", "used"),
    [((1, 7, 5), 4, 4), ((3, 6, 9), 40, 6), ((13,), 1, 1), ((2, 3, 4, 5), 300, 9)],
)
def test_scores_equal_the_loop(shape, num_classes, used):
    maps = make_maps(0, shape, num_classes, used)
    present = np.random.default_rng(1).random(shape) < 0.5
    state = from_maps(*maps, num_classes, present)
    per_class, expected = loop_scores(*maps, num_classes, present)
    scores = state.compute()
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert type(scores[name]) is float
        np.testing.assert_allclose(scores[name], value, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(state.per_class_iou(), per_class, atol=1e-12)


def test_small_example_by_hand():
    label_map = jnp.array([[0, 0, 1, IGNORE]])
    prediction = jnp.array([[0, 2, 1, 3]])  # 2 was never true; 3 is on an ignored pixel
    state = MeanIoU.from_maps(prediction, label_map, jnp.zeros((1, 4), bool), 5)
    np.testing.assert_array_equal(state.per_class_iou(), [0.5, 1, 0, np.nan, np.nan])
    scores = state.compute()
    assert scores["mIoU"] == pytest.approx(0.5)
    assert scores["mIoU_present"] == pytest.approx(0.75)
    assert scores["pixel_accuracy"] == pytest.approx(2 / 3)
    assert scores["mean_class_accuracy"] == pytest.approx(0.75)
    assert scores["wrong_not_selected"] == 1.0
    assert scores["wrong_confused"] == 0.0


def test_ids_outside_the_classes():
    """A label without a class is dropped; a prediction without one is only wrong."""
    label_map = jnp.array([0, 0, 255, -7, 1])
    prediction = jnp.array([-1, 9, 0, 0, 1])
    state = MeanIoU.from_maps(prediction, label_map, jnp.ones(5, bool), 3)
    np.testing.assert_array_equal(state.labelled, [2, 1, 0])
    np.testing.assert_array_equal(state.predicted, [0, 1, 0])
    assert state.wrong_selected == 2
    np.testing.assert_array_equal(
        count_classes(jnp.array([[-5, -1], [2, 3]]), 3), [0, 0, 1]
    )
    narrow = jnp.array([-1, 100], jnp.int8)
    np.testing.assert_array_equal(count_classes(narrow, 300).sum(), 1)


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4)])
def test_nothing_labelled(shape):
    """All ignored, or no pixel at all: NaN means, no warnings, shares 0."""
    maps = make_maps(1, shape, 3, ignored=1.1)
    for state in (from_maps(*maps, 3), MeanIoU.empty(3)):
        scores = state.compute()
        names = ("wrong_not_selected", "wrong_confused", "wrong_absent")
        assert [scores.pop(name) for name in names] == [0.0] * 3
        assert np.isnan(list(scores.values())).all()
        assert np.isnan(state.per_class_iou()).all()
        assert state.per_class_iou().shape == (3,)


def test_all_right():
    label_map = jnp.array([[0, 1, 2]])
    scores = MeanIoU.from_maps(label_map, label_map, jnp.ones((1, 3), bool), 3)
    scores = scores.compute()
    assert scores["mIoU"] == scores["pixel_accuracy"] == 1.0
    assert scores["wrong_pixels"] == scores["wrong_not_selected"] == 0.0


def test_merge_equals_all_at_once_on_device_host_and_mixed():
    maps = make_maps(2, (3, 8, 5), 6)
    whole = from_maps(*maps, 6)
    # Strips of rows, as the evaluation scores large images.
    top = from_maps(*(m[:, :3] for m in maps), 6)
    rest = from_maps(*(m[:, 3:] for m in maps), 6)
    merged = {
        "device": top.merge(rest),
        "jit": jax.jit(add_states)(top, rest),
        "host": top.to_host().merge(rest.to_host()),
        "mixed": top.merge(rest.to_host()),
        "mixed, other way": top.to_host().merge(rest),
        "from empty": MeanIoU.empty(6).merge(top).merge(rest),
    }
    for name, state in merged.items():
        assert_same_counts(state, whole)
        kind, dtype = (
            (jax.Array, np.int32)
            if name in ("device", "jit")
            else (np.ndarray, np.int64)
        )
        for leaf in jax.tree.leaves(state):
            assert isinstance(leaf, kind), name
            assert leaf.dtype == dtype, name
        assert state.compute() == whole.compute()


def test_host_counts_pass_int32():
    limit = np.iinfo(np.int32).max
    counts = jnp.array([limit, 0], jnp.int32)
    zero = jnp.int32(0)
    batch = MeanIoU(counts, counts, counts, jnp.int32(limit), zero, zero)
    total = MeanIoU.empty(2)
    for _ in range(3):
        total = total.merge(batch)
    assert total.labelled[0] == total.wrong_unselected == 3 * limit
    assert total.per_class_iou()[0] == 1.0


def test_to_host_copies_and_repeats():
    host = from_maps(*make_maps(3, (1, 4, 4), 3), 3).to_host()
    again = host.to_host()
    again.labelled[:] = 0
    assert host.labelled.sum() > 0


def test_merge_refuses_other_sizes():
    with pytest.raises(ValueError, match="Cannot merge two MeanIoU of different sizes"):
        MeanIoU.empty(1).merge(MeanIoU.empty(4))


def test_ten_thousand_classes_have_no_square():
    shapes = jax.eval_shape(
        lambda *maps: MeanIoU.from_maps(*maps, 10_000),
        *make_maps(4, (1, 16, 16), 10_000),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 30_003


def test_reduce_of_clu_sums_over_a_leading_axis():
    states = [from_maps(*make_maps(seed, (1, 3, 4), 5), 5) for seed in (5, 6)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    assert_same_counts(stacked.reduce(), states[0].merge(states[1]))
