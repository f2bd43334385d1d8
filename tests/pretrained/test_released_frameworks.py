"""The release's DeepLabv3 and UPerNet, by the names in its files; what is suggested.

The names are the release's own, written down here once more: the arrays are those of
the golden whole models (tests/parity), whose losses and gradients ours are held to.
"""

import ast
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from weight_files import parameters_of, random_arrays, weightless

from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import release, segmenter
from mlseg_jax.pretrained.convert import convert, suggestion
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.pretrained.read import WeightFile
from mlseg_jax.pretrained.suggest import suggest
from mlseg_jax.settings import recipes

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
import test_whole_models as parity  # noqa: E402
from test_golden import part  # noqa: E402

CLASSES = 11

HEAD_NAMES = (
    (r"head\.cls_bias_emb", "decode_head.cls_bias_emb"),
    (r"head\.cls_emb", "decode_head.cls_emb"),
    (r"head\.own_emb", "decode_head.img_cls_head.cls_emb"),
    (r"head\.mask_norm\.", "decode_head.norm."),
    (r"head\.ml_fc\.", "decode_head.img_cls_head.fc."),
    (r"head\.norm\.", "decode_head.img_cls_head.norm."),
    (r"head\.block\.", "decode_head.img_cls_head.block."),
    (r"head\.(depth|point)wise\.",
     r"decode_head.img_cls_head.proj_dec.\1wise_conv.conv."),
)  # fmt: skip

BEIT_NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"layers\.(\d+)\.", r"blocks.\1."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.([qv])_proj\.bias", r"attn.\1_bias"),
    (r"attention\.o_proj", "attn.proj"),
    (r"relative_position_bias\.", "attn."),
    (r"lambda_([12])", r"gamma_\1"),
    (r"fpn\.fpn1\.conv_transpose1", "fpn1.0"),
    (r"fpn\.fpn1\.normalization", "fpn1.1"),
    (r"fpn\.fpn1\.conv_transpose2", "fpn1.3"),
    (r"fpn\.fpn2", "fpn2.0"),
)


def released(case, arrays):
    """A golden model's arrays by the release's names, with all that its files have."""
    found, apart = {}, {}
    for name, array in arrays.items():
        if name.startswith("head."):
            for old, new in HEAD_NAMES:
                name, count = re.subn(f"^{old}", new, name)
                if count:
                    break
            rows = name.endswith(("decode_head.cls_emb", "img_cls_head.cls_emb"))
            array = array[None] if rows else array
            array = array.T if name.endswith("cls_bias_emb") else array
        elif name.startswith("backbone.") and case == "mlseg_beit":
            own = name.removeprefix("backbone.").removeprefix("beit.")
            match = re.fullmatch(r"(layers\.\d+\.)attention\.([qkv])_proj\.weight", own)
            if match:
                apart.setdefault(match[1], {})[match[2]] = array
                continue
            name = f"backbone.{beit_name(own)}"
        elif not name.startswith(("backbone.", "decode_head.", "auxiliary_head.")):
            # ResNet's names have no prefix where its golden file was made.
            name = f"backbone.{name}"
        found[name] = array
    for start, parts in apart.items():
        name = f"backbone.{beit_name(start)}attn.qkv.weight"
        found[name] = np.concatenate([parts[key] for key in "qkv"])
    counters = {
        re.sub(r"running_mean$", "num_batches_tracked", name): np.int64(7)
        for name in found
        if name.endswith("running_mean")
    }
    indices = {
        name.replace("_bias_table", "_index"): np.zeros((4, 4), np.int64)
        for name in found
        if name.endswith("relative_position_bias_table")
    }
    return found | counters | indices


def beit_name(name):
    for old, new in BEIT_NAMES:
        name = re.sub(old, new, name)
    return name


def set_up(case):
    """The configuration, a released file, and our arrays by the parity test's table."""
    golden = part(parity.load(case), "param")
    config, rows, rename = parity.CASES[case]()
    config.model.auxiliary_head.update(level=-2, embed_dim=4)
    config.data.num_classes = CLASSES
    model = FunctionalModel.build(config, CLASSES)
    shapes = {path: leaf.shape for path, leaf in model.shapes.items()}
    expected = to_ours(rename(golden), rows, shapes).arrays
    return config, released(case, golden), expected


CASES = {
    "mlseg_deeplab": "release_deeplabv3",
    "mlseg_upernet": "release_swin",
    "mlseg_beit": "release_beit",
}


@pytest.mark.parametrize("case, key", CASES.items())
def test_released_names(tmp_path, case, key):
    """Every array is used, and becomes what the golden model's becomes."""
    config, theirs, expected = set_up(case)
    found, source, arrays = recognise(WeightFile("x.pth", "", theirs))
    assert found == key and source.num_classes(arrays) == CLASSES
    loaded = load_arrays(config, CLASSES, source, arrays)
    assert not loaded.fresh and set(loaded.arrays) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(loaded.arrays[path], array.astype(np.float32))
    constants = ("num_batches_tracked", "relative_position_index")
    assert all(name.endswith(constants) for name in loaded.dropped)
    # A file with a name too few or too many is still known, and refused.
    for name in ("decode_head.cls_emb", next(iter(theirs))):
        rest = {k: x for k, x in theirs.items() if k != name}
        assert recognise(WeightFile("x.pth", "", rest))[0] == key


@pytest.mark.parametrize("case", CASES)
def test_other_classes_start_anew(case):
    config, theirs, _ = set_up(case)
    _, source, arrays = recognise(WeightFile("x.pth", "", theirs))
    loaded = load_arrays(config, 7, source, arrays)
    assert any("is of 11 classes and" in note for note in loaded.notes)
    assert "multilabel_head/encoder/classifier/weight" in loaded.fresh
    assert "class_biases" in loaded.fresh


def test_a_released_file_becomes_a_work_directory(tmp_path):
    config, theirs, expected = set_up("mlseg_deeplab")
    np.savez(tmp_path / "x.npz", **theirs)
    result = convert(config, str(tmp_path / "x.npz"), str(tmp_path / "w"))
    assert "DeepLabv3" in result.title
    found = parameters_of(tmp_path / "w")
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array.astype(np.float32))


# ------------------------------------------------------------------------- suggestions


def configuration_of(text):
    """What a shell makes of the words, and the program of its flags."""
    first, *flags = shlex.split(text)
    path, _, argument = first.removeprefix("--config=").partition(":")
    recipe = recipes.get(pathlib.PurePath(path).stem)
    config = recipe.get_config(argument)
    for flag in flags:
        key, _, value = flag.removeprefix("--config.").partition("=")
        config.update_from_flattened_dict({key: ast.literal_eval(value)})
    return config


SIZES = [
    ("deeplabv3", "dataset=coco_stuff,selection=top_k", {}, release.deeplabv3),
    ("deeplabv3", "dataset=ade20k,backbone=resnet50_v1c,selection=complete", {},
     release.deeplabv3),
    ("upernet", "dataset=ade20k,backbone=swin_b,selection=top_k",
     {"selection.k": 30, "model.backbone.window_size": 7}, release.swin_upernet),
    ("upernet", "dataset=ade20k,backbone=beit_l16,selection=top_k",
     {"model.backbone.image_size": (512, 512)}, release.beit_upernet),
    ("upernet", "dataset=coco_stuff,backbone=beit_b16,selection=complete", {},
     release.beit_upernet),
    ("segmenter", "dataset=ade20k,selection=complete,decoder=encnet",
     {"model.decoder.num_codes": 32}, segmenter.release),
    ("segmenter", "dataset=coco_stuff,selection=complete,decoder=essnet", {},
     segmenter.release),
    ("segmenter", "dataset=ade20k,selection=top_k",
     {"model.backbone.image_size": (640, 640)}, segmenter.release),
]  # fmt: skip


@pytest.mark.parametrize("recipe, argument, overrides, rows", SIZES)
def test_what_is_suggested_fits(recipe, argument, overrides, rows):
    """Through a shell: quoted, with its decoder, and the sizes of the file."""
    config = recipes.get(recipe).get_config(argument)
    config.update_from_flattened_dict(overrides)
    file = weightless(config, rows)
    text = suggest(file)
    assert f"configs/{recipe}.py" in text
    suggested = configuration_of(text)
    # That configuration is what the file's names and shapes were made of.
    assert suggested.model == config.model
    assert suggested.selection == config.selection
    assert suggested.data.num_classes == config.data.num_classes


def test_a_file_with_a_space_in_its_name(tmp_path):
    config = recipes.get("segmenter").get_config("dataset=ade20k,backbone=vit_ti16")
    config.update_from_flattened_dict({"model.backbone.image_size": (384, 384)})
    _, theirs = random_arrays(config, segmenter.release, 150)
    path = tmp_path / "my file.npz"
    np.savez(path, **theirs)
    command = suggestion(str(path)).splitlines()[-1]
    words = shlex.split(command)
    assert f"--weights={path}" in words
    assert "--config.model.backbone.image_size=(384,384)" in words
