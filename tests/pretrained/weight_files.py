"""Random weight files of every format, and what became of them."""

import pathlib

import jax
import numpy as np
import pytest
from shrink import segmenter_config

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained.mapping import to_theirs
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.runs.workdir import load_config, load_parameters

MLSEG = pathlib.Path(__file__).parent / "files" / "mlseg.pth"


def config_of(num_classes=11, k=4, selection="top_k", **backbone):
    config = segmenter_config(selection, k, **backbone)
    with config.unlocked():
        config.data.num_classes = num_classes
    return config


def random_arrays(config, rows, num_classes=11, part=""):
    """A file of the format that the table describes, for exactly this configuration."""
    shapes = FunctionalModel.build(config, num_classes).shapes
    rng = np.random.default_rng(0)
    ours = {
        path: rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
        if path.startswith(part)
    }
    return ours, to_theirs(ours, rows(config))


def weightless(config, rows, part=""):
    """A file of the configuration's real sizes that takes no memory."""
    zero = np.float32(0)
    shapes = FunctionalModel.build(config, config.data.num_classes).shapes
    ours = {
        path: np.broadcast_to(zero, leaf.shape)
        for path, leaf in shapes.items()
        if path.startswith(part)
    }
    return WeightFile("x.pth", "", to_theirs(ours, rows(config)))


def parameters_of(workdir):
    _, parameters, step = load_parameters(str(workdir), load_config(str(workdir)))
    assert step == 0
    return jax.device_get(parameters)


def said(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
