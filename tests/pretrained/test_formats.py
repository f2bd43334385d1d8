"""Every format: recognised by its names, mapped by its table, undone by it."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from shrink import use_tiny_backbone
from weight_files import config_of, parameters_of, random_arrays

from configs import query2label as query2label_config
from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import beit, resnet, swin, tresnet
from mlseg_jax.pretrained.convert import convert, describe_rest
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.load import load_arrays, with_facts
from mlseg_jax.pretrained.query2label import query2label
from mlseg_jax.pretrained.read import WeightFile, read_weights
from mlseg_jax.pretrained.segmenter import mmsegmentation, official, release
from mlseg_jax.pretrained.suggest import suggest
from mlseg_jax.pretrained.vit import augreg, hugging_face, timm

pytestmark = pytest.mark.usefixtures("quick_compiles")


def load(config, path):
    """What `convert` reads of a file, and the configuration with its facts."""
    _, source, arrays = recognise(read_weights(path))
    config, _ = with_facts(config, source)
    return config, load_arrays(config, 11, source, arrays)


FORMATS = [
    ("official", official, "complete", ""), ("mmseg", mmsegmentation, "complete", ""),
    ("baseline", release, "complete", ""), ("augreg", augreg, "top_k", "backbone/"),
    ("timm", timm, "top_k", "backbone/"), ("hf", hugging_face, "top_k", "backbone/"),
]  # fmt: skip

EXTRA = {
    "official": {"encoder.head.weight": np.zeros((3, 16), np.float32)},
    "timm": {"head.weight": np.zeros((3, 16), np.float32)},
    "augreg": {"opt/target/head/kernel": np.zeros((16, 3), np.float32)},
    "hf": {"embeddings.mask_token": np.zeros((1, 1, 16), np.float32)},
}


OLDER = (
    ("layers.", "encoder.layer."), ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"), ("attention.o_proj", "attention.output.dense"),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
)  # fmt: skip


def _older(name):
    """As files of Hugging Face have it."""
    for new, old in OLDER:
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize("name, rows, selection, part", FORMATS)
def test_every_table_is_recognised_and_undone(tmp_path, name, rows, selection, part):
    config = config_of(selection=selection)
    ours, theirs = random_arrays(config, rows, part=part)
    if name == "augreg":
        theirs = {f"opt/target/{key}": x for key, x in theirs.items()}
    if name == "hf":
        theirs = {_older(key): x for key, x in theirs.items()}
        theirs = {f"vit.{key}": x for key, x in theirs.items()}
    path = tmp_path / "x.npz"
    np.savez(path, **theirs, **EXTRA.get(name, {}))
    config, loaded = load(config, path)
    assert set(loaded.arrays) == set(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[key], array)
    notes = describe_rest(loaded)
    assert sum("not used" in note for note in notes) == (name in EXTRA)
    assert any("new: " in note for note in notes) == bool(part)
    key, _, _ = recognise(read_weights(path))
    for missing in theirs:
        rest = {name: x for name, x in theirs.items() if name != missing}
        file = WeightFile("x", "", rest)
        assert recognise(file)[0] == key and suggest(file) == ""
    wanted = {"official": (1e-5, "bilinear"), "hf": (1e-12, "bicubic"),
              "timm": (1e-6, "antialiased_bicubic")}  # fmt: skip
    backbone = config.model.backbone
    expected = wanted.get(name, (1e-6, "bicubic"))
    assert (backbone.norm_epsilon, backbone.position_resize) == expected


@pytest.mark.parametrize(
    "head, mark",
    [
        ("transformer_decoder", "decode_head.img_cls_head.input_proj.weight"),
        ("global_pooling", "decode_head.img_cls_head.1.conv.weight"),
        ("oracle", "decode_head.mask_norm.gamma"),
        ("oce", "backbone.cls_emb"),
    ],
)
def test_the_releases_other_heads(tmp_path, head, mark):
    config = config_of(selection="oracle" if head == "oracle" else "top_k")
    with config.unlocked():
        if head == "oce":
            config.model.class_embeddings.in_backbone = True
        elif head != "oracle":
            config.model.multilabel_head.name = head
    ours, theirs = random_arrays(config, release)
    assert mark in theirs
    np.savez(tmp_path / "x.npz", **theirs)
    _, loaded = load(config, tmp_path / "x.npz")
    assert set(loaded.arrays) == set(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[key], array)


# TResNet is not in `shrink`: it has no configuration of pixel classification.
TINY_TRESNET = dict(
    name="tresnet", embed_dim=4, depths=(1, 2, 1, 1),
    bottlenecks=(False, False, True, True), remat="none",
)  # fmt: skip


def query2label_config_of(backbone):
    config = query2label_config.get_config("dataset=ade20k,backbone=swin_l")
    with config.unlocked():
        if backbone == "tresnet":
            config.model.backbone = ConfigDict(TINY_TRESNET)
        else:
            more = {"num_norms": 1} if backbone == "swin" else {"stem": "plain"}
            use_tiny_backbone(config, backbone, **more)
        config.data.num_classes = 11
        config.model.transformer.update(num_heads=2, mlp_dim=16, num_encoder_layers=1)
    return config


def torchvision_name(name):
    return name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.")


def detectron2_name(name):
    """As its script converts torchvision's: what is in no layer is of the stem."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace(
        "downsample.1", "shortcut.norm"
    )


def miil_name(name):
    """A blur follows where a stage begins, after the last 3 x 3 convolution but one."""
    blurred = r"(layer2\.0\.conv1|layer[34]\.0\.conv2)\.(conv|bn)"
    name = re.sub(blurred, r"\1.0.\2", name)
    name = re.sub(r"((?:conv|downsample\.)\d(?:\.0)?)\.conv\.", r"\1.0.", name)
    return re.sub(r"((?:conv|downsample\.)\d(?:\.0)?)\.bn\.", r"\1.1.", name)


def scales_as_applied(ours):
    """MIIL's norms multiply by the size of their weights."""
    return {
        path: np.abs(x) + np.float32(1e-5) if path.endswith("norm/scale") else x
        for path, x in ours.items()
    }


def test_names_of_miil():
    names = {
        "body.conv1.conv.weight": "body.conv1.0.weight",
        "body.layer1.0.conv1.bn.running_var": "body.layer1.0.conv1.1.running_var",
        "body.layer2.0.conv1.conv.weight": "body.layer2.0.conv1.0.0.weight",
        "body.layer3.0.conv2.bn.bias": "body.layer3.0.conv2.0.1.bias",
        "body.layer3.0.conv1.bn.bias": "body.layer3.0.conv1.1.bias",
        "body.layer3.0.downsample.1.bn.bias": "body.layer3.0.downsample.1.1.bias",
        "body.layer1.0.downsample.0.conv.weight": "body.layer1.0.downsample.0.0.weight",
        "body.layer1.0.se.fc1.weight": "body.layer1.0.se.fc1.weight",
    }
    for name, theirs in names.items():
        assert miil_name(name) == theirs
    arrays = {theirs: np.float32([-2.0]) for theirs in names.values()}
    assert list(tresnet.names(arrays)) == list(names)


@pytest.mark.parametrize("source", ["timm", "miil"])
def test_tresnet(source):
    config = query2label_config_of("tresnet")
    ours, theirs = random_arrays(config, tresnet.tresnet, part="backbone/")
    if source == "miil":
        theirs = {miil_name(name): x for name, x in theirs.items()}
        theirs["body.layer2.0.conv1.1.op.filt"] = np.zeros((8, 1, 3, 3), np.float32)
        ours = scales_as_applied(ours)
    theirs["head.fc.weight"] = np.zeros((5, 128), np.float32)
    key, found, arrays = recognise(WeightFile("x", "", theirs))
    assert key == "tresnet"
    loaded = load_arrays(config, 11, found, arrays)
    assert set(loaded.arrays) == set(ours)
    assert len(loaded.dropped) == (2 if source == "miil" else 1)
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)


QUERY2LABEL = [
    ("swin", str, "backbone.0.patch_embed.proj.weight"),
    ("resnet", torchvision_name, "backbone.0.body.layer1.0.downsample.1.running_var"),
    ("tresnet", miil_name, "backbone.0.body.body.layer2.0.conv1.0.0.weight"),
]


@pytest.mark.parametrize("backbone, rename, mark", QUERY2LABEL)
def test_query2label(tmp_path, backbone, rename, mark):
    config = query2label_config_of(backbone)
    ours, theirs = random_arrays(config, query2label)
    if backbone == "tresnet":
        scales = scales_as_applied(ours)
        ours |= {k: x for k, x in scales.items() if k.startswith("backbone/")}
    theirs = {rename(name): x for name, x in theirs.items()}
    assert mark in theirs
    theirs["backbone.1.pe"] = np.zeros((1, 2), np.float32)
    arrays = {f"module.{k}": np.ascontiguousarray(x) for k, x in theirs.items()}
    save_file(arrays, tmp_path / "x.safetensors")
    if backbone == "swin":
        result = convert(config, str(tmp_path / "x.safetensors"), str(tmp_path / "w"))
        assert any("not used: backbone.1.pe" in note for note in result.notes)
        found = parameters_of(tmp_path / "w")
    else:
        found = load(config, tmp_path / "x.safetensors")[1].arrays
    assert set(found) == set(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(found[key], array)


BACKBONES = [
    ("swin", "hugging_face_swin", swin.hugging_face, "encoder.layers.0"),
    ("swin", "swin", swin.own, "layers.0.blocks.1.attn.qkv.bias"),
    ("beit", "beit", beit.own, "blocks.1.attn.q_bias"),
    ("resnet", "resnet", resnet.resnet, "layer1.0.conv3.weight"),
]


@pytest.mark.parametrize("kind, key, rows, mark", BACKBONES)
def test_tables_of_other_backbones(kind, key, rows, mark):
    config = config_of()
    use_tiny_backbone(config, kind, **({"num_norms": 1} if kind == "swin" else {}))
    with config.unlocked():
        config.model.multilabel_head.update(num_heads=2)
    ours, theirs = random_arrays(config, rows, part="backbone/")
    assert any(name.startswith(mark) for name in theirs)
    theirs["a.num_batches_tracked" if kind == "resnet" else "head.fc.bias"] = np.ones(3)
    found, source, arrays = recognise(WeightFile("x", "", theirs))
    assert found == key
    for missing in theirs:
        rest = {name: x for name, x in theirs.items() if name != missing}
        assert recognise(WeightFile("x", "", rest))[0] == key
    loaded = load_arrays(config, 11, source, arrays)
    assert set(loaded.arrays) == set(ours) and len(loaded.dropped) == 1
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)


def test_detectron2s_residual_network():
    config = query2label_config_of("resnet")
    ours, theirs = random_arrays(config, resnet.resnet, part="backbone/")
    theirs |= {"fc.weight": np.zeros((5, 128)), "fc.bias": np.zeros(5)}
    theirs = {detectron2_name(torchvision_name(n)): x for n, x in theirs.items()}
    some = ("stem.conv1.norm.running_var", "stem.fc.bias", "res2.0.shortcut.weight")
    assert set(some) <= set(theirs)
    found, source, arrays = recognise(WeightFile("R-50.pkl", "", theirs))
    assert found == "resnet"
    loaded = load_arrays(config, 11, source, arrays)
    assert set(loaded.arrays) == set(ours) and len(loaded.dropped) == 2
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)


def test_big_vision_has_no_position_for_its_class_token(tmp_path):
    config = config_of()
    ours, theirs = random_arrays(config, augreg, part="backbone/")
    names = (
        ("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0"),
        ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    )  # fmt: skip
    for old, new in names:
        theirs = {key.replace(old, new): x for key, x in theirs.items()}
    table = theirs.pop("Transformer/posembed_input/pos_embedding")
    theirs["pos_embedding"] = table[:, 1:]
    np.savez(tmp_path / "x.npz", **{f"params/{key}": x for key, x in theirs.items()})
    parameters = load(config, tmp_path / "x.npz")[1].arrays
    found = parameters.pop("backbone/position_table")
    np.testing.assert_array_equal(found[1:], table[0, 1:])
    assert np.all(found[0] == 0.0)
    for path in set(ours) - {"backbone/position_table"}:
        np.testing.assert_array_equal(parameters[path], ours[path])


@pytest.mark.parametrize("shape", [(10,), ()])
def test_arrays_that_cannot_be_taken_apart_are_said(shape):
    arrays = {
        "storage_tokens": np.zeros((1, 4, 8)),
        "blocks.0.attn.qkv.weight": np.zeros((24, 8)),
        "blocks.0.attn.qkv.bias": np.zeros(shape),
    }
    with pytest.raises(UserError, match="x.pth is damaged: an array has a shape"):
        recognise(WeightFile("x.pth", "", arrays))


def test_numbers_that_numpy_has_not_are_said(tmp_path):
    header = b'{"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(UserError, match="is no safetensors file that can be read"):
        read_weights(path)
