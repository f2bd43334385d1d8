"""Settings that follow from the data, said as numbers once the classes are known."""

import logging

import ml_collections

logger = logging.getLogger(__name__)

AUTO = "auto"

LABEL_WEIGHT_PER_CLASS = 0.07
"""The multi-label loss is a mean over all C labels, of which a picture has a handful
whatever C: so that these count alike, its weight grows with C. The paper's weights do
so too (5 for 60 labels, 10 for 150 and 171, 100 for 847, 300 for 1,284).
"""


def resolve(
    config: ml_collections.ConfigDict, num_classes: int
) -> ml_collections.ConfigDict:
    """A copy in which nothing is ``auto`` and numbers given as text are numbers."""
    weight = config.loss.multilabel_weight
    resolved = config.copy_and_resolve_references()
    if weight == AUTO:
        weight = round(LABEL_WEIGHT_PER_CLASS * num_classes, 4)
        logger.info(
            "loss.multilabel_weight=auto is %g for %d classes", weight, num_classes
        )
    with resolved.ignore_type():
        resolved.loss.multilabel_weight = float(weight)
    return resolved
