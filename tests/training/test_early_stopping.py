"""The rule by which training ends before its last step."""

from mlseg_jax.training.early_stopping import has_converged


def slow_rule(latest, average, patience):
    """The release's bookkeeping, one evaluation after the other; where it stops."""
    best = best_latest = best_average = 0.0
    best_at = best_latest_at = -1
    for i, (one, other) in enumerate(zip(latest, average, strict=True)):
        if one > best_latest:
            best_latest, best_latest_at = one, i
        best_average = max(best_average, other)
        if max(one, other) > best:
            best, best_at = max(one, other), i
        if i - max(best_at, best_latest_at) > patience and other < best_average:
            return i
    return None


def fast_rule(latest, average, patience):
    scores = {}
    for i, (one, other) in enumerate(zip(latest, average, strict=True)):
        scores[10 * i] = {"average": other, "latest": one}
        if has_converged(scores, patience):
            return i
    return None


def test_the_rule_is_the_release_s():
    rises = [0.1, 0.2, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    later = [0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.45, 0.4, 0.4, 0.4]
    flat = [0.5] * 10
    for latest in (rises, later, flat):
        for average in (rises, later, flat):
            for patience in (1, 2, 3):
                expected = slow_rule(latest, average, patience)
                assert fast_rule(latest, average, patience) == expected
    assert fast_rule(rises, rises, 2) == 5
    assert fast_rule(rises, later, 2) == 8  # the average still rose at 5


def test_without_averages_the_scores_alone_count():
    flat = {step: {"latest": 0.5} for step in range(3)}
    assert not has_converged(flat, 2)
    assert has_converged(flat | {3: {"latest": 0.5}}, 2)
    assert not has_converged(flat | {3: {"latest": 0.6}}, 2)


def test_without_patience_or_evaluations():
    assert not has_converged({}, 3)
    worse = {step: {"latest": 1.0 - step} for step in range(9)}
    assert not has_converged(worse, 0)
    assert has_converged(worse, 3)
