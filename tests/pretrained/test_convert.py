"""Weight files to work directories and back; what does not fit is said at once."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from shrink import segmenter_config, use_tiny_backbone

from configs import query2label as query2label_config
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.layers.resize import POSITION_RESIZES
from mlseg_jax.pretrained import resnet, swin
from mlseg_jax.pretrained.convert import convert, suggestion
from mlseg_jax.pretrained.export import export_weights
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.initialise import start_from
from mlseg_jax.pretrained.load import load_arrays, stack_blocks, unstack_blocks
from mlseg_jax.pretrained.mapping import to_theirs
from mlseg_jax.pretrained.query2label import query2label
from mlseg_jax.pretrained.read import WeightFile, read_weights
from mlseg_jax.pretrained.segmenter import mmsegmentation, official, release
from mlseg_jax.pretrained.vit import augreg, hugging_face, timm
from mlseg_jax.sharding import make_mesh
from mlseg_jax.train_state import initialise
from mlseg_jax.workdir import (
    CARD,
    claim_workdir,
    load_config,
    load_info,
    load_parameters,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


def parameters_of(workdir):
    _, parameters, step = load_parameters(str(workdir), load_config(str(workdir)))
    assert step == 0
    return jax.device_get(parameters)


def said(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------- a released checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "mlseg"
    result = convert(config_of(), str(MLSEG), str(workdir))
    return workdir, result


def test_a_released_checkpoint(converted):
    workdir, result = converted
    arrays = read_weights(MLSEG).arrays
    parameters = parameters_of(workdir)
    table = arrays["decode_head.cls_emb"][0]
    np.testing.assert_array_equal(parameters["class_embeddings"], table)
    kernel = arrays["decode_head.blocks.2.mlp.fc1.weight"].T
    path = "decoder/blocks/blocks/1/mlp_in/kernel"
    np.testing.assert_array_equal(parameters[path], kernel)
    assert {x.dtype for x in parameters.values()} == {np.dtype(np.float32)}
    assert load_info(str(workdir)).class_names[3] == "thing 3"
    assert any("are the file's" in note for note in result.notes)


def test_its_model_card(converted):
    workdir, _ = converted
    facts = json.loads((workdir / CARD).read_text())
    assert facts["source_file"] == "mlseg.pth"
    assert facts["sha256"] == read_weights(MLSEG).sha256
    assert "MIT" in facts["licence"]
    assert facts["parameters"] == sum(
        x.size for x in read_weights(MLSEG).arrays.values()
    )
    assert facts["classes"] == [f"thing {i}" for i in range(11)]
    assert facts["input"]["pixel_mean"] == [0.0, 0.0, 0.0]
    text = (workdir / "model_card.md").read_text()
    assert facts["sha256"] in text and "thing 10" in text


@pytest.mark.parametrize("to", ["mmseg", "safetensors"])
def test_back_again_is_bitwise(converted, tmp_path, to):
    workdir, _ = converted
    output = tmp_path / "out.safetensors"
    export_weights(str(workdir), str(output), to, "latest")
    back, there = read_weights(output), read_weights(MLSEG).arrays
    if to == "mmseg":
        assert set(back.arrays) == set(there)
        for name, array in back.arrays.items():
            np.testing.assert_array_equal(array, there[name].astype(np.float32))
    assert back.class_names == load_info(str(workdir)).class_names
    again = tmp_path / "again"
    assert convert(config_of(), str(output), str(again)).notes
    first, second = parameters_of(workdir), parameters_of(again)
    assert set(first) == set(second)
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path])
    assert "exists already" in said(
        export_weights, str(workdir), str(output), to, "latest"
    )


# -------------------------------------------------------------------- what is refused


def test_all_problems_in_one_message_and_nothing_written(tmp_path):
    arrays = {name: np.array(x) for name, x in read_weights(MLSEG).arrays.items()}
    arrays.pop("decode_head.decoder_norm2.bias")
    arrays["decode_head.extra"] = np.zeros(3, np.float32)
    name = "backbone.layers.1.ffn.layers.0.0.weight"
    arrays[name] = np.ascontiguousarray(arrays[name].T)
    save_file(arrays, tmp_path / "bad.safetensors")
    sentence = said(
        convert, config_of(), str(tmp_path / "bad.safetensors"), str(tmp_path / "w")
    )
    assert "decode_head.decoder_norm2.bias is missing" in sentence
    assert "decode_head.extra is unexpected" in sentence
    assert f"{name} is [16, 64] and should be [64, 16] (transposed)" in sentence
    assert "Nothing was written" in sentence
    assert not (tmp_path / "w").exists()


def test_another_architecture_is_said_shortly(tmp_path):
    sentence = said(convert, config_of(depth=12), str(MLSEG), str(tmp_path / "w"))
    assert "times backbone.layers.*.ln1.weight is missing" in sentence
    assert len(sentence) < 4000
    sentence = said(convert, config_of(embed_dim=32), str(MLSEG), str(tmp_path / "w"))
    assert "should be" in sentence and not (tmp_path / "w").exists()


def test_a_used_directory_is_left_alone(converted, tmp_path):
    workdir, _ = converted
    assert "not empty" in said(convert, config_of(), str(MLSEG), str(workdir))
    (tmp_path / "file").write_text("x")
    assert "not empty" in said(convert, config_of(), str(MLSEG), str(tmp_path / "file"))


def test_an_unknown_file(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    sentence = said(convert, config_of(), str(tmp_path / "x.npz"), str(tmp_path / "w"))
    assert "no known kind" in sentence and "AugReg" in sentence


# -------------------------------------------------------------------- what is made fit


def test_other_classes_start_anew(tmp_path):
    result = convert(config_of(7), str(MLSEG), str(tmp_path / "w"))
    assert any("11 classes" in note and "of 7" in note for note in result.notes)
    (new,) = [note for note in result.notes if "new:" in note]
    assert "class_embeddings (1 arrays), multilabel_head (2 arrays)" in new
    parameters = parameters_of(tmp_path / "w")
    assert parameters["class_embeddings"].shape == (7, 16)
    assert np.std(parameters["class_embeddings"]) > 0.01
    arrays = read_weights(MLSEG).arrays
    # Ranks are no classes: what was learned of them stays.
    norm = arrays["decode_head.mask_norm.weight"]
    np.testing.assert_array_equal(parameters["rank_norm/scale"], norm)
    assert load_info(str(tmp_path / "w")).class_names[6] == "class 6"


def test_other_k_and_another_grid(tmp_path):
    config = config_of(k=6, image_size=(32, 20))
    convert(config, str(MLSEG), str(tmp_path / "w"))
    parameters, arrays = parameters_of(tmp_path / "w"), read_weights(MLSEG).arrays
    norm = arrays["decode_head.mask_norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(
        parameters["rank_norm/scale"], [*norm, norm[-1], norm[-1]]
    )
    table = parameters["backbone/position_table"]
    assert table.shape == (8 * 5 + 1, 16)
    old = arrays["backbone.pos_embed"][0].astype(np.float32)
    np.testing.assert_array_equal(table[0], old[0])
    rows, columns = (POSITION_RESIZES["bicubic"](n, 6) for n in (8, 5))
    new = np.einsum("Hh,Ww,hwd->HWd", rows, columns, old[1:].reshape(6, 6, 16))
    np.testing.assert_allclose(table[1:], new.reshape(40, 16), rtol=1e-6, atol=1e-6)


def test_names_of_classes(tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"sort {i}\n" for i in range(11)))
    names = str(tmp_path / "names.txt")
    convert(config_of(), str(MLSEG), str(tmp_path / "w"), names)
    assert load_info(str(tmp_path / "w")).class_names[10] == "sort 10"
    sentence = said(convert, config_of(7), str(MLSEG), str(tmp_path / "v"), names)
    assert "names 11 classes" in sentence
    (tmp_path / "names.txt").write_text("a\na\n")
    sentence = said(convert, config_of(2), str(MLSEG), str(tmp_path / "v"), names)
    assert "each class once" in sentence


# --------------------------------------------------------------------- other formats

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
    result = convert(config, str(path), str(tmp_path / "w"))
    parameters = parameters_of(tmp_path / "w")
    for key, array in ours.items():
        np.testing.assert_array_equal(parameters[key], array)
    assert set(parameters) >= set(ours)
    dropped = [note for note in result.notes if "not used" in note]
    assert len(dropped) == (name in EXTRA)
    assert any("new: " in note for note in result.notes) == bool(part)
    wanted = {"official": (1e-5, "bilinear"), "hf": (1e-12, "bicubic"),
              "timm": (1e-6, "antialiased_bicubic")}  # fmt: skip
    backbone = load_config(str(tmp_path / "w")).model.backbone
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
    arrays = {key: np.ascontiguousarray(x) for key, x in theirs.items()}
    save_file(arrays, tmp_path / "x.safetensors")
    convert(config, str(tmp_path / "x.safetensors"), str(tmp_path / "w"))
    parameters = parameters_of(tmp_path / "w")
    assert set(parameters) == set(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(parameters[key], array)


def test_query2label(tmp_path):
    config = query2label_config.get_config("dataset=ade20k,backbone=swin_l")
    use_tiny_backbone(config, "swin", num_norms=1)
    with config.unlocked():
        config.data.num_classes = 11
        config.model.transformer.update(num_heads=2, mlp_dim=16, num_encoder_layers=1)
    ours, theirs = random_arrays(config, query2label)
    theirs["backbone.1.pe"] = np.zeros((1, 2), np.float32)
    arrays = {f"module.{k}": np.ascontiguousarray(x) for k, x in theirs.items()}
    save_file(arrays, tmp_path / "x.safetensors")
    result = convert(config, str(tmp_path / "x.safetensors"), str(tmp_path / "w"))
    assert any("not used: backbone.1.pe" in note for note in result.notes)
    parameters = parameters_of(tmp_path / "w")
    assert set(parameters) == set(ours)
    for key, array in ours.items():
        np.testing.assert_array_equal(parameters[key], array)


BACKBONES = [
    ("swin", "hugging_face_swin", swin.hugging_face, "encoder.layers.0"),
    ("swin", "swin", swin.own, "layers.0.blocks.1.attn.qkv.bias"),
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
    loaded = load_arrays(config, 11, source, arrays)
    assert set(loaded.arrays) == set(ours) and len(loaded.dropped) == 1
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
    convert(config, str(tmp_path / "x.npz"), str(tmp_path / "w"))
    parameters = parameters_of(tmp_path / "w")
    found = parameters.pop("backbone/position_table")
    np.testing.assert_array_equal(found[1:], table[0, 1:])
    assert np.all(found[0] == 0.0)
    for path in set(ours) - {"backbone/position_table"}:
        np.testing.assert_array_equal(parameters[path], ours[path])


def test_a_scanned_model_gets_the_same(converted, tmp_path):
    workdir, _ = converted
    config = config_of(scan=True)
    convert(config, str(MLSEG), str(tmp_path / "w"))
    scanned, plain = parameters_of(tmp_path / "w"), parameters_of(workdir)
    assert "backbone/blocks/blocks/mlp_in/kernel" in scanned
    apart = unstack_blocks(scanned, plain)
    assert set(apart) == set(plain)
    for path, array in plain.items():
        np.testing.assert_array_equal(apart[path], array)
    assert set(stack_blocks(apart, scanned)) == set(scanned)


# ------------------------------------------------------------------- a training's start


def config_from(init, num_classes=11, part="", **kwargs):
    config = config_of(num_classes, **kwargs)
    with config.unlocked():
        config.init, config.init_part = str(init), part
        config.optimizer.ema_decay = 0.9
    return config


def started(init, num_classes=11, part=""):
    config = config_from(init, num_classes, part)
    state = initialise(config, num_classes, make_mesh(config))
    return state, start_from(config, num_classes, state)


def test_training_starts_from_a_directory_or_a_file(converted):
    workdir, _ = converted
    parameters = parameters_of(workdir)
    before, after = started(workdir)
    for path, array in parameters.items():
        np.testing.assert_array_equal(after["params"][path], array)
        np.testing.assert_array_equal(after["ema"][path], array)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    shardings = jax.tree.map(lambda x: x.sharding, (before, after))
    assert shardings[0] == shardings[1]
    before, after = started(MLSEG, num_classes=7, part="backbone/")
    for path, array in after["params"].items():
        source = parameters if path.startswith("backbone/") else before["params"]
        np.testing.assert_array_equal(array, source[path])
    sentence = said(start_from, config_from(MLSEG, part="spine"), 11, {})
    assert "No part of the model begins with 'spine'" in sentence
    sentence = said(start_from, config_from(MLSEG, embed_dim=32), 11, {})
    assert "does not fit" in sentence


# --------------------------------------------------------------------------- commands


def test_a_configuration_is_suggested(tmp_path):
    config = segmenter_config(
        "top_k", 25, embed_dim=192, depth=12, num_heads=3, patch_size=16,
        image_size=(512, 512),
    )  # fmt: skip
    _, theirs = random_arrays(config, release, 171)
    save_file(
        {k: np.ascontiguousarray(x) for k, x in theirs.items()},
        tmp_path / "x.safetensors",
    )
    text = suggestion(str(tmp_path / "x.safetensors"))
    assert (
        "--config=configs/segmenter.py:dataset=coco_stuff,backbone=vit_ti16,"
        "selection=top_k,head=transformer_encoder --config.selection.k=25 " in text
    )
    assert "no shipped configuration" in suggestion(str(MLSEG))


def test_converted_weights_are_no_run_to_take_up(converted):
    workdir, _ = converted
    info = load_info(str(workdir))
    assert "--config.init=" in said(claim_workdir, config_of(), str(workdir), info)
