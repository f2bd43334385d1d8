"""How far from PyTorch we may be, when both run."""

import numpy as np

BLOCK_LIMIT, WHOLE_LIMIT = 1e-5, 1e-4


def difference(ours, theirs) -> float:
    """Largest, relative to the largest of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / (np.max(np.abs(theirs)) + 1e-9))
