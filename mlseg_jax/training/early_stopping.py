"""When training has stopped to help: Query2Label's rule (method.md section 8.2)."""

from collections.abc import Mapping


def has_converged(scores: Mapping[int, Mapping[str, float]], patience: int) -> bool:
    """Whether the last evaluations make it pointless to go on.

    More than ``patience`` evaluations have passed since the best one, whichever weights
    it was of, and since the best one of the weights of the last step; and averaged
    weights, where there are any, are worse than they once were. Of equals the first
    counts.

    Args:
      scores: step -> weights (``average``, ``latest``) -> score, of all evaluations.
      patience: 0 is endless.
    """
    evaluations = [scores[step] for step in sorted(scores) if scores[step]]
    if not evaluations or patience <= 0:
        return False
    overall = [max(weights.values()) for weights in evaluations]
    latest = [weights.get("latest", max(weights.values())) for weights in evaluations]
    average = [weights["average"] for weights in evaluations if "average" in weights]
    best = max(overall.index(max(overall)), latest.index(max(latest)))
    may_rise = bool(average) and average[-1] == max(average)
    return len(evaluations) - 1 - best > patience and not may_rise
