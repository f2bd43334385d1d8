"""TResNet of timm and of MIIL (Ridnik et al. 2021; method.md section 8.1)."""

import re

import ml_collections
import numpy as np

from mlseg_jax.pretrained.mapping import CONV, SAME, Dropped, Row, norm
from mlseg_jax.pretrained.vit import CLASSIFIER

EPSILON = 1e-5


def _unit(theirs: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.conv.weight", f"{ours}/conv/kernel", CONV),
        *norm(f"{theirs}.bn", f"{ours}/norm"),
        Row(f"{theirs}.bn.running_mean", f"{ours}/norm/mean", SAME),
        Row(f"{theirs}.bn.running_var", f"{ours}/norm/var", SAME),
    ]


def tresnet(config: ml_collections.ConfigDict) -> list[Row]:
    """By timm's names."""
    del config
    theirs, ours = "body.layer{s+1}.{b}", "backbone/stages/{s}/blocks/{b}"
    rows = _unit("body.conv1", "backbone/stem")
    for i in (1, 2, 3):
        rows += _unit(f"{theirs}.conv{i}", f"{ours}/conv{i}")
    for fc, layer in (("fc1", "squeeze"), ("fc2", "excite")):
        gate = f"{ours}/gate/{layer}"
        rows.append(Row(f"{theirs}.se.{fc}.weight", f"{gate}/kernel", CONV))
        rows.append(Row(f"{theirs}.se.{fc}.bias", f"{gate}/bias", SAME))
    # The later stages' shortcuts begin with a mean over cells, which has a number too.
    shortcut = "backbone/stages/{}/blocks/0/shortcut"
    rows += _unit("body.layer1.0.downsample.0", shortcut.format(0))
    return [
        *rows,
        *_unit("body.layer{s+2}.0.downsample.1", shortcut.format("{s+1}")),
    ]


# MIIL's layers have numbers for names; one more where a blur follows.
_NUMBERED = re.compile(r"(.*\.(?:conv\d|downsample\.\d))(?:\.0)?\.([01])\.(\w+)")
_PARTS = {"0": "conv", "1": "bn"}


def names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MIIL's names as timm's, and the scales that MIIL's in-place norms multiply by."""
    if not any(name.startswith("body.conv1.0.") for name in arrays):
        return arrays
    renamed = {}
    for name, array in arrays.items():
        name = _NUMBERED.sub(lambda m: f"{m[1]}.{_PARTS[m[2]]}.{m[3]}", name)
        if name.endswith(".bn.weight"):
            array = np.abs(array) + np.asarray(EPSILON, array.dtype)
        renamed[name] = array
    return renamed


DROPPED = (
    Dropped(r"head\..*", CLASSIFIER),
    Dropped(r".*\.num_batches_tracked", "a counter"),
    Dropped(r".*\.filt", "a constant: the blur"),
)
