"""The page that says how to add a framework, done to the letter."""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import random_parameters
from tiny import ROOT

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.label_selection import Selection, select_complete
from mlseg_jax.models import parts
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.training.state import abstract_state
from mlseg_jax.training.step import make_train_step

TEXT = (ROOT / "docs/adding_a_framework.md").read_text()
C = 7

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture
def get_config(monkeypatch):
    """Runs the page's three pieces of code where the page says they belong."""
    decoder, entry, config = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert (decoder + entry + config).count("\n") < 100
    name = "mlseg_jax.models.decoders.pointwise"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(decoder, module.__dict__)
    monkeypatch.setattr(parts, "DECODERS", parts.DECODERS)
    monkeypatch.setitem(parts.DECODERS, "pointwise", None)  # undone afterwards
    exec(entry, {"DECODERS": parts.DECODERS})
    names = {}
    exec(config, names)
    return names["get_config"]


def shrunk(config):
    with config.unlocked():
        config.data.update(crop_size=(32, 32), num_classes=C)
        config.selection.k = min(config.selection.k, 3)
        config.model.backbone.update(embed_dim=4, depths=(1, 1, 2, 1))
        config.model.decoder.embed_dim = 16
        if config.model.multilabel_head.name != "none":
            config.model.multilabel_head.num_heads = 2
        config.train.batch_size = 8
    return config


def test_the_page_is_a_framework(get_config):
    config = get_config(*re.findall(r"--config=configs/pointwise.py:(\S+)", TEXT))
    assert config.selection.name == "top_k"
    assert open_dataset(config.data, train=True)[0]  # The command names no path.
    model = FunctionalModel.build(shrunk(config), C)
    assert sum(m.exact for m in count_macs(config, model).values()) > 0
    mesh = make_mesh(config)
    batch = {
        "image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8),
        "label_map": jax.ShapeDtypeStruct((8, 32, 32), np.int32),
    }
    state = abstract_state(config, C, mesh)
    _, metrics = jax.eval_shape(make_train_step(config, model, mesh), state, batch)
    assert {"loss/pixel", "loss/multilabel", "loss/auxiliary"} <= metrics.keys()


def test_selection_is_only_rows(get_config):
    config = shrunk(get_config("dataset=sign_scenes,selection=complete"))
    model = FunctionalModel.build(config, C)
    permuted = jnp.asarray([np.random.default_rng(b).permutation(C) for b in (0, 1)])

    @jax.jit
    def run(parameters, images):
        bound = model.bind(parameters)
        labels = bound.encode(images)
        return (
            bound.classify(labels, select_complete(labels.scores)).logits,
            bound.classify(labels, Selection(permuted, None, C)).logits,
        )

    images = np.random.default_rng(0).integers(0, 256, (2, 30, 41, 3)).astype(np.uint8)
    baseline, logits = map(np.asarray, run(random_parameters(model), images))
    expected = np.take_along_axis(baseline, np.asarray(permuted)[:, None, None], axis=3)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert np.std(baseline) > 1e-3
