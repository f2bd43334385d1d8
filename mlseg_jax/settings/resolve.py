"""Settings that follow from the data or from where one is, said once and for all."""

import os
from collections.abc import Iterator

import ml_collections

from mlseg_jax.settings.weights import PUBLISHED

AUTO = "auto"

LABEL_WEIGHT_PER_CLASS = 0.07
"""The multi-label loss is a mean over all C labels, of which a picture has a handful
whatever C: so that these count alike, its weight grows with C. The paper's weights do
so too (5 for 60 labels, 10 for 150 and 171, 100 for 847, 300 for 1,284).
"""


PATHS = (
    *("init", "data.path", "data.classes"),
    *("selection.classifier", "selection.scores"),
)
"""Keys that name files, perhaps from the current directory."""


def resolve(
    config: ml_collections.ConfigDict, num_classes: int
) -> ml_collections.ConfigDict:
    """A copy that means the same everywhere: nothing in it is ``auto``, numbers given
    as text are numbers, paths are absolute (names of weights are none).
    """
    weight = config.loss.multilabel_weight
    resolved = config.copy_and_resolve_references()
    if weight == AUTO:
        weight = round(LABEL_WEIGHT_PER_CLASS * num_classes, 4)
    with resolved.ignore_type():
        resolved.loss.multilabel_weight = float(weight)
    for part, name in _paths(resolved):
        if part[name] not in PUBLISHED or os.path.exists(part[name]):
            part[name] = absolute(part[name])
    return resolved


def expand_home(config: ml_collections.ConfigDict) -> None:
    """Writes out the ``~`` of paths, in place: shells leave it alone behind
    ``--config.init=``.
    """
    for part, name in _paths(config):
        part[name] = os.path.expanduser(part[name])


def _paths(
    config: ml_collections.ConfigDict,
) -> Iterator[tuple[ml_collections.ConfigDict, str]]:
    """The sections and names of `PATHS`."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        yield config[section] if section else config, name


def absolute(path: str) -> str:
    """The path from the root, without a slash at its end; addresses as they are."""
    if not path or "://" in path:
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))
