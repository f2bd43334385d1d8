"""What is chosen for which pictures, on which machine, in which time."""

import dataclasses
import re

import numpy as np
import pytest

from configs import own_data
from mlseg_jax.errors import UserError
from mlseg_jax.fitting.choices import Choices
from mlseg_jax.fitting.facts import Data, Machine, multiplies_bfloat16
from mlseg_jax.fitting.rules import choose, choose_precision
from mlseg_jax.fitting.weights import how_to_train
from mlseg_jax.models.build import FunctionalModel, check_config

LAPTOP = Machine("cpu", "cpu", 1, 2, 8 << 30, 100 << 30)


def data(pictures, size, num_classes, held, names=None):
    """So many pictures of one size, of which each holds ``held`` classes."""
    present = np.zeros((min(pictures, 50), num_classes), bool)
    for i, row in enumerate(present):
        row[(np.arange(held) + i) % num_classes] = True
    sizes = np.tile(size, (len(present), 1))
    names = names or tuple(f"class {i}" for i in range(num_classes))
    octets = 7 * sizes.prod(axis=1)  # Pixels of three, labels of four.
    pixels = np.ones(num_classes, np.int64)
    return Data(pictures, names, sizes, present, pixels, octets)


def chosen(facts, given=None, fixed=(), minutes=10, speed=1e11, machine=LAPTOP):
    config = own_data.get_config().unlock()
    for key, value in (given or {}).items():
        section, name = key.split(".")
        config[section][name] = value
    choices = Choices(config, frozenset([*(given or {}), *fixed]))
    choose(choices, facts, machine, 60.0 * minutes, speed)
    check_config(choices.config)
    return choices


@pytest.mark.parametrize(
    "facts, wanted",
    [
        # 30 pictures of 3 classes: nothing to select, 3 for validation.
        (data(30, (200, 300), 3, 2), {
            "selection.name": "complete", "data.train_split": "train[0:27]",
            "data.validation_split": "train[27:30]", "data.crop_size": (128, 128),
        }),
        # 5,000 classes, 200 pictures.
        (data(200, (100, 100), 5000, 9), {
            "selection.name": "top_k", "selection.k": 18,
            "loss.multilabel_weight": 350.0,
            "model.multilabel_head.name": "global_pooling",
        }),
        # Tiny pictures are enlarged, huge ones made small and cut.
        (data(400, (40, 40), 8, 2), {
            "data.base_size": (768, 96), "data.crop_size": (64, 64),
            "eval.window": (96, 96),
        }),
        (data(400, (4000, 6000), 8, 2), {
            "data.base_size": (1536, 192), "data.crop_size": (128, 128),
            "data.cache": False,
        }),
        # One class: no label to leave out, and crops of one class are no exception.
        (data(50, (100, 100), 1, 1), {
            "selection.name": "complete", "data.max_class_share": 1.0,
        }),
        (data(50, (100, 100), 2, 1, ("left_lane", "road")), {"data.flip_rate": 0.0}),
        # Two pictures are too few to keep one back.
        (data(3, (100, 100), 2, 1), {"eval.checkpoint": "latest"}),
    ],
)  # fmt: skip
def test_choices(facts, wanted):
    choices = chosen(facts, fixed={"model.backbone"})
    assert {key: choices.values[key] for key in wanted} == wanted
    assert len(choices.lines) == 8 and all(": " in line for line in choices.lines)


def test_what_is_kept_back_is_of_the_part_that_was_given():
    facts = dataclasses.replace(data(30, (200, 300), 3, 2), first=100)
    given = {"data.train_split": "train[50%:80%]", "eval.checkpoint": "best"}
    choices = chosen(facts, given, fixed={"model.backbone"})
    assert choices.config.data.train_split == "train[100:127]"
    assert choices.config.data.validation_split == "train[127:130]"
    given |= {"data.validation_split": "train[80%:]"}
    choices = chosen(facts, given, fixed={"model.backbone"})
    assert choices.config.data.train_split == "train[50%:80%]"


def test_what_is_given_stays():
    facts = data(30, (200, 300), 3, 2)
    given = {
        "data.crop_size": (64, 96),
        "train.batch_size": 3,
        "selection.name": "top_k",
    }
    choices = chosen(facts, given, fixed={"model.backbone"})
    assert not set(given) & set(choices.values)
    assert choices.config.data.crop_size == (64, 96)
    assert choices.config.train.batch_size == 3
    assert choices.config.model.multilabel_head.name == "projected_encoder"
    assert choices.config.loss.multilabel_weight == pytest.approx(0.21)


def test_pictures_are_kept_in_memory_where_all_copies_fit():
    """1.25 GiB of pictures in 30 GiB: once, but not in 12 processes."""
    facts = data(3000, (240, 320), 20, 6)
    facts = dataclasses.replace(facts, octets=np.full(50, 448_000))
    cases = {
        30 << 30: {"data.num_workers": 0},
        6 << 30: {"data.num_workers": 0},
        31 << 30: {},
        100 << 30: {},
    }
    found = [
        chosen(
            facts, given, {"model.backbone"},
            machine=Machine("gpu", "GPU", 1, 48, free, 1 << 40),
        ).config.data
        for free, given in cases.items()
    ]  # fmt: skip
    assert [x.num_workers for x in found] == [0, 0, 11, 11]
    assert [x.cache for x in found] == [True, False, False, True]


def test_more_time_and_faster_machines_take_larger_models():
    facts = data(300, (480, 640), 20, 6)
    gpu = Machine("gpu", "NVIDIA H100", 1, 8, 64 << 30, 1 << 40)
    small, large = chosen(facts), chosen(facts, machine=gpu, speed=3e14)
    widths = [x.config.model.backbone.embed_dim for x in (small, large)]
    assert widths == [32, 64] and large.config.model.backbone.depths == (3, 4, 6, 3)
    assert small.config.data.crop_size < large.config.data.crop_size


def test_bfloat16_where_the_machine_multiplies_it():
    for has_it, *device in (
        (True, "tpu"),
        (True, "gpu", "8.6"),
        (True, "gpu", "12.0"),
        (False, "gpu", "7.5"),
        (False, "gpu", "gfx90a"),
        (False, "cpu"),
    ):
        assert multiplies_bfloat16(*device) == has_it
        machine = dataclasses.replace(LAPTOP, has_bfloat16=has_it)
        for given in ((), {"model.dtype"}):
            choices = Choices(own_data.get_config().unlock(), frozenset(given))
            choose_precision(choices, machine)
            expected = "bfloat16" if has_it and not given else "float32"
            assert choices.config.model.dtype == expected


def test_weights_are_trained_as_far_as_time_goes():
    """All of DINOv2-S, its last blocks, or what follows it alone, from its features."""
    facts, found = data(300, (180, 240), 11, 8), {}
    full = dataclasses.replace(LAPTOP, free_disk=0)
    for speed, machine in (
        *((1e11, LAPTOP), (2.5e11, LAPTOP), (1e14, LAPTOP)),
        (1e11, full),
    ):
        config = own_data.get_config().unlock()
        config.init = "dinov2_vits14"
        config.model.decoder.dropout_rate = 0.3
        choices = Choices(config, frozenset({"init", "model.decoder.dropout_rate"}))
        choose(choices, facts, machine, 600.0, speed)
        check_config(choices.config)
        found[speed, machine] = choices.config
        assert choices.config.model.decoder.dropout_rate == 0.3
        assert choices.config.model.decoder.name == "linear"
        assert choices.config.data.crop_size == (224, 224)
    frozen, last, whole, without_disk = found.values()
    # Nor are features kept of what cannot be trained from them.
    frozen.selection.name = "given"
    model = FunctionalModel.build(frozen, 11)
    chosen = how_to_train(frozen, model, facts, LAPTOP, 600.0, 1e11)
    assert (chosen.name, chosen.variants) == ("frozen", 0)
    assert without_disk.data.feature_variants == 0
    assert without_disk.optimizer.frozen == frozen.optimizer.frozen
    assert frozen.data.feature_variants >= 1
    assert frozen.optimizer.frozen == ("^backbone/",)
    assert last.data.feature_variants == whole.data.feature_variants == 0
    pattern = last.optimizer.frozen[0]
    is_frozen = [
        bool(re.search(pattern, f"backbone/blocks/blocks/{i}/x")) for i in (0, 7, 8, 11)
    ]
    assert is_frozen == [True, True, False, False]
    assert whole.optimizer.frozen == () and whole.optimizer.layer_decay < 1


def test_the_other_decoder_of_vits():
    """What joins the last blocks is trained with them, however little time there is."""
    facts, found = data(300, (180, 240), 200, 8), []
    for speed in (1e11, 1e14):
        config = own_data.get_config().unlock()
        config.init = "dinov2_vits14"
        config.model.decoder.name = "encoder_only"
        choices = Choices(config, frozenset({"init", "model.decoder.name"}))
        choose(choices, facts, LAPTOP, 600.0, speed)
        check_config(choices.config)
        found.append(choices.config)
        assert choices.config.init_part == "backbone/"
        assert choices.config.model.decoder.depth == 3
        assert choices.config.model.multilabel_head.classes_apart
        assert any("encoder_only on vit" in line for line in choices.lines)
    last, whole = found
    assert last.data.feature_variants == 0 and whole.optimizer.frozen == ()
    pattern = last.optimizer.frozen[0]
    is_frozen = [
        bool(re.search(pattern, f"backbone/blocks/blocks/{i}/x")) for i in (7, 8, 11)
    ]
    assert is_frozen == [True, False, False]
    config.model.decoder.name = "eomt"
    choices = Choices(config, frozenset({"init", "model.decoder.name"}))
    with pytest.raises(UserError, match="linear or encoder_only on a ViT"):
        choose(choices, facts, LAPTOP, 600.0, 1e11)


def test_a_run_is_taken_whole_where_its_decoder_is_taken(tmp_path):
    facts = data(300, (180, 240), 200, 8)
    for decoder, part in (("linear", ""), ("encoder_only", "backbone/")):
        theirs = own_data.get_config().unlock()
        theirs.init = "dinov2_vits14"
        theirs.model.decoder.name = decoder
        choices = Choices(theirs, frozenset({"init", "model.decoder.name"}))
        choose(choices, facts, LAPTOP, 600.0, 1e11)
        run = tmp_path / decoder
        run.mkdir()
        (run / "config.json").write_text(choices.config.to_json_best_effort())
        ours = own_data.get_config().unlock()
        ours.init = str(run)
        choices = Choices(ours, frozenset({"init"}))
        choose(choices, facts, LAPTOP, 600.0, 1e11)
        assert choices.config.model.decoder.name == "linear"
        assert choices.config.init_part == part
