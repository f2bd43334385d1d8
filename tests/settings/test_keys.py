"""Every key of every configuration, with wrong values of every kind."""

import pytest
from ml_collections import ConfigDict

from configs import (
    deeplabv3,
    encoder_only,
    eomt,
    linear,
    mask2former,
    maskformer,
    own_data,
    paper,
    query2label,
    segmenter,
    study,
    upernet,
)
from input_pipeline.datasets.bad_examples import ON_BAD_EXAMPLE
from input_pipeline.datasets.coco_json import PAINT_ORDERS
from input_pipeline.datasets.open import DATASETS
from mlseg_jax.errors import UserError
from mlseg_jax.losses.reduce import PIXEL_MEANS
from mlseg_jax.models.build import MODELS, TABLES, check_config
from mlseg_jax.settings import backbones
from mlseg_jax.settings.keys import KEYS, check, check_value
from mlseg_jax.tasks.table import TASKS

RECIPES = (
    *((segmenter, f"head={name}") for name in segmenter.HEADS),
    (segmenter, "decoder=encnet,selection=complete"),
    *((segmenter, f"backbone={name}") for name in backbones.VITS),
    *((deeplabv3, f"backbone={name}") for name in backbones.RESNETS),
    *((upernet, f"backbone={name}") for name in backbones.SWINS),
    *((upernet, f"backbone={name}") for name in backbones.BEITS),
    *((linear, f"backbone={name}") for name in backbones.DINOV2S),
    *((mask2former, f"backbone={name}") for name in ("swin_b", "resnet50")),
    *((maskformer, f"pixel_decoder={name}") for name in ("fpn", "encoder_fpn")),
    (maskformer, "selection=complete"),
    *((query2label, f"backbone={name}") for name in query2label.BACKBONES),
    *((mask2former, f"backbone={b}") for b in ("swin_t", "resnet50", "vit_b16")),
    (maskformer, "task=panoptic,backbone=resnet50"),
    (mask2former, "task=instance,dataset=sign_scenes"),
    (mask2former, "task=video_instance,dataset=sign_scenes"),
    (eomt, ""),
    (own_data, ""),
    (encoder_only, ""),
    *((paper, name) for name in paper.EXPERIMENTS),
    *((study, f"row={row},size={size}") for row in study.ROWS for size in study.SIZES),
    (study, f"row={study.PRETRAINED}"),
)

ANY_TEXT = {
    *("name", "init", "init_part", "data.path", "data.classes", "data.background"),
    *("data.image_key", "data.label_key", "data.train_split", "data.eval_split"),
    *("selection.classifier", "selection.scores", "eval.font"),
    *("data.image_folder", "data.mask_folder", "data.image_ending", "data.mask_ending"),
    "data.validation_split",
    "data.name",  # `open_dataset` knows the names
}
MAY_BE_EMPTY = {
    *ANY_TEXT - {"data.image_key", "data.label_key", "data.name"},
    "selection.eval_name",
} - {
    *("data.train_split", "data.eval_split"),
    *("data.image_folder", "data.mask_folder", "data.mask_ending"),
}
ANY_NUMBER = {"model.auxiliary_head.level", "data.pixel_mean"}
TUPLES_MAY_BE_EMPTY = {
    *("optimizer.weight_decay_factors", "optimizer.learning_rate_factors"),
    *("optimizer.frozen", "optimizer.falls_at", "model.backbone.taps"),
    *("model.decoder.mask_starts", "model.decoder.mask_ends"),
}
NUMBER_OR_AUTO = {"loss.multilabel_weight"}
NAN, INFINITE = float("nan"), float("inf")


def wrong_values(path, value):
    """What nobody can mean, by the kind of a right value."""
    if path in NUMBER_OR_AUTO:
        return [-7.0, "-7", "nonsense", "", NAN, INFINITE, None, (), (value,)]
    if isinstance(value, bool):
        return ["nonsense", "True", 2, -1, 0.5, None, (), (True,)]
    if isinstance(value, str):
        texts = [] if path in ANY_TEXT else ["nonsense", value.upper() + "x"]
        texts += [] if path in MAY_BE_EMPTY else [""]
        return [*texts, 3, 0.5, True, None, (), (value,)]
    if isinstance(value, int):
        low = [] if path in ANY_NUMBER else [-7]
        return [*low, "nonsense", "3", 1.5, NAN, True, None, (), (value,)]
    if isinstance(value, float):
        # Of True, ConfigDict itself makes 1.0.
        return [-7.0, "nonsense", "0.1", NAN, INFINITE, None, (), (value,)]
    empty = [] if path in TUPLES_MAY_BE_EMPTY else [()]
    negative = [] if path in ANY_NUMBER else [(-7,) * (len(value) or 1)]
    some = len(value) or 1
    inner = [(x,) * some for x in ("(", NAN, None, (), (value, value))]
    return [*empty, *negative, *inner, 3, 0.5, True, None, "nonsense", "(1, 2)"]


def leaves(section, path=""):
    """Path, value, section and key of every leaf, with the name of its part."""
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value, section, key


@pytest.fixture(scope="module")
def shapes():
    """A configuration for every key, and every type of value that it has."""
    found = {}
    for recipe, arg in RECIPES:
        config = recipe.get_config(arg)
        check_config(config)
        for path, value, *_ in leaves(config):
            found.setdefault((path, type(value)), config)
    return found


def test_the_table_has_every_key_and_no_other(shapes):
    # No recipe says it; Swin has it.
    assert {path for path, _ in shapes} == KEYS.keys()
    assert TABLES.keys() == {path for path, kind in KEYS.items() if kind.table}


def test_choices_are_those_of_the_code():
    choices = {
        "data.paint_order": PAINT_ORDERS,
        "data.on_bad_example": ON_BAD_EXAMPLE,
        "loss.pixel_mean": PIXEL_MEANS,
    }
    for path, names in choices.items():
        for name in names:
            check_value(path, name)
        assert KEYS[path].wanted == " or ".join(names)
    for name in DATASETS:
        check_value("data.name", name)
    assert TASKS.keys() <= MODELS.keys()


def test_every_key_refuses_what_nobody_can_mean(shapes):
    count, accepted = 0, []
    for (path, _), config in shapes.items():
        (found,) = [leaf for leaf in leaves(config) if leaf[0] == path]
        _, value, section, key = found
        for wrong in wrong_values(path, value):
            with section.ignore_type(), section.unlocked():
                section[key] = wrong
                try:
                    check_config(config)
                    accepted.append((path, wrong))
                except UserError as error:
                    sentence = str(error)
                    assert path in sentence and sentence.endswith("."), sentence
                section[key] = value
            count += 1
    assert not accepted
    assert count > 900


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("eval.selection_scope", "nonsense", "give per_window, per_image or per_clip"),
        ("optimizer.ema_decay", 1.5, "is 1.5; give a number from 0 to below 1"),
        ("optimizer.learning_rate", -1.0, "is -1.0; give a number above 0"),
        ("optimizer.learning_rate", 0.0, "is 0.0; give a number above 0"),
        ("optimizer.clip_norm", -1.0, "is -1.0; give a number from 0"),
        ("optimizer.frozen", ("(",), "a tuple of regular expressions"),
        ("optimizer.learning_rate_factors", (("a", -1.0),), "pairs of a regular"),
        ("eval.scales", (0,), "give a tuple of numbers above 0"),
        ("eval.scales", (), "give a tuple of numbers above 0"),
        ("eval.batch_size", 0, "give a whole number from 1"),
        ("eval.oracle_k", 0, "eval.oracle_k is 0; give a whole number from 1"),
        ("selection.k", 0, "selection.k is 0"),
        ("selection.minimum_score", 1.5, "give a probability, from 0 to 1"),
        ("data.crop_size", (64,), "give height and width, whole numbers from 1"),
        ("data.scale_range", (2.0, 0.5), "the smaller one first"),
        ("data.base_size", (0, 512), r"or \(0, 0\)"),
        ("data.repeat_factor", -0.1, "give a share"),
        ("data.num_classes", 65_536, "give a whole number from 0 to 65,535"),
        ("train.accumulate", 0, "give a whole number from 1"),
        ("mesh.data", 0, "or -1 for all devices that are left"),
        ("seed", -1, "from 0 to 2,147,483,647"),
        ("task", "panoptik", "Unknown task 'panoptik'; choose one of semantic"),
        ("model.rank_norm.kind", "x", "Unknown model.rank_norm.kind 'x'; choose"),
        ("model.backbone.remat", "x", "choose one of none, dots, full"),
        ("model.backbone.num_heads", (2, 2), "give a whole number from 1"),
        # Windows: of one number, zero, negative, not whole, with gaps.
        ("eval.stride", (32,), "eval.stride is .32,.; give height and width"),
        ("eval.stride", (0, 32), "give height and width"),
        ("eval.window", (-32, 32), "eval.window is .-32, 32.; give height and"),
        ("eval.window", (32.5, 32), "give height and width, whole numbers"),
        ("eval.stride", (513, 512), "gaps between the windows"),
    ],
)
def test_ranges(key, value, sentence):
    config = segmenter.get_config("dataset=ade20k")
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=sentence):
        check_config(config)


def test_what_is_no_mistake():
    config = segmenter.get_config("dataset=ade20k")
    config.update_from_flattened_dict(
        {
            # Whole pictures have no windows that could leave gaps.
            "eval.mode": "whole",
            "eval.stride": (600, 600),
            "data.base_size": (0, 0),
            "data.num_classes": 65_535,
            "mesh.fsdp": -1,
            "selection.eval_name": "oracle",
        }
    )
    with config.ignore_type():
        config.eval.scales = [1, 0.5]
        config.optimizer.weight_decay_factors = [["norm", 0]]
    check_config(config)


def test_keys_that_nothing_knows():
    config = segmenter.get_config("dataset=ade20k")
    with config.unlocked():
        config.model.decoder.num_coods = 3
    with pytest.raises(UserError, match=r"'model.decoder.num_coods' .* mean 'model\.d"):
        check_config(config)
    with config.unlocked():
        del config.model.decoder.num_coods
        config.xyz = 3
    with pytest.raises(UserError, match="knows the key 'xyz' .*; remove it"):
        check_config(config)


def test_names_in_tables_are_left_to_whoever_has_the_tables():
    config = segmenter.get_config("dataset=ade20k")
    config.model.decoder.name = "mine"
    check(config)
    with pytest.raises(UserError, match="Unknown model.decoder.name 'mine'"):
        check_config(config)
