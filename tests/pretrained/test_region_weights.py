"""Mask2Former and MaskFormer of others: their names become the tables' (masks.md 8)."""

import json
import pickle
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from weight_files import config_of, random_arrays

from configs import mask2former, maskformer
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import regions
from mlseg_jax.pretrained.convert import convert
from mlseg_jax.pretrained.export import STATE_DICTS, export_weights
from mlseg_jax.pretrained.formats import FORMATS, recognise
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.read import WeightFile, read_weights
from mlseg_jax.pretrained.suggest import suggest

pytestmark = pytest.mark.usefixtures("quick_compiles")

# The tables' names and those of the sources, of which only the last has the classes and
# no-object as one.
DETECTRON2 = (
    (r"^pixels\.level_embed", "pixels.transformer.level_embed"),
    (r"^pixels\.layers", "pixels.transformer.encoder.layers"),
    (r"^pixels\.input_projections", "pixels.input_proj"),
    (r"^(pixels\.(adapter|layer)_\d)\.0\.", r"\1."),
    (r"^(pixels\.(adapter|layer)_\d)\.1\.", r"\1.norm."),
    (r"^pixels\.", "sem_seg_head.pixel_decoder."),
    (r"^queries\.features", "queries.query_feat.weight"),
    (r"^queries\.positions", "queries.query_embed.weight"),
    (r"^queries\.level_embed", "queries.level_embed.weight"),
    (r"^queries\.mask_embed", "queries.mask_embed.layers"),
    (r"^classes", "queries.class_embed"),
    (r"^queries\.", "sem_seg_head.predictor."),
    (r"^backbone\.stem\.0", "backbone.stem.conv1"),
    (r"^backbone\.stem\.1", "backbone.stem.conv1.norm"),
    (r"^(backbone\.layer.*)\.bn(\d)", r"\1.conv\2.norm"),
    (r"^(backbone\.layer.*)\.downsample\.0", r"\1.shortcut"),
    (r"^(backbone\.layer.*)\.downsample\.1", r"\1.shortcut.norm"),
    *((rf"^backbone\.layer{i}", f"backbone.res{i + 1}") for i in range(1, 5)),
)
MASK2FORMER = ((r"predictor\.norm", "predictor.decoder_norm"),)
MASKFORMER = ((r"predictor\.norm", "predictor.transformer.decoder.norm"),)
# Before the second version of the module, and the first name of the queries.
OLD = (
    (r"head\.pixel_decoder\.", "head."),
    (r"query_feat\.", "static_query."),
)
HUGGING_FACE = (
    (r"^backbone\.", "model.pixel_level_module.encoder."),
    (r"^pixels\.mask_features", "pixels.mask_projection"),
    (r"^pixels\.layers", "pixels.encoder.layers"),
    (r"^pixels\.", "model.pixel_level_module.decoder."),
    (r"^queries\.layers", "queries.decoder.layers"),
    (r"^queries\.norm", "queries.decoder.layernorm"),
    (r"^queries\.positions", "queries.queries_embedder.weight"),
    (r"^queries\.features", "queries.queries_features.weight"),
    (r"^queries\.level_embed", "queries.level_embed.weight"),
    (r"^classes", "class_predictor"),
)
HF_MASK2FORMER = (
    (r"^queries\.mask_embed\.(\d)",
     r"queries.decoder.mask_predictor.mask_embedder.\1.0"),
    (r"(decoder\.layers.*self_attn)\.o_proj", r"\1.out_proj"),
)  # fmt: skip
HF_MASKFORMER = (
    (r"^queries\.mask_embed\.(\d)", r"mask_embedder.\1.0"),
    (r"(encoder|hidden_states_norms\.)stage1", r"\g<1>0"),
    (r"(hidden_states_norms\.)stage2", r"\g<1>1"),
    (r"(hidden_states_norms\.)stage3", r"\g<1>2"),
)
HF_RESNET = (
    (r"^(backbone\.)stem\.0", r"\1embedder.embedder.convolution"),
    (r"^(backbone\.)stem\.1", r"\1embedder.embedder.normalization"),
    (r"^(backbone\..*)downsample\.0", r"\1shortcut.convolution"),
    (r"^(backbone\..*)downsample\.1", r"\1shortcut.normalization"),
    *((rf"^(backbone\..*)conv{i + 1}", rf"\1layer.{i}.convolution") for i in range(3)),
    *((rf"^(backbone\..*)bn{i + 1}", rf"\1layer.{i}.normalization") for i in range(3)),
    *(
        (rf"^(backbone\.)layer{i + 1}", rf"\1encoder.stages.{i}.layers")
        for i in range(4)
    ),
)
QUERIES = (r"^queries\.", "model.transformer_module.")

CASES = {
    # key of FORMATS: recipe, selection, backbone, changes of names
    "mask2former": (mask2former, "top_k", "swin_demo", DETECTRON2 + MASK2FORMER),
    "mask2former, old": (
        mask2former, "complete", "resnet_demo", DETECTRON2 + MASK2FORMER + OLD
    ),
    "maskformer": (maskformer, "complete", "resnet_demo", DETECTRON2 + MASKFORMER),
    "hugging_face_mask2former": (
        mask2former, "complete", "swin_demo", HF_MASK2FORMER + HUGGING_FACE + (QUERIES,)
    ),
    "hugging_face_maskformer": (
        maskformer, "complete", "swin_demo", HF_MASKFORMER + HUGGING_FACE + (QUERIES,)
    ),
    "hugging_face_maskformer, ResNet": (
        *(maskformer, "complete", "resnet50"),
        HF_RESNET + HF_MASKFORMER[:1] + HUGGING_FACE + (QUERIES,),
    ),
}  # fmt: skip


def renamed(arrays, changes):
    found = {}
    for name, array in arrays.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        found[name] = array
    return found


@pytest.mark.parametrize("case", CASES)
def test_names_of_files(case):
    recipe, selection, backbone, changes = CASES[case]
    key = case.partition(",")[0]
    config = recipe.get_config(
        f"dataset=sign_scenes,backbone={backbone},selection={selection}"
    )
    with config.unlocked():
        config.data.num_classes = config.selection.k = 11
        config.model.decoder.image_layer = config.model.decoder.depth = 3
        config.model.pixel_decoder.depth = 1
        config.model.pixel_decoder.num_groups = 32
        if selection == "top_k":
            config.model.multilabel_head.num_heads = 1
        if backbone == "swin_demo":
            config.model.backbone.update(embed_dim=4, num_heads=(1, 1, 2, 2))
        else:
            config.model.backbone.update(embed_dim=2, depths=(1, 2, 1, 1), stem="plain")
    ours, theirs = random_arrays(config, FORMATS[key].rows)
    for leaf in ("weight", "bias"):
        own = theirs.pop(f"no_object.{leaf}", None)
        if own is not None:
            theirs[f"classes.{leaf}"] = np.concatenate([theirs[f"classes.{leaf}"], own])
    theirs = renamed(theirs, changes)
    theirs["criterion.empty_weight"] = np.zeros(12, np.float32)
    found, known, arrays = recognise(WeightFile("x", "", theirs))
    assert found == key
    assert known.num_classes(arrays) == 11
    loaded = load_arrays(config, 11, known, arrays)
    assert set(loaded.arrays) == set(ours)
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)
    # And back again.
    to = "hugging_face" if "hugging_face" in key else "detectron2"
    exported = STATE_DICTS[to](config, ours)
    if key == case and to == "detectron2":
        assert set(exported) == set(theirs)
    if to == "hugging_face":
        parts = ("transformer_module",) + ("encoder.",) * backbone.startswith("resnet")
        assert {n for n in exported if any(part in n for part in parts)} == {
            n.replace("o_proj", "out_proj")
            for n in theirs
            if any(part in n for part in parts)
        } | {
            n.replace("running_mean", "num_batches_tracked")
            for n in theirs
            if n.endswith("running_mean")
        }
    found, known, arrays = recognise(WeightFile("x", "", exported))
    assert found == key
    loaded = load_arrays(config, 11, known, arrays)
    for path, array in ours.items():
        np.testing.assert_array_equal(loaded.arrays[path], array)


FIT = (
    ("detectron2", mask2former,
     "dataset=ade20k,backbone=swin_t,task=semantic,selection=top_k"),
    ("detectron2", maskformer,
     "dataset=coco_panoptic,backbone=resnet50,task=panoptic,selection=complete"),
    ("detectron2", maskformer,
     "dataset=coco_panoptic,backbone=resnet50,task=panoptic,selection=complete "
     "--config.model.pixel_decoder.name=fpn"),
    ("hugging_face", mask2former,
     "dataset=coco_json,backbone=swin_t,task=instance,selection=complete"),
    # Names of the video models are those of the image models.
    ("detectron2", mask2former,
     "dataset=vspw,backbone=swin_t,task=video_semantic,selection=top_k"),
)  # fmt: skip


@pytest.mark.parametrize("to, recipe, argument", FIT)
def test_the_configuration_that_fits(to, recipe, argument):
    config = recipe.get_config(argument.partition(" ")[0])
    if "decoder.name=fpn" in argument:
        config.model.pixel_decoder.name = "fpn"
    num_classes = config.data.num_classes or 80
    shapes = FunctionalModel.build(config, num_classes).shapes
    zero = np.float32(0)
    ours = {path: np.broadcast_to(zero, x.shape) for path, x in shapes.items()}
    theirs = STATE_DICTS[to](config, ours)
    name = recipe.__name__.rpartition(".")[2]
    expected = f"--config=configs/{name}.py:{argument}"
    assert suggest(WeightFile("x", "", theirs)) == expected


def test_a_pickle_becomes_a_run_and_a_file_again(tmp_path):
    """Of numpy's arrays, under the names of the authors' release."""
    config = mask2former.get_config("dataset=sign_scenes,backbone=swin_demo")
    with config.unlocked():
        config.model.decoder.update(image_layer=3, depth=3, embed_dim=32, num_heads=2)
        config.model.pixel_decoder.update(depth=1, embed_dim=32, num_groups=32)
        config.model.pixel_decoder.num_heads = 2
        config.model.multilabel_head.update(embed_dim=64, num_heads=1)
        config.model.backbone.update(embed_dim=4, num_heads=(1, 1, 2, 2))
    ours, _ = random_arrays(config, FORMATS["mask2former"].rows, 40)
    theirs = STATE_DICTS["detectron2"](config, ours)
    # Detectron2 leaves out, with a warning, what has another shape than its own.
    assert theirs["ml_head.cls_emb"].shape == (1, 40, 64)
    path, output = tmp_path / "x.pkl", tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"model": theirs, "__author__": "x"}))
    workdir = str(tmp_path / "run")
    converted = convert(config, str(path), workdir)
    assert "Mask2Former" in converted.title
    export_weights(workdir, str(output), "detectron2", "latest")
    export_weights(workdir, str(tmp_path / "y.pkl"), "detectron2", "latest")
    # As Detectron2's checkpointer reads it.
    raw = pickle.loads((tmp_path / "y.pkl").read_bytes(), encoding="latin1")
    assert b"multiarray" not in (tmp_path / "y.pkl").read_bytes()
    read = read_weights(output).arrays, read_weights(tmp_path / "y.pkl").arrays
    for back in (*read, raw["model"]):
        assert set(back) == set(theirs) and raw["__author__"]
        for name, array in theirs.items():
            assert type(back[name]) is np.ndarray
            np.testing.assert_array_equal(back[name], array)
    with pytest.raises(UserError, match="multilabel_head.name is 'projected_encoder'"):
        STATE_DICTS["hugging_face"](config, ours)
    with pytest.raises(UserError, match="num_groups is 8"):
        config.model.pixel_decoder.num_groups = 8
        STATE_DICTS["detectron2"](config, ours)
    with pytest.raises(UserError, match="model.decoder.name is 'segmenter'"):
        STATE_DICTS["detectron2"](config_of(), {})


EXACT = {
    "model.multilabel_head.classes_apart": True,
    "model.multilabel_head.share_embeddings": True,
    "model.multilabel_head.downsample": 4,
    "model.multilabel_head.num_heads": 4,
    "selection.minimum_score": 0.5,
    "selection.cumulative": 0.5,
    "model.multilabel_head.name": "segmentation_logits",
    "model.decoder.image": "pixels",
    "model.decoder.image_layer": 2,
    "model.decoder.cosine": False,
    "model.rank_norm.kind": "shared",
    "model.rank_norm.unbiased_variance": True,
    "model.backbone.num_norms": 1,
    "model.backbone.shift_small_maps": False,
    "model.pixel_decoder.num_heads": 2,
    "model.pixel_decoder.num_points": 2,
    "selection.name": "complete",
}
PLAIN = {
    "model.decoder.cosine": True,
    "model.rank_norm.kind": "shared",
    "model.backbone.num_norms": 1,
    "model.pixel_decoder.num_heads": 2,
    "task": "video_semantic",
}
LOST = (
    *(("detectron2", "top_k", *item) for item in EXACT.items()),
    *(("hugging_face", "complete", *item) for item in PLAIN.items()),
    ("detectron2", "complete", "model.rank_norm.kind", "temperature"),
    ("detectron2", "complete", "model.decoder.cosine", True),
    ("detectron2", "complete", "model.backbone.stem", "deep"),
)


@pytest.mark.parametrize("to, selection, key, value", LOST)
def test_what_names_of_others_cannot_hold(to, selection, key, value):
    """No parameter says it, and their code has it otherwise."""
    backbone = "resnet50" if "stem" in key else "swin_t"
    config = mask2former.get_config(f"backbone={backbone},selection={selection}")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key} is {value!r}, and there is no mask2f"):
        STATE_DICTS[to](config, {})


def test_there_is_no_code_of_maskformer_with_label_selection():
    config = maskformer.get_config("backbone=swin_t")
    with pytest.raises(UserError, match="is 'projected_encoder', and there is no mask"):
        STATE_DICTS["detectron2"](config, {})


def test_a_folder_for_transformers(tmp_path):
    """Weights and ``config.json``; tests/parity/live_region_exports.py loads one."""
    config = maskformer.get_config("dataset=sign_scenes,selection=complete")
    with config.unlocked():
        config.model.decoder.update(depth=1, embed_dim=32, num_heads=2, image_layer=0)
        config.model.pixel_decoder.update(embed_dim=32, num_groups=32)
        config.model.backbone.update(embed_dim=4, num_heads=(1, 1, 2, 2))
    rows = FORMATS["hugging_face_maskformer"].rows
    ours, _ = random_arrays(config, rows, 40)
    save_file(ours, tmp_path / "x.safetensors", metadata={"format": "mlseg_jax"})
    workdir, folder = str(tmp_path / "run"), tmp_path / "theirs"
    convert(config, str(tmp_path / "x.safetensors"), workdir)
    output = str(folder / "model.safetensors")
    export_weights(workdir, output, "hugging_face", "latest")
    settings = json.loads((folder / "config.json").read_text())
    assert settings["decoder_config"]["decoder_layers"] == 1
    assert settings["backbone_config"]["window_size"] == 6
    # With it transformers' MaskFormer fails in evaluation.
    assert "use_auxiliary_loss" not in settings
    assert len(settings["id2label"]) == 40
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="config.json exists already"):
        export_weights(workdir, output, "hugging_face", "latest")


def test_first_generation_of_transformers():
    """Names that files have and modules of its fifth version have not."""
    older = {
        "model.pixel_level_module.encoder.encoder.layers.0.blocks.1.attention.self."
        "query.weight": "backbone.encoder.layers.0.blocks.1.attention.q_proj.weight",
        "model.pixel_level_module.encoder.model.encoder.layers.0.blocks.1.output.dense."
        "bias": "backbone.encoder.layers.0.blocks.1.mlp.fc2.bias",
        "model.transformer_module.decoder.layers.2.encoder_attn.out_proj.weight":
        "queries.layers.2.encoder_attn.o_proj.weight",
        "model.transformer_module.decoder.layers.2.mlp.fc1.bias":
        "queries.layers.2.fc1.bias",
    }  # fmt: skip
    arrays = dict.fromkeys(older, np.zeros(2))
    assert set(regions.hugging_face_names(arrays)) == set(older.values())
