"""Which selection is advised for which data."""

import numpy as np
import pytest

from configs import segmenter
from mlseg_jax.settings.advice import selection_advice


@pytest.mark.parametrize(
    "num_classes, num_labels, said",
    [
        # CamVid, two classes, and one: nothing to leave out.
        (11, np.full(50, 8), "selection.name=complete"),
        (2, np.array([1, 2]), "selection.name=complete"),
        (1, np.array([1]), "selection.name=complete"),
        # Twice what 99 % of the pictures hold; the rarest sizes do not count.
        (150, np.array([25] * 9_990 + [60] * 10), "selection.k=50 and loss.mul"),
        (1284, np.full(9, 50), "selection.k=100 and loss.multilabel_weight=89.88"),
        (40, np.full(9, 19), "selection.k=38 and loss.multilabel_weight=2.8"),
        (40, np.full(9, 20), "selection.name=complete"),
        # Pictures of which everything is ignored.
        (40, np.zeros(3, int), "selection.k=1 and"),
    ],
)
def test_selection_and_k(num_classes, num_labels, said):
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    advice = selection_advice(config, num_classes, num_labels)
    assert said in advice and advice.endswith("(set: top_k, K = 50, auto).")
    assert (
        f"of {num_classes} classes on average and {num_labels.max()} at most" in advice
    )
