"""Mask2Former and MaskFormer of others: their names become the tables' (masks.md 8)."""

import re

import numpy as np
import pytest
from weight_files import random_arrays

from configs import mask2former, maskformer
from mlseg_jax.pretrained import regions
from mlseg_jax.pretrained.formats import FORMATS, recognise
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.read import WeightFile

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
        config.model.decoder.image_layer = 0
        config.model.decoder.depth = config.model.pixel_decoder.depth = 1
        if backbone == "swin_demo":
            config.model.backbone.update(embed_dim=4, num_heads=(1, 1, 2, 2))
        else:
            config.model.backbone.update(embed_dim=2)
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
