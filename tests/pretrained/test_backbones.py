"""Files of a backbone alone: what they fill, what starts anew, what fits them."""

import numpy as np
import pytest
from shrink import use_tiny_backbone, use_tiny_decoder
from weight_files import parameters_of, random_arrays, weightless

from configs import deeplabv3, linear, query2label, upernet
from mlseg_jax.pretrained import beit, resnet, swin, tresnet
from mlseg_jax.pretrained.convert import convert, describe_rest
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.query2label import query2label as query2label_rows
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.pretrained.suggest import suggest

pytestmark = pytest.mark.usefixtures("quick_compiles")


def tiny(module, kind, argument, **backbone):
    config = module.get_config(argument)
    use_tiny_backbone(config, kind, **backbone)
    use_tiny_decoder(config, "linear" if module is linear else "upernet")
    with config.unlocked():
        config.data.num_classes = 11
        config.model.multilabel_head.num_heads = 2
        config.model.auxiliary_head.level = 1
    return config


DINO = {"layer_scale": 1.0, "image_size": (24, 24)}
BACKBONES = [
    (upernet, "beit", "backbone=beit_b16", {}, {"image_size": (20, 28)}, beit.beit),
    (upernet, "swin", "backbone=swin_t", {}, {"window_size": 4}, swin.hugging_face),
    (linear, "vit", "backbone=dinov2_b14", DINO, {"image_size": (20, 28)}, beit.dinov2),
    (
        linear, "vit", "backbone=dinov2_b14_reg", DINO | {"num_registers": 4},
        {"image_size": (20, 28)}, beit.dinov2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("module, kind, argument, sizes, other, rows", BACKBONES)
def test_a_backbone_is_filled(module, kind, argument, sizes, other, rows):
    ours, theirs = random_arrays(
        tiny(module, kind, argument, **sizes), rows, part="backbone/"
    )
    # Pretrained models have no pyramid, and a norm after their last stage alone.
    absent = {
        name
        for name in theirs
        if name.startswith(("fpn", "hidden_states_norms.stage1"))
    }
    theirs = {name: x for name, x in theirs.items() if name not in absent}
    theirs = {n.replace("hidden_states_norms.stage2", "layernorm"): x
              for n, x in theirs.items()}  # fmt: skip
    config = tiny(module, kind, argument, **sizes | other)
    _, source, arrays = recognise(WeightFile("x", "", theirs))
    loaded = load_arrays(config, 11, source, arrays)
    assert any("resized" in note for note in loaded.notes)
    for path, array in loaded.arrays.items():
        if path.endswith("table"):
            assert array.shape != ours[path].shape
            assert array.shape[1:] == ours[path].shape[1:]
        else:
            np.testing.assert_array_equal(array, ours[path])
    left = [path for path in loaded.fresh if path.startswith("backbone/")]
    assert set(left) == set(ours) - set(loaded.arrays) and len(left) == len(absent)
    (new,) = [note for note in describe_rest(loaded) if "new: " in note]
    assert "decoder (" in new and ("backbone (" in new) == bool(absent)


def test_the_rest_starts_anew(tmp_path):
    config = tiny(linear, "vit", "backbone=dinov2_b14", **DINO)
    ours, theirs = random_arrays(config, beit.dinov2, part="backbone/")
    np.savez(tmp_path / "x.npz", **theirs)
    convert(config, str(tmp_path / "x.npz"), str(tmp_path / "w"))
    parameters = parameters_of(tmp_path / "w")
    for path, array in ours.items():
        np.testing.assert_array_equal(parameters[path], array)
    assert np.std(parameters["class_embeddings"]) > 0.0


def test_names_of_beit_in_files():
    shared = "beit.encoder.relative_position_bias.relative_position_bias_table"
    names = {
        "fpn1.0.weight": "fpn.fpn1.conv_transpose1.weight",
        "fpn1.1.running_mean": "fpn.fpn1.normalization.running_mean",
        "fpn1.3.bias": "fpn.fpn1.conv_transpose2.bias",
        "fpn2.0.bias": "fpn.fpn2.bias",
        "beit.encoder.layer.0.lambda_1": "layers.0.lambda_1",
        "beit.encoder.layer.1.lambda_1": "layers.1.lambda_1",
    }
    arrays = dict.fromkeys([*names, shared], np.zeros(2))
    found = set(beit.beit_names(arrays)) - set(names.values())
    table = "relative_position_bias.relative_position_bias_table"
    assert found == {f"layers.{i}.{table}" for i in range(2)}


SUGGESTED = [
    (upernet, "upernet", "beit_b16", beit.beit, {}),
    (upernet, "upernet", "swin_t", swin.hugging_face, {"window_size": 12}),
    (linear, "linear", "dinov2_s14", beit.dinov2_own, {}),
    (linear, "linear", "dinov2_l14_reg", beit.dinov2, {}),
    (deeplabv3, "deeplabv3", "resnet101_v1c", resnet.resnet, {}),
    (query2label, "query2label", "tresnet_l", tresnet.tresnet, {}),
]


@pytest.mark.parametrize("module, file, backbone, rows, other", SUGGESTED)
def test_what_fits_is_suggested(module, file, backbone, rows, other):
    config = module.get_config(f"dataset=ade20k,backbone={backbone}")
    with config.unlocked():
        config.model.backbone.update(other)
    flags = "".join(f" --config.model.backbone.{k}={v}" for k, v in other.items())
    expected = f"--config=configs/{file}.py:dataset=ade20k,backbone={backbone}{flags}"
    assert suggest(weightless(config, rows, "backbone/")) == expected


@pytest.mark.parametrize("backbone", ["swin_l", "resnet101", "tresnet_l_v2"])
def test_what_fits_query2label_is_suggested(backbone):
    config = query2label.get_config(f"dataset=coco_stuff,backbone={backbone}")
    with config.unlocked():
        config.model.transformer.num_encoder_layers = 1
    expected = (
        f"--config=configs/query2label.py:dataset=coco_stuff,backbone={backbone} "
        f"--config.model.transformer.num_encoder_layers=1"
    )
    assert suggest(weightless(config, query2label_rows)) == expected
