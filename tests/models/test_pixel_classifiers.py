"""Configurations of DeepLabv3, UPerNet and the linear classifier: all of them build."""

import itertools
import math

import jax
import pytest
from test_configs import argument, devices, unread_of_model

from configs import deeplabv3, linear, upernet
from input_pipeline.datasets.sign_scenes import SignScenes
from mlseg_jax.label_selection import SELECTIONS
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.settings import backbones
from mlseg_jax.settings.data_sets import DATA_SETS
from mlseg_jax.training import checks
from mlseg_jax.training.state import abstract_state

BACKBONES = [
    *((deeplabv3, name) for name in backbones.RESNETS),
    *((upernet, name) for name in (*backbones.SWINS, *backbones.BEITS)),
    *((linear, name) for name in backbones.DINOV2S),
    *((linear, f"{name}_reg") for name in backbones.DINOV2S),
]
"""Every file with every backbone that it takes."""

IDS = [backbone for _, backbone in BACKBONES]


@pytest.mark.parametrize("module, backbone", BACKBONES, ids=IDS)
def test_every_configuration_is_consistent(module, backbone):
    for dataset, selection in itertools.product(DATA_SETS, SELECTIONS):
        config = module.get_config(argument(dataset, backbone, selection))
        model, side = config.model, config.data.crop_size[0]
        assert config.is_locked
        assert config.eval.window == config.data.crop_size
        assert side % model.backbone.get("patch_size", 32) == 0
        assert (config.eval.mode == "slide") == (backbone in backbones.BEITS)
        assert config.selection.k <= (config.data.num_classes or 10**6)
        assert (selection == "complete") == (model.rank_norm.kind == "none")
        has_head = model.multilabel_head.name != "none"
        assert has_head == (selection == "top_k")
        assert has_head == (config.loss.multilabel_weight != 0)
        if has_head:
            width = model.decoder.get("embed_dim", model.backbone.embed_dim)
            assert width == 64 * model.multilabel_head.num_heads


def scanned(module, *combination):
    """The same step, traced sooner."""
    config = module.get_config(argument(*combination))
    config.model.backbone.scan = True
    return config


@pytest.mark.parametrize("selection", ["complete", "top_k"])
@pytest.mark.parametrize("module, backbone", BACKBONES, ids=IDS)
def test_every_state_splits_over_devices(module, backbone, selection):
    """At the real widths nearly all of it is split over the rows of 2 x 4 devices."""
    config = scanned(module, "coco_lvis", backbone, selection)
    total = kept = 0
    for array in jax.tree.leaves(abstract_state(config, 1284, devices(2, 4))):
        total += array.size
        kept += math.prod(array.sharding.shard_shape(array.shape))
    assert kept < (0.5 if "demo" in backbone else 0.26) * total


@pytest.mark.parametrize(
    "module, backbone, selection, mesh",
    [
        (deeplabv3, "resnet50", "complete", (1, 1)),
        (deeplabv3, "resnet101_v1c", "top_k", (2, 4)),
        (upernet, "swin_t", "complete", (1, 1)),
        (upernet, "swin_b", "top_k", (2, 4)),
        (upernet, "beit_b16", "complete", (1, 1)),
        (upernet, "beit_l16", "top_k", (2, 4)),
        (linear, "dinov2_s14", "complete", (2, 4)),
        (linear, "dinov2_g14_reg", "top_k", (1, 1)),
        (linear, "dinov2_g14_reg", "top_k", (2, 4)),
    ],
)
def test_the_training_step_traces(module, backbone, selection, mesh, monkeypatch):
    """With the real shapes, and reads every key of the model."""
    config = scanned(module, "coco_lvis", backbone, selection)
    assert unread_of_model(config, devices(*mesh), monkeypatch) == set()


@pytest.mark.parametrize(
    "module, arg, sentence",
    [
        (upernet, "backbone=swin_c", "no backbone 'swin_c'; did you mean 'swin_"),
        (upernet, "dataset=ade", "no data set 'ade'"),
        (upernet, "selection=topk", "no selection 'topk'; did you mean 'top_k'"),
        (linear, "backbone=dinov2_b16_reg", "did you mean 'dinov2_b14_reg'"),
        (linear, "dataset=ade2k", "did you mean 'ade20k'"),
        (deeplabv3, "backbone=resnet101_v1", "did you mean 'resnet101_v1c'"),
        (deeplabv3, "backbone=swin_b", "no backbone 'swin_b'; choose one of resnet"),
    ],
)
def test_arguments_that_are_wrong(module, arg, sentence):
    with pytest.raises(ValueError, match=sentence):
        module.get_config(arg)


def test_a_frozen_backbone_needs_weights(monkeypatch):
    said = []
    monkeypatch.setattr(checks.logger, "warning", lambda *x: said.append(x[0]))
    info = SignScenes(num_classes=20).info
    for arg in ("", ",frozen=0"):
        config = linear.get_config(f"dataset=sign_scenes,backbone=dinov2_demo{arg}")
        checks.check_labels(config, info, info)
    (sentence,) = said
    assert "name weights for it in config.init" in sentence


# Of the public weights, without their mask token.
DINOV2 = {
    "dinov2_s14": 22_056_192,
    "dinov2_b14": 86_579_712,
    "dinov2_l14": 304_367_616,
    "dinov2_g14": 1_136_479_232,
}


@pytest.mark.parametrize("backbone", DINOV2)
def test_parameters_of_dinov2(backbone):
    for registers in (0, 4):
        name = backbone + ("_reg" if registers else "")
        config = linear.get_config(f"backbone={name}")
        config.model.backbone.scan = True
        shapes = FunctionalModel.build(config, 150).shapes
        sizes = {k: x.size for k, x in shapes.items() if k.startswith("backbone")}
        width = config.model.backbone.embed_dim
        assert sum(sizes.values()) == DINOV2[backbone] + registers * width
