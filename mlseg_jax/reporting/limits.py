"""What limits a run's result, and the one change that is most worth trying.

Each limit has an estimate of what it costs, in mIoU; the dearest comes first. Estimates
are rough: a class that is behind is counted as if it could become an average one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mlseg_jax.reporting.charts import is_finite

FEW_PICTURES = 20
"""Training pictures with a class, below which more of them are worth labelling."""

SMALL = 0.01
"""Share of the pixels, below which a class is lost in coarse features."""

BEHIND = 0.5
"""A class is behind with less than this share of the mean IoU."""

LOST = 0.2
"""Of the wrong pixels, share with a label that was not selected, from which on K is too
small.
"""

FEW_EPOCHS = 10
"""Of the training pictures, below which a training is short whatever it scores."""

SHARE_DONE = 0.95
"""Of the planned steps, below which the learning rate was not down at the end."""

WON = 0.2
"""Of what is wrong, share that enough steps in place of none might mend: a guess."""

MORE_TIME = "give it more time: twice the --minutes, and another --workdir."

GAIN, LOSS = 0.01, 0.02
"""mIoU between evaluations that counts as still rising, as falling since the best."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """One thing that limits the result.

    Attributes:
      cost: in mIoU, 0 to 1, roughly.
      text: what is so, a sentence.
      change: what to try, a sentence.
    """

    cost: float
    text: str
    change: str


def find_limits(
    metrics: Mapping,
    classes: Sequence[Mapping],
    config: Mapping,
    validation: Sequence[tuple[int, float]],
    looked_at: Mapping,
    steps: int | None = None,
) -> list[Limit]:
    """All limits that can be seen, the dearest first; none without a mean IoU, as of
    tasks that have none and of a split without a judged pixel.

    Args:
      metrics: of ``metrics.json``.
      classes: of ``evaluation.json``: ``name``, ``iou``, ``pixel_share``.
      config: of the run, flat, by dotted key.
      validation: step and mIoU of the evaluations during training.
      looked_at: ``pictures``, how many training pictures were looked at when settings
        were chosen, and ``class_pictures``, how many of them hold each class, by name;
        empty where nobody has.
      steps: that were done; None where it is not known, or early stopping ended them.
    """
    if not is_finite(metrics.get("mIoU")):
        return []
    found = [
        *_selection(metrics, config),
        *_classes(metrics, classes, looked_at),
        *(
            list(_training(validation, config))
            or _steps(metrics, config, steps, looked_at)
        ),
    ]
    if not config.get("init"):
        found.append(
            Limit(
                0.0,
                "Training began from random weights.",
                "start from weights that have seen other pictures: "
                "--config.init=dinov2_vits14 (docs/own_data.md).",
            )
        )
    return sorted(found, key=lambda limit: -limit.cost)


def _selection(metrics: Mapping, config: Mapping) -> Iterator[Limit]:
    lost, oracle = metrics.get("wrong_not_selected"), metrics.get("oracle_mIoU")
    if not is_finite(lost) or lost < LOST or config.get("selection.name") != "top_k":
        return
    gap = oracle - metrics["mIoU"] if is_finite(oracle) else 0.0
    # That of this evaluation, which may be another than the training's.
    k = metrics.get("k") or config.get("selection.k", 1)
    yield Limit(
        lost * max(gap, 0.0),
        f"{lost:.0%} of the wrong pixels have a label that was not selected (K = {k}).",
        f"evaluate --config.selection.eval_k={2 * k}, which costs no training; if that "
        f"helps, train with it.",
    )


def _classes(
    metrics: Mapping, classes: Sequence[Mapping], looked_at: Mapping
) -> Iterator[Limit]:
    """Classes far behind the others: too rare in training, or too small."""
    mean = metrics["mIoU"]
    scored = [c for c in classes if is_finite(c.get("iou"))]
    if not scored:
        return
    behind = [c for c in scored if c["iou"] < BEHIND * mean]
    known = looked_at.get("class_pictures", {})
    share = looked_at.get("of", 0) / max(looked_at.get("pictures", 0), 1)
    counted = [c for c in behind if c["name"] in known]
    rare = [c for c in counted if share * known[c["name"]] < FEW_PICTURES]
    small = [c for c in behind if c not in rare and (c["pixel_share"] or 0) < SMALL]

    def cost(chosen) -> float:
        return sum(mean - c["iou"] for c in chosen) / len(scored)

    if rare:
        counts = {c["name"]: round(share * known[c["name"]]) for c in rare}
        fewest = min(counts, key=counts.get)
        yield Limit(
            cost(rare),
            f"{_names(rare)} {_are(rare)} in too few training pictures ({fewest}: "
            f"about {counts[fewest]}).",
            f"label more pictures with {_names(rare)}, {FEW_PICTURES} or more of each.",
        )
    if small:
        yield Limit(
            cost(small),
            f"{_names(small)} {_are(small)} small, and hardly found.",
            "show classes of few pixels more weight, with "
            "--config.loss.class_weighting=inverse_sqrt, or see more of them: "
            "--config.data.rare_crop_rate=0.5.",
        )


def _training(
    validation: Sequence[tuple[int, float]], config: Mapping
) -> Iterator[Limit]:
    if len(validation) < 2:
        return
    (_, before), (last, score) = validation[-2:]
    best, top = max(validation, key=lambda point: point[1])
    if best == last and score - before >= GAIN:
        yield Limit(
            score - before,
            f"It was still getting better when it ended ({100 * before:.1f} to "
            f"{100 * score:.1f} % mIoU between the last evaluations).",
            MORE_TIME,
        )
    if top - score >= LOSS:
        kept = config.get("eval.checkpoint") == "best"
        yield Limit(
            top - score,
            f"It was best at step {best}{', which is kept,' if kept else ''} and then "
            f"got worse, from {100 * top:.1f} to {100 * score:.1f} %: it learns its "
            f"pictures by heart.",
            "label more pictures."
            if kept
            else "label more pictures, or keep the best checkpoint with "
            "--config.eval.checkpoint=best.",
        )


def _steps(
    metrics: Mapping, config: Mapping, done: int | None, looked_at: Mapping
) -> Iterator[Limit]:
    """Steps that were planned and not done, or pictures that were seen too seldom."""
    planned, wrong = config.get("train.steps", 0), 1 - metrics["mIoU"]
    if done is None or not planned:
        return
    if done == 0:
        yield Limit(
            WON * wrong,
            "Nothing was trained: the time was over before the first step.",
            MORE_TIME,
        )
        return
    pictures = looked_at.get("of", 0)
    epochs = done * config.get("train.batch_size", 1) / max(pictures, 1)
    if done < SHARE_DONE * planned:
        yield Limit(
            WON * wrong * (1 - done / planned),
            f"{done:,} of {planned:,} steps were done when it ended, with the learning "
            f"rate not yet down.",
            MORE_TIME,
        )
    elif pictures and epochs < FEW_EPOCHS:
        yield Limit(
            WON * wrong * (1 - epochs / FEW_EPOCHS),
            f"It has seen each training picture about {epochs:.1f} times.",
            MORE_TIME,
        )


def _names(classes: Sequence[Mapping], most: int = 4) -> str:
    names = [str(c["name"]) for c in classes]
    more = [f"{len(names) - most} others"] if len(names) > most else []
    *first, last = names[:most] + more
    return f"{', '.join(first)} and {last}" if first else last


def _are(classes: Sequence) -> str:
    return "are" if len(classes) > 1 else "is"
