"""Which selection fits the data: said by `doctor`, and by `train` before its loop."""

from typing import NamedTuple

import ml_collections
import numpy as np

from mlseg_jax.settings.resolve import LABEL_WEIGHT_PER_CLASS
from mlseg_jax.typing import Int

NEARLY_ALL = 0.5
"""Share of the classes that pictures hold on average from which a selection has little
to leave out: on CamVid, whose pictures hold nearly all 11, it cost points.
"""

SPARE = 2
"""K over the labels that 99 % of the pictures do not exceed. The paper's values follow
it: 25 of 60 labels, 50 of 150 and 171, 100 of 1,284 (method.md section 1).
"""


def is_advised(config: ml_collections.ConfigDict) -> bool:
    """Whether there is something to choose; classifiers of labels select nothing."""
    by_scores = config.selection.name in ("complete", "top_k")
    return by_scores and config.task != "multilabel"


class FittingSelection(NamedTuple):
    """What to select by: ``top_k`` with ``k`` labels and a weight of their loss, or
    ``complete``, whose weight is 0.
    """

    name: str
    k: int
    weight: float


def fitting_selection(
    num_classes: int, num_labels: Int[np.ndarray, "n"]
) -> FittingSelection:
    """The selection for C classes, where n pictures hold ``num_labels`` of them."""
    k = SPARE * int(np.ceil(np.quantile(num_labels, 0.99)))
    if num_labels.mean() >= NEARLY_ALL * num_classes or k >= num_classes:
        return FittingSelection("complete", num_classes, 0.0)
    weight = round(LABEL_WEIGHT_PER_CLASS * num_classes, 2)
    return FittingSelection("top_k", max(k, 1), weight)


def selection_advice(
    config: ml_collections.ConfigDict,
    num_classes: int,
    num_labels: Int[np.ndarray, "n"],
    is_chosen: bool = False,
) -> str:
    """One sentence: the selection, K and weight of the label loss to take.

    Args:
      config: of the run, for what is set now.
      num_classes: C.
      num_labels: how many classes each picture looked at holds; not empty.
      is_chosen: whether ``train`` takes what fits, whatever is set now.
    """
    fitting = fitting_selection(num_classes, num_labels)
    held = (
        f"pictures hold {num_labels.mean():.1f} of {num_classes} classes on average "
        f"and {num_labels.max()} at most"
    )
    if fitting.name == "complete":
        advice = "selection.name=complete, for a selection has little to leave out"
    else:
        advice = (
            f"selection.name=top_k, selection.k={fitting.k} and "
            f"loss.multilabel_weight={fitting.weight:g}"
        )
    if is_chosen:
        return f"{held}; train will choose {advice}."
    now = config.selection.name
    if now == "top_k":
        now += f", K = {config.selection.k}, {config.loss.multilabel_weight}"
    return f"{held}; {advice}, would fit (set: {now})."
