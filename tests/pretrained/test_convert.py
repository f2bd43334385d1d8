"""Weight files to work directories and back; what does not fit is said at once."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from shrink import segmenter_config
from weight_files import MLSEG, config_of, parameters_of, random_arrays, said

from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.models.layers.resize import POSITION_RESIZES
from mlseg_jax.pretrained import export
from mlseg_jax.pretrained.convert import convert, suggestion
from mlseg_jax.pretrained.export import export_weights
from mlseg_jax.pretrained.initialise import start_from
from mlseg_jax.pretrained.load import stack_blocks, unstack_blocks
from mlseg_jax.pretrained.read import read_weights
from mlseg_jax.pretrained.segmenter import release
from mlseg_jax.runs.workdir import CARD, claim_workdir, load_config, load_info
from mlseg_jax.training.state import initialise

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


def test_a_recipe_of_new_data_computes_as_the_release(tmp_path):
    """Whose classes see one another in the multi-label block; new data's do not."""
    config = config_of()
    with config.unlocked():
        config.model.multilabel_head.classes_apart = True
    result = convert(config, str(MLSEG), str(tmp_path / "run"))
    assert any("classes_apart becomes False" in note for note in result.notes)
    converted = load_config(str(tmp_path / "run"))
    assert not converted.model.multilabel_head.classes_apart


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
def test_back_again_is_bitwise(converted, tmp_path, monkeypatch, to):
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
    nowhere = tmp_path / "not_there" / "x"
    fails = lambda arrays, path, **more: save_file(arrays, nowhere, **more)  # noqa: E731
    monkeypatch.setattr(export, "save_file", fails)
    other = tmp_path / "other.safetensors"
    for path, why in ((output, "exists already"), (other, "cannot be written")):
        sentence = said(export_weights, str(workdir), str(path), to, "latest")
        assert f"{path} {why}" in sentence


# -------------------------------------------------------------------- what is refused

LOST = {
    "model.multilabel_head.name": "segmentation_logits",
    "model.multilabel_head.classes_apart": True,
    "model.decoder.classes_apart": True,
    "model.rank_norm.kind": "shared",
    "model.rank_norm.unbiased_variance": True,
    "model.presence_prior.kind": "ranks",
    "model.backbone.positions": "rotary",
    "model.backbone.position_resize": "antialiased_bicubic",
    "model.backbone.taps": (0,),
    "model.decoder.name": "linear",
    "selection.name": "complete",
    "selection.minimum_score": 0.5,
    "selection.cumulative": 0.5,
    "loss.pixel": "nearest_classes",
}


@pytest.mark.parametrize("key", LOST)
def test_what_names_of_the_release_cannot_hold(key):
    """No parameter says it, and its code has it otherwise."""
    config = config_of()
    config.update_from_flattened_dict({key: LOST[key]})
    found = said(export.STATE_DICTS["mmseg"], config, {})
    assert f"{key} is {LOST[key]!r}, and there is no Segmenter with that" in found


def test_heads_that_own_their_class_embeddings_cannot_hold_the_backbones():
    config = config_of()
    config.model.class_embeddings.in_backbone = True
    config.model.multilabel_head.name = "global_pooling"
    found = said(export.STATE_DICTS["mmseg"], config, {})
    assert "model.class_embeddings.in_backbone is True, and there is no" in found


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


# ---------------------------------------------------------------- stacked parameters


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


def config_from(init, part="", **kwargs):
    config = config_of(**kwargs)
    with config.unlocked():
        config.init, config.init_part = str(init), part
        config.optimizer.ema_decay = 0.9
    return config


def test_training_starts_from_a_directory_or_a_file(converted, caplog):
    workdir, _ = converted
    parameters = parameters_of(workdir)
    config = config_from(workdir)
    before = initialise(config, 11, make_mesh(config))
    after = start_from(config, 11, before)
    for path, array in parameters.items():
        np.testing.assert_array_equal(after["params"][path], array)
        np.testing.assert_array_equal(after["ema"][path], array)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    shardings = jax.tree.map(lambda x: x.sharding, (before, after))
    assert shardings[0] == shardings[1]
    after = start_from(config_from(MLSEG, "backbone/"), 11, before)
    for path, array in after["params"].items():
        source = parameters if path.startswith("backbone/") else before["params"]
        np.testing.assert_array_equal(array, source[path])
    # What no array says: whether classes see one another.
    for init in (workdir, MLSEG):
        for part in ("", "backbone/"):
            apart = config_from(init, part)
            for place in ("multilabel_head", "decoder"):
                apart.model[place].classes_apart = True
            caplog.clear()
            start_from(apart, 11, before)
            for place in ("multilabel_head", "decoder"):
                sentence = f"{place}.classes_apart becomes False"
                assert (sentence in caplog.text) == (part == "")
    sentence = said(start_from, config_from(MLSEG, "spine"), 11, {})
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
