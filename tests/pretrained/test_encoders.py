"""DINOv3 and EoMT of all sources: their names, their constants, their differences."""

import re

import numpy as np
import pytest
from shrink import use_tiny_backbone, use_tiny_decoder
from weight_files import random_arrays, said, weightless

from configs import encoder_only, eomt, linear
from mlseg_jax.models.layers.resize import bicubic_matrix
from mlseg_jax.pretrained import beit, dinov3
from mlseg_jax.pretrained import eomt as tables
from mlseg_jax.pretrained.convert import convert
from mlseg_jax.pretrained.export import STATE_DICTS
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.initialise import start_from
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.pretrained.regions import without_no_object
from mlseg_jax.pretrained.suggest import suggest

DINOV3 = dict(
    positions="rotary", key_bias=False, num_registers=4, layer_scale=1.0,
    image_size=(4, 4), depth=2,
)  # fmt: skip


def make_config(recipe, argument, **backbone):
    config = recipe.get_config(argument)
    use_tiny_backbone(config, "vit", **backbone)
    use_tiny_decoder(config, recipe.__name__.split(".")[-1], depth=1)
    with config.unlocked():
        config.data.num_classes = 11
        if "cosine" in config.model.decoder:
            config.model.decoder.cosine = False
        if config.model.multilabel_head.name != "none":
            config.model.multilabel_head.update(embed_dim=16, num_heads=2)
    return config


def renamed(arrays, changes):
    found = {}
    for name, array in arrays.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        found[name] = array
    return found


def masked_bias(arrays):
    """Biases of queries, keys and values as one; that of keys is under a mask."""
    found = dict(arrays)
    for name in [n for n in arrays if n.endswith("q_bias")]:
        start = name.removesuffix("q_bias")
        query, value = found.pop(name), found.pop(f"{start}v_bias")
        found[f"{start}qkv.bias"] = np.concatenate([query, 9 + query, value])
        found[f"{start}qkv.bias_mask"] = np.zeros(3 * len(query), np.float32)
    return found


TIMM = (
    (r"^storage_tokens", "reg_token"),
    (r"\.ls([12])\.gamma", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
FILES = [
    (dinov3.own, False, "dinov3", masked_bias),
    (dinov3.own, True, "dinov3", lambda arrays: renamed(arrays, TIMM)),
    (dinov3.hugging_face, True, "hugging_face_dinov3",
     lambda arrays: renamed(arrays, [(r"^layers\.", "model.layer.")])),
]  # fmt: skip


@pytest.mark.parametrize("rows, gated, key, change", FILES)
def test_files_of_dinov3(rows, gated, key, change):
    config = make_config(
        encoder_only, "dataset=sign_scenes", **DINOV3, gated=gated, norm_epsilon=1e-5
    )
    ours, theirs = random_arrays(config, rows, part="backbone/")
    more = {"mask_token": np.zeros((1, 16)), "rope_embed.periods": np.zeros(2)}
    found, source, arrays = recognise(WeightFile("x", "", change(theirs) | more))
    assert found == key and "DINOv3 License" in source.licence
    loaded = load_arrays(config, 11, source, arrays)
    assert {path for path in loaded.arrays} == set(ours)
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)
    assert "mask_token" in loaded.dropped


@pytest.mark.parametrize(
    "key, value", [("model.decoder.cosine", True), ("model.rank_norm.kind", "shared"),
                   ("model.backbone.key_bias", False),
                   ("model.backbone.image_size", (32, 48)),
                   ("model.backbone.positions", "table")],
)  # fmt: skip
def test_what_eomt_of_transformers_cannot_hold(key, value):
    config = eomt.get_config("dataset=ade20k,backbone=dinov2_s14_reg")
    config.update_from_flattened_dict({key: value})
    sentence = said(STATE_DICTS["hugging_face"], config, {})
    assert f"{key} is {value!r}, and there is no EoMT with that" in sentence


AUTHORS = (
    (r"^query\.", "network.q."),
    (r"^class_predictor\.", "network.class_head."),
    (r"^mask_head\.fc1", "network.mask_head.0"),
    (r"^mask_head\.fc2", "network.mask_head.2"),
    (r"^mask_head\.fc3", "network.mask_head.4"),
    (r"^upscale_block\.block\.", "network.upscale."),
    (r"(network\.upscale\.\d)\.layernorm2d", r"\1.norm"),
    (r"^layers\.", "network.encoder.backbone.blocks."),
    (r"^layernorm\.", "network.encoder.backbone.norm."),
)
AUTHORS_STEMS = {
    "dinov2": (
        (r"^embeddings\.cls_token", "network.encoder.backbone.cls_token"),
        (r"^embeddings\.register_tokens", "network.encoder.backbone.reg_token"),
        (r"^embeddings\.patch_embeddings\.projection",
         "network.encoder.backbone.patch_embed.proj"),
    ),
    # timm's place for it holds the whole module of transformers.
    "dinov3": ((r"^embeddings\.", "network.encoder.backbone.patch_embed."),),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_files_of_eomt(kind, tmp_path):
    """The authors' names; on DINOv3 the encoder is a difference from it."""
    is_dinov3 = kind == "dinov3"
    own = DINOV3 if is_dinov3 else DINOV3 | {"positions": "patches", "key_bias": True}
    config = make_config(eomt, "dataset=sign_scenes", **own, norm_epsilon=1e-5)
    ours, _ = random_arrays(config, tables.hugging_face)
    theirs = STATE_DICTS["hugging_face"](config, ours)
    again = without_no_object(
        {re.sub("^class_predictor", "classes", n): x for n, x in theirs.items()}
    )
    assert again["classes.weight"].shape == (11, 16)
    arrays = {name: x for name, x in theirs.items() if name != "criterion.empty_weight"}
    base = {}
    if is_dinov3:
        rng = np.random.default_rng(1)
        for name in [n for n in arrays if n.startswith(("emb", "layers", "layernorm"))]:
            base[name] = rng.standard_normal(arrays[name].shape).astype(np.float32)
            arrays[name] = arrays[name] - base[name]
        base = renamed(base, [(r"^layers\.", "layer."), (r"^layernorm\.", "norm.")])
        np.savez(tmp_path / "base.npz", **base)
    else:
        arrays = fused(arrays)
        table = arrays.pop("embeddings.position_embeddings.weight")
        arrays["network.encoder.backbone.pos_embed"] = table[None]
    arrays = renamed(arrays, AUTHORS + AUTHORS_STEMS[kind])
    found, source, mapped = recognise(WeightFile("x", "", arrays))
    assert found == "eomt"
    if is_dinov3:
        mapped = tables.add_base(mapped, dinov3.hugging_face_names(base))
    loaded = load_arrays(config, 11, source, mapped)
    assert not loaded.fresh
    for path, array in ours.items():
        np.testing.assert_allclose(loaded.arrays[path], array, atol=1e-5)
    np.savez(tmp_path / "x.npz", **arrays)
    sentence = said(
        convert, config, str(tmp_path / "x.npz"), str(tmp_path / "w"),
        base=str(tmp_path / "x.npz"),
    )  # fmt: skip
    assert "must be DINOv3's file" in sentence
    base = str(tmp_path / "base.npz") if is_dinov3 else None
    convert(config, str(tmp_path / "x.npz"), str(tmp_path / "w"), base=base)
    card = (tmp_path / "w" / "model_card.md").read_text()
    assert ("DINOv3 License" in card) == is_dinov3
    if is_dinov3:
        refuse_differences(config, tmp_path, arrays)


def refuse_differences(config, tmp_path, arrays):
    """Without a base; and with norms as trained ones are, it is one."""
    file, workdir = str(tmp_path / "x.npz"), str(tmp_path / "v")
    assert "with --base" in said(convert, config, file, workdir)
    config.init = file
    assert "convert it first" in said(start_from, config, 11, {})
    norms = {name: 0 * x + 0.4 for name, x in arrays.items() if "norm" in name}
    _, _, mapped = recognise(WeightFile("x", "", arrays | norms))
    assert not tables.is_difference(mapped)


def fused(arrays):
    """As timm has it."""
    found = dict(arrays)
    for name in [n for n in arrays if ".attention.q_proj." in n]:
        start, _, kind = name.partition(".attention.q_proj.")
        parts = [found.pop(f"{start}.attention.{x}_proj.{kind}") for x in "qkv"]
        found[f"{start}.attn.qkv.{kind}"] = np.concatenate(parts)
    changes = [
        (r"\.attention\.out_proj\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1", r".ls\1.gamma"),
    ]
    return renamed(found, changes)


SUGGESTED = [
    (linear, "linear", "dataset=ade20k,backbone=dinov3_s16plus", dinov3.own),
    (
        eomt, "eomt", "dataset=ade20k_panoptic,backbone=dinov2_s14_reg,task=panoptic,"
        "side=640", tables.hugging_face,
    ),
]  # fmt: skip


@pytest.mark.parametrize("module, file, argument, rows", SUGGESTED)
def test_what_fits_is_suggested(module, file, argument, rows):
    config = module.get_config(argument)
    part = "" if module is eomt else "backbone/"
    found = suggest(theirs_of(config, rows, part))
    assert found == f"--config=configs/{file}.py:{argument}"


def theirs_of(config, rows, part):
    file = weightless(config, rows, part)
    if part:
        return file
    arrays = dict(file.arrays)
    for kind in ("weight", "bias"):
        own = [arrays.pop(f"{name}.{kind}") for name in ("classes", "no_object")]
        arrays[f"class_predictor.{kind}"] = np.concatenate(own)
    return WeightFile("x", "", arrays)


def test_dinov2_for_eomt():
    """Patches of another size, and a position that the class token takes along."""
    sizes = {"num_registers": 4, "layer_scale": 1.0, "depth": 1}
    theirs = make_config(
        linear, "dataset=sign_scenes", **sizes, image_size=(21, 21), patch_size=7
    )
    config = make_config(
        eomt, "dataset=sign_scenes", **sizes, image_size=(32, 32), patch_size=8,
        positions="patches",
    )  # fmt: skip
    old, arrays = random_arrays(theirs, beit.dinov2, part="backbone/")
    _, source, arrays = recognise(WeightFile("x", "", arrays))
    loaded = load_arrays(config, 11, source, arrays)
    assert sum("resampled from 7 to 8" in note for note in loaded.notes) == 1
    assert sum("from 3x3 to 4x4" in note for note in loaded.notes) == 1
    new = loaded.arrays
    table = old["backbone/position_table"]
    token = old["backbone/class_token"] + table[0]
    np.testing.assert_allclose(new["backbone/class_token"], token, rtol=1e-6)
    assert new["backbone/position_table"].shape == (16, 16)
    # A patch, and the same enlarged, have one embedding.
    patch = np.random.default_rng(0).standard_normal((7, 7, 3))
    enlarge = np.asarray(bicubic_matrix(8, 7, antialias=True), np.float64)
    large = np.einsum("Yy,Xx,yxc->YXc", enlarge, enlarge, patch)
    kernels = (x["backbone/patch_projection/kernel"] for x in (old, new))
    small, same = (
        x.ravel() @ kernel for x, kernel in zip((patch, large), kernels, strict=True)
    )
    np.testing.assert_allclose(same, small, atol=1e-4)


def test_timm_dinov2_with_registers():
    """No position for the class token; keys have a bias. It is not DINOv3."""
    config = make_config(
        linear, "dataset=sign_scenes", num_registers=4, layer_scale=1.0, depth=1,
        image_size=(32, 32), patch_size=8,
    )  # fmt: skip
    ours, arrays = random_arrays(config, beit.dinov2_own, part="backbone/")
    arrays["reg_token"] = arrays.pop("register_tokens")
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    found, source, arrays = recognise(WeightFile("x", "", arrays))
    assert found == "dinov2" and "DINOv3" not in source.licence
    loaded = load_arrays(config, 11, source, arrays)
    assert set(loaded.arrays) == set(ours)
    ours["backbone/position_table"][0] = 0.0
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)
