"""Class-wise and label-ranking average precision against loops over the definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.metrics import average_precision
from mlseg_jax.metrics.average_precision import LabelScores

SCORES = np.array([[2, -1, 0, -6], [0.5, 3, -2, -0.1]], np.float32)
PRESENCE = np.array([[1, 0, 0, 0], [0, 1, 1, 0]], bool)


def make_labels(seed, num_examples, num_classes, rate=0.2, levels=None):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_examples, num_classes)).astype(np.float32)
    if levels is not None:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), rng.random((num_examples, num_classes)) < rate


def make_state(scores, presence, sizes=None):
    state = LabelScores.empty(scores.shape[1])
    bounds = np.cumsum([0, *(sizes or [len(scores)])])
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        batch = scores[start:stop], presence[start:stop], np.ones(stop - start, bool)
        state = state.merge(LabelScores.from_batch(*batch))
    return state


def loop_voc(scores, present):
    """Textbook VOC: interpolate the precision at each recall, sum the rectangles."""
    if not present.any():
        return np.nan
    # Python's sort keeps the order of equal scores: earlier examples first.
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    recalls, precisions, found = [], [], 0
    for rank, n in enumerate(order, start=1):
        found += bool(present[n])
        recalls.append(found / present.sum())
        precisions.append(found / rank)
    area, last_recall = 0.0, 0.0
    for i, recall in enumerate(recalls):
        area += (recall - last_recall) * max(precisions[i:])
        last_recall = recall
    return area


def loop_ranking(scores, presence):
    values = []
    for row, present in zip(scores, presence, strict=True):
        order = sorted(range(len(row)), key=lambda c: -row[c])
        ranks = [rank for rank, c in enumerate(order, start=1) if present[c]]
        if ranks:
            parts = [i / rank for i, rank in enumerate(ranks, start=1)]
            values.append(sum(parts) / len(parts))
    return sum(values) / len(values) if values else np.nan


def test_vectors_of_the_reference():
    """reference/method.md section 14.6."""
    state = make_state(SCORES, PRESENCE)
    per_class = state.per_class_average_precision()
    np.testing.assert_allclose(per_class, [1.0, 1.0, 0.5, np.nan])
    scores = state.compute()
    assert scores["mAP"] == pytest.approx(2.5 / 3)
    assert scores["label_ranking_AP"] == pytest.approx(0.875)
    for row, expected in ((slice(0, 1), 1.0), (slice(1, 2), 0.75)):
        one = make_state(SCORES[row], PRESENCE[row])
        assert one.compute()["label_ranking_AP"] == pytest.approx(expected)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize(
    ("num_examples", "num_classes", "sizes"),
    [(1, 5, None), (3, 1, [1, 2]), (37, 13, [5, 16, 0, 16]), (20, 131, [1] * 20)],
)
def test_equal_to_the_loops(num_examples, num_classes, sizes, levels):
    """Odd sizes, class blocks that end inside a byte, and ties (``levels``)."""
    scores, presence = make_labels(0, num_examples, num_classes, 0.4, levels)
    presence[0, 0] = True
    state = make_state(scores, presence, sizes)
    expected = [loop_voc(scores[:, c], presence[:, c]) for c in range(num_classes)]
    per_class = state.per_class_average_precision()
    assert per_class.dtype == np.float64
    np.testing.assert_allclose(per_class, expected, atol=1e-12)
    known = [x for x in expected if not np.isnan(x)]
    scores_out = state.compute()
    assert scores_out["mAP"] == pytest.approx(sum(known) / len(known))
    ranking = loop_ranking(scores, presence)
    assert scores_out["label_ranking_AP"] == pytest.approx(ranking, nan_ok=True)


def test_examples_beyond_one_block():
    size = 2 * average_precision.EXAMPLES_PER_BLOCK + 3
    scores, presence = make_labels(1, size, 5)
    value = make_state(scores, presence).label_ranking_average_precision()
    assert value == pytest.approx(loop_ranking(scores, presence))
    assert average_precision.CLASSES_PER_BLOCK % 8 == 0


def test_ties_follow_the_order_of_examples_and_classes():
    flat = np.zeros((2, 2), np.float32)
    first = np.array([[1, 0], [0, 0]], bool)
    last = np.array([[0, 0], [0, 1]], bool)
    state = make_state(flat, first).compute()
    assert state == {"mAP": 1.0, "label_ranking_AP": 1.0}
    state = make_state(flat, last).compute()
    assert state == {"mAP": 0.5, "label_ranking_AP": 0.5}


def test_merge_equals_all_at_once():
    scores, presence = make_labels(2, 21, 9, levels=2)
    whole = make_state(scores, presence).compute()
    assert make_state(scores, presence, [4, 1, 16]).compute() == whole
    left = make_state(scores[:5], presence[:5])
    middle = make_state(scores[5:9], presence[5:9])
    right = make_state(scores[9:], presence[9:])
    assert left.merge(middle.merge(right)).compute() == whole
    assert left.to_host().merge(middle).merge(right).compute() == whole


def test_device_arrays_and_padding():
    scores, presence = make_labels(3, 6, 11)
    keep = np.array([1, 1, 0, 1, 0, 0], bool)
    padded = np.where(keep[:, None], scores, np.nan)  # padding may hold anything
    state = LabelScores.from_batch(
        jnp.asarray(padded), jnp.asarray(presence), jnp.asarray(keep)
    )
    assert state.compute() == make_state(scores[keep], presence[keep]).compute()
    assert state.scores[0].shape == (3, 11)
    assert state.presence[0].nbytes == 3 * 2


def test_bfloat16_and_infinite_scores():
    scores = jnp.array([[-jnp.inf, 1.0], [jnp.inf, 0.5]], jnp.bfloat16)
    presence = np.array([[0, 1], [1, 1]], bool)
    state = LabelScores.from_batch(scores, presence, np.ones(2, bool))
    assert state.scores[0].dtype == np.float32
    assert state.compute() == {"mAP": 1.0, "label_ranking_AP": 1.0}


@pytest.mark.parametrize("num_examples", [0, 4])
def test_no_positives(num_examples):
    scores, presence = make_labels(4, num_examples, 3, rate=-1.0)
    state = make_state(scores, presence)
    assert np.isnan(list(state.compute().values())).all()
    per_class = state.per_class_average_precision()
    assert per_class.shape == (3,) and np.isnan(per_class).all()


def test_images_without_a_class_are_left_out_of_the_ranking():
    scores = np.concatenate([SCORES, SCORES[:1]])
    presence = np.concatenate([PRESENCE, np.zeros((1, 4), bool)])
    value = make_state(scores, presence).label_ranking_average_precision()
    assert value == pytest.approx(0.875)


def test_nan_and_other_classes_are_refused():
    with pytest.raises(ValueError, match="score is NaN"):
        make_state(np.full((1, 2), np.nan, np.float32), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="3 and 4 classes"):
        LabelScores.empty(3).merge(LabelScores.empty(4))
