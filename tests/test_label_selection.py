"""Selection algebra against slow NumPy versions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import (
    SELECTIONS,
    Selection,
    SelectionPolicy,
    add_noise,
    gather_classes,
    labels_to_ranks,
    rank_of_class,
    ranks_to_labels,
    select_complete,
    select_oracle,
    select_top_k,
    select_with_present,
)
from mlseg_jax.typing import IGNORE

C = 9


def random_scores(batch, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, C)), jnp.float32)


def random_labels(batch, seed=0, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(-1, C, (batch, *shape)), jnp.int32)


def is_valid(selection):
    if selection.valid is None:
        return np.ones(selection.class_ids.shape, bool)
    return np.asarray(selection.valid)


def slow_ranks(labels, selection):
    labels, valid = np.asarray(labels), is_valid(selection)
    ranks = np.full(labels.shape, IGNORE)
    for b in range(len(labels)):
        for rank, class_id in enumerate(np.asarray(selection.class_ids[b])):
            if valid[b, rank]:
                ranks[b][labels[b] == class_id] = rank
    return ranks


def selections(batch):
    scores = random_scores(batch)
    histogram = jnp.asarray(
        np.random.default_rng(1).integers(0, 3, (batch, C)), jnp.int32
    )
    permuted = jnp.stack(
        [jax.random.permutation(jax.random.key(b), C) for b in range(batch)]
    )
    return {
        "complete": select_complete(scores),
        "top_k": select_top_k(scores, 4),
        "top_k=C": select_top_k(scores, C),
        "top_k, few valid": select_top_k(scores, 6, minimum_score=0.5),
        "oracle": select_oracle(histogram, 6),
        "given": Selection(permuted[:, :5], None, C),
    }


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", selections(1))
def test_labels_to_ranks_and_back(batch, name):
    selection = selections(batch)[name]
    labels = random_labels(batch)
    ranks = labels_to_ranks(labels, selection)
    np.testing.assert_array_equal(ranks, slow_ranks(labels, selection))
    back = ranks_to_labels(jnp.maximum(ranks, 0), selection)
    kept = np.asarray(ranks) != IGNORE
    np.testing.assert_array_equal(np.asarray(back)[kept], np.asarray(labels)[kept])
    # What was dropped had no class or was not selected.
    table = np.asarray(rank_of_class(selection))
    for b, label in zip(*np.nonzero(table != IGNORE), strict=True):
        assert np.all(kept[b][np.asarray(labels)[b] == label])
        assert selection.class_ids[b, table[b, label]] == label
    assert np.sum(table != IGNORE) == np.sum(is_valid(selection))


def test_gather_takes_each_examples_own_rows():
    selection = selections(3)["top_k"]
    queries = jnp.asarray(np.random.default_rng(2).normal(size=(3, C, 2)), jnp.float32)
    rows = gather_classes(queries, selection)
    for b in range(3):
        np.testing.assert_array_equal(rows[b], queries[b][selection.class_ids[b]])


def test_top_k_order_and_ties():
    scores = jnp.asarray([[1.0, 3.0, 3.0, 0.0, 3.0, 2.0, 1.0, -1.0, -5.0]])
    np.testing.assert_array_equal(
        select_top_k(scores, 6).class_ids, [[1, 2, 4, 5, 0, 6]]
    )
    for batch in (1, 3):
        scores = random_scores(batch, 3)
        expected = np.argsort(-np.asarray(scores), axis=1, kind="stable")
        for k in (1, 4, C, C + 5):
            selection = select_top_k(scores, k)
            assert selection.num_ranks == min(k, C)
            assert selection.valid is None
            np.testing.assert_array_equal(selection.class_ids, expected[:, :k])


def test_k_equal_to_c_is_a_permutation_of_the_complete_selection():
    scores = random_scores(3)
    np.testing.assert_array_equal(
        np.sort(select_top_k(scores, C).class_ids, axis=1),
        select_complete(scores).class_ids,
    )


def slow_validity(scores, k, minimum_score, cumulative):
    probabilities = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    valid = np.zeros((len(scores), k), bool)
    for b, row in enumerate(probabilities):
        held = 0.0
        for rank, p in enumerate(sorted(row, reverse=True)[:k]):
            enough = held >= cumulative * row.sum() and cumulative < 1.0
            valid[b, rank] = rank == 0 or (p >= minimum_score and not enough)
            held += p
    return valid


@pytest.mark.parametrize(
    "minimum_score, cumulative", [(0.5, 1.0), (0.0, 0.6), (0.4, 0.7), (1.1, 1.0)]
)
def test_fewer_than_k_may_be_valid(minimum_score, cumulative):
    scores = random_scores(3, 5)
    selection = select_top_k(
        scores, 6, minimum_score=minimum_score, cumulative=cumulative
    )
    expected = slow_validity(scores, 6, minimum_score, cumulative)
    np.testing.assert_array_equal(selection.valid, expected)
    assert np.all(selection.valid[:, 0])
    np.testing.assert_array_equal(
        selection.class_ids, select_top_k(scores, 6).class_ids
    )


def test_excluded_scores_are_invalid_with_a_minimum_score():
    scores = jnp.full((1, C), -jnp.inf).at[0, 3].set(0.0)
    selection = select_top_k(scores, 3, minimum_score=0.01)
    np.testing.assert_array_equal(selection.class_ids[0, 0], 3)
    np.testing.assert_array_equal(selection.valid, [[True, False, False]])


def test_oracle():
    histogram = np.zeros((4, C), np.int32)
    histogram[0, [7, 2, 4]] = 5, 1, 9
    histogram[1] = np.arange(C) + 1  # more than k: the largest stay, in class order
    histogram[3, 8] = 1
    selection = select_oracle(jnp.asarray(histogram), 4)
    ids, valid = np.asarray(selection.class_ids), np.asarray(selection.valid)
    np.testing.assert_array_equal(valid.sum(axis=1), [3, 4, 1, 1])
    np.testing.assert_array_equal(ids[0, :3], [2, 4, 7])
    np.testing.assert_array_equal(ids[1], [5, 6, 7, 8])
    assert ids[2, 0] == 0  # nothing labelled: class 0, as in the release
    assert ids[3, 0] == 8
    for row, ok in zip(ids, valid, strict=True):
        assert np.all(ok[: ok.sum()])  # valid ranks stand first
        assert len(set(row)) == 4
    assert select_oracle(jnp.asarray(histogram), 100).num_ranks == C


def test_sorting_a_selection_by_score():
    class_ids = jnp.asarray([[1, 4, 6], [0, 2, 3]])
    valid = jnp.asarray([[True, True, False], [True, True, True]])
    scores = jnp.zeros((2, C)).at[0, 4].set(1.0).at[0, 6].set(9.0).at[1, 3].set(2.0)
    policy = SelectionPolicy("given", 3, by_score=True)
    given = Selection(class_ids, valid, C)
    selection = policy.select(given=given)(scores)
    np.testing.assert_array_equal(selection.class_ids, [[4, 1, 6], [3, 0, 2]])
    np.testing.assert_array_equal(selection.valid, valid)
    every = policy.select(given=Selection(class_ids, None, C))(scores)
    np.testing.assert_array_equal(every.class_ids, [[6, 4, 1], [3, 0, 2]])
    assert every.valid is None


def test_nothing_of_the_image_selected():
    selection = Selection(jnp.asarray([[8, 7]]), None, C)
    labels = jnp.asarray([[[0, 1, IGNORE], [2, 3, 4]]])
    np.testing.assert_array_equal(labels_to_ranks(labels, selection), IGNORE)


def test_invalid_ranks_get_no_pixels():
    valid = jnp.asarray([[True, False]])
    selection = Selection(jnp.asarray([[8, 7]]), valid, C)
    labels = jnp.asarray([[[8, 7, 0, IGNORE]]])
    np.testing.assert_array_equal(
        labels_to_ranks(labels, selection), [[[0, IGNORE, IGNORE, IGNORE]]]
    )


def test_no_gradient_passes_through_a_selection():
    queries = jnp.ones((2, C, 3))

    def loss(scores):
        selection = select_top_k(scores, 4, minimum_score=0.2)
        weights = jnp.where(selection.valid, 1.0, 0.0)[..., None]
        return jnp.sum(gather_classes(queries, selection) * weights)

    np.testing.assert_array_equal(jax.grad(loss)(random_scores(2)), 0.0)


def test_selections_pass_through_jit():
    selection = jax.jit(lambda s: select_top_k(s, 3))(random_scores(2))
    assert isinstance(selection, Selection)
    assert (selection.num_classes, selection.valid) == (C, None)
    assert isinstance(jax.device_get(selection).class_ids, np.ndarray)


def test_policies():
    scores = random_scores(2)
    given = select_top_k(scores, 2)
    histogram = jnp.ones((2, C), jnp.int32)
    for name in SELECTIONS:
        policy = SelectionPolicy(name, 3)
        assert hash(policy) == hash(SelectionPolicy(name, 3))
        selection = policy.select(histogram=histogram, given=given)(scores)
        width = {"complete": C, "given": 2}.get(name, 3)
        assert selection.class_ids.shape == (2, width)
    thresholds = SelectionPolicy("top_k", 3, minimum_score=0.5, cumulative=0.9)
    assert thresholds.select()(scores).valid is not None


def test_policy_errors():
    with pytest.raises(UserError, match="true label map"):
        SelectionPolicy("oracle", 3).select()
    with pytest.raises(UserError, match="labels to select"):
        SelectionPolicy("given", 3).select()


# ------------------------------------------------------------- the truth in training


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("k", [1, 4, C, C + 5])
def test_present_labels_are_always_selected_in_the_order_of_scores(batch, k):
    scores = random_scores(batch, seed=3)
    present = np.random.default_rng(4).random((batch, C)) < 0.3
    present[-1] = batch > 1  # all of them; none at all
    selection = select_with_present(scores, jnp.asarray(present), k)
    assert selection.class_ids.shape == (batch, min(k, C)) and selection.valid is None
    for b in range(batch):
        order = np.argsort(-np.asarray(scores[b]))
        wanted = [c for c in order if present[b, c]] + [
            c for c in order if not present[b, c]
        ]
        wanted = sorted(wanted[:k], key=list(order).index)
        np.testing.assert_array_equal(selection.class_ids[b], wanted)


def test_missed_labels_at_random_ranks():
    """Each rank as often as any other; all else as without, valid or not."""
    scores, present = random_scores(400, seed=3), np.zeros((400, C), bool)
    present[:, 2] = True
    plain = select_with_present(scores, jnp.asarray(present), 4)
    found = select_with_present(
        scores, jnp.asarray(present), 4, rng=jax.random.key(0)
    ).class_ids
    missed = ~np.any(select_top_k(scores, 4).class_ids == 2, axis=1)
    np.testing.assert_array_equal(found[~missed], plain.class_ids[~missed])
    assert np.all(plain.class_ids[missed, 3] == 2) and missed.sum() > 200
    counts = np.sum(found[missed] == 2, axis=0)
    assert counts.sum() == missed.sum() and counts.min() > missed.sum() / 8
    for ours, theirs in zip(found[missed], plain.class_ids[missed], strict=True):
        np.testing.assert_array_equal(ours[ours != 2], theirs[:3])
    few = {"minimum_score": 0.6, "rng": jax.random.key(1)}
    few = select_with_present(scores, jnp.asarray(present), 4, **few)
    assert np.all(few.valid == np.sort(few.valid)[:, ::-1])
    assert np.all(np.any((few.class_ids == 2) & few.valid, axis=1))
    assert np.any(few.valid.sum(1) < 4)


def test_without_truth_it_is_top_k():
    scores = random_scores(3)
    nothing = select_with_present(scores, jnp.zeros((3, C), bool), 4)
    np.testing.assert_array_equal(nothing.class_ids, select_top_k(scores, 4).class_ids)


def test_thresholds_hold_for_labels_that_are_not_present():
    scores = jnp.asarray([[3.0, 2.0, -1.0, -4.0, 1.0]])
    present = jnp.asarray([[False, False, False, True, False]])
    found = SelectionPolicy("top_k", 4, minimum_score=0.8, with_present=True).select(
        histogram=present.astype(jnp.int32)
    )(scores)
    # By score 0.95, 0.88 and 0.73, which is too low; and the one that is present.
    ranks = np.asarray(rank_of_class(found))[0].tolist()
    assert ranks == [0, 1, IGNORE, 2, IGNORE] and found.num_ranks == 4


def test_policies_of_training():
    scores = random_scores(3)
    histogram = jnp.zeros((3, C), jnp.int32).at[:, 5].set(7)
    plain = SelectionPolicy("top_k", 3)
    policy = SelectionPolicy("top_k", 3, with_present=True)
    selection = policy.select(histogram=histogram)(scores)
    assert np.all(np.any(selection.class_ids == 5, axis=1))
    with pytest.raises(UserError, match="the true label map"):
        policy.select()(scores)
    noisy, rng = SelectionPolicy("top_k", 3, noise=2.0), jax.random.key(0)
    quiet = noisy.select()(scores)
    np.testing.assert_array_equal(quiet.class_ids, plain.select()(scores).class_ids)
    rank_rng, noise_rng = jax.random.split(rng)
    disturbed = add_noise(scores, 2.0, noise_rng)
    expected = select_top_k(disturbed, 3).class_ids
    found = noisy.select(rng=rng)(scores).class_ids
    np.testing.assert_array_equal(found, expected)
    assert np.any(found != quiet.class_ids)
    # Ranks and noise are drawn apart.
    both = dataclasses.replace(noisy, with_present=True, scatter_present=True)
    found = both.select(histogram=histogram, rng=rng)(scores)
    expected = select_with_present(disturbed, histogram > 0, 3, rng=rank_rng)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)


def test_noise_has_its_deviation_and_no_gradient():
    scores = jnp.zeros((64, 64))
    noise = add_noise(scores, 0.5, jax.random.key(1))
    assert abs(float(jnp.std(noise)) - 0.5) < 0.02 and abs(float(noise.mean())) < 0.02
    total = lambda x: jnp.sum(add_noise(x, 0.5, jax.random.key(1)))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(scores), 0.0)
