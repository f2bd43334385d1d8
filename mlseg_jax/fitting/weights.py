"""With weights to start from: which model they fit, and how much of it to train."""

import dataclasses
import math
import os
import re
import shlex

import jax
import ml_collections
from etils import epath

from mlseg_jax.errors import UserError
from mlseg_jax.fitting.choices import SHARE_OF_STEPS, Choices, given_side
from mlseg_jax.fitting.facts import Data, Machine
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.encoder_only import held_back
from mlseg_jax.models.flops import count_macs
from mlseg_jax.pretrained.download import weight_file
from mlseg_jax.pretrained.read import read_weights
from mlseg_jax.pretrained.suggest import suggest
from mlseg_jax.runs.workdir import load_config
from mlseg_jax.settings import recipes
from mlseg_jax.settings.weights import PUBLISHED
from mlseg_jax.training import frozen_features

SHORT_SIDES = (224, 518)
"""Of pictures for a ViT, least and most: its cells are of 14 or 16 pixels."""

EPOCHS = 15
"""Of the training pictures, that training a part of the backbone must have time for."""

FEW_EPOCHS = 3
"""Below which a sentence says so."""

LAST_BLOCKS = 4
"""That are trained where there is no time for all."""

ON_VITS = ("linear", "encoder_only")
"""Decoders; which of them is better with published weights was not measured."""

MAX_VARIANTS = 8
FEATURE_SHARE = 0.3
"""Of the minutes, that computing features of a frozen backbone may take."""

DISK_SHARE = 0.2
"""Of the free disk, that these may take."""

LAYER_DECAY = 0.75
"""Of the learning rate, a block; BEiT's and DINOv2's recipes have 0.65 to 0.95."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How a backbone that knows something already is trained.

    Attributes:
      name: whole, last or frozen.
      epochs: of the training pictures there is time for.
      variants: crops of each whose features are kept.
    """

    name: str
    epochs: float
    variants: int = 0


def start_from_weights(
    choices: Choices, data: Data, machine: Machine, seconds: float, speed: float | None
) -> None:
    """Model, sizes, learning rates for ``config.init``.

    Raises:
      UserError: no model is known that the weights fit.
    """
    init = choices.config.init
    recipe = _recipe(init)
    _take_model(choices, recipe)
    _sizes(choices, data)
    config = choices.config
    model = FunctionalModel.build(config, data.num_classes)
    chosen = how_to_train(config, model, data, machine, seconds, speed)
    _rates(choices, chosen)
    backbone = config.model.backbone
    width, depth = backbone.embed_dim, backbone.get("depth", "4 stages")
    text = {
        "whole": "all of it is trained, earlier blocks at lower rates",
        "last": f"the last {_num_last(config)} blocks and what follows are trained",
        "frozen": "the backbone stays as it is",
    }[chosen.name]
    if chosen.variants:
        text += f"; features of {chosen.variants} crops of each picture are kept"
    if math.isinf(chosen.epochs):
        text += ", for as long as there is time: the machine's speed is not known"
    elif chosen.epochs < FEW_EPOCHS:
        text += f", for about {chosen.epochs:.1f} epochs, which is little: give more "
        text += "--minutes, or a smaller model"
    model = f"{config.model.decoder.name} on {backbone.name}"
    choices.say(
        "model",
        f"{model} ({width} wide, {depth} deep) from {init}; {text}",
    )


def _recipe(init: str) -> ml_collections.ConfigDict:
    """The shipped recipe that the weights fit, or the run that they are of."""
    if epath.Path(init).is_dir():
        return load_config(init)
    if init in PUBLISHED and not os.path.exists(init):
        recipe, flags = PUBLISHED[init].fits, []
    else:
        words = shlex.split(suggest(read_weights(weight_file(init))))
        if not words:
            raise UserError(
                f"No shipped model is known that {init} fits; give a recipe of "
                f"configs/ with --config.init={init} in place of configs/own_data.py."
            )
        recipe, flags = words[0].partition("=")[2], words[1:]
    path, _, arguments = recipe.partition(":")
    kept = [x for x in arguments.split(",") if x.startswith(("backbone=", "decoder="))]
    config = recipes.load(f"{path}:{','.join(['dataset=folder', *kept])}")
    config.unlock()
    for flag in flags:
        key, _, value = flag.removeprefix("--config.").partition("=")
        if key.startswith("model.backbone."):
            name = key.rpartition(".")[2]
            numbers = tuple(map(int, re.findall(r"\d+", value)))
            old = config.model.backbone[name]
            config.model.backbone[name] = (
                numbers if isinstance(old, tuple) else numbers[0]
            )
    return config


def _take_model(choices: Choices, recipe: ml_collections.ConfigDict) -> None:
    """The recipe's backbone and what its pixels are normalised by; UPerNet on pyramids,
    and else what `_stand_on_vit` says.
    """
    pixels = {key: recipe.data[key] for key in ("pixel_mean", "pixel_std")}
    backbone = recipe.model.backbone.copy_and_resolve_references()
    choices.set(data=pixels, model={"backbone": backbone})
    is_upernet = recipe.model.get("decoder", {}).get("name") == "upernet"
    if choices.config.model.backbone.name == "vit":
        _stand_on_vit(choices)
    elif is_upernet:
        choices.set(model={"decoder": recipe.model.decoder})
    theirs = recipe.model.get("decoder", {}).get("name")
    is_run = epath.Path(choices.config.init).is_dir()
    is_whole = is_run and theirs == choices.config.model.decoder.name
    if not (is_whole or is_upernet or choices.is_given("init_part")):
        # Of whole models whose other parts have no place here.
        choices.narrow("init_part", "backbone/")


def _stand_on_vit(choices: Choices) -> None:
    """A linear classifier of normalised features, or the other decoder of `ON_VITS`
    where its name is given.
    """
    model, name = choices.config.model, ON_VITS[0]
    if choices.is_given("model.decoder.name"):
        name = model.decoder.name
    if name not in ON_VITS:
        raise UserError(
            f"configs/own_data.py puts {' or '.join(ON_VITS)} on a ViT; for "
            f"model.decoder.name={name!r} take its recipe of configs/, with --minutes."
        )
    choices.set(model__backbone={"drop_path_rate": 0.0})
    if name == "encoder_only":
        encoder_only = recipes.get("encoder_only")
        decoder = encoder_only.decoder(model.backbone)
        head = encoder_only.head(model.backbone)
        choices.set(optimizer={"layer_decay_rule": "joint"})
    else:
        decoder = ml_collections.ConfigDict({"name": name, "dropout_rate": 0.0})
        head = model.multilabel_head.copy_and_resolve_references()
        num_heads = max(1, model.backbone.embed_dim // 64)
        head.unlock().update(downsample=8, num_heads=num_heads)
    choices.set(model={"decoder": decoder})
    if model.multilabel_head.name == "projected_encoder":
        choices.set(model={"multilabel_head": head})


def _sizes(choices: Choices, data: Data) -> None:
    backbone = choices.config.model.backbone
    if backbone.name != "vit":
        return
    patch, short = backbone.patch_size, min(data.size)
    side = given_side(choices) or min(max(short, SHORT_SIDES[0]), SHORT_SIDES[1])
    side = max(patch, side // patch * patch)
    choices.set(data={"base_size": (8 * side, side), "crop_size": (side, side)})


def how_to_train(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    data: Data,
    machine: Machine,
    seconds: float,
    speed: float | None,
) -> Training:
    """All of the backbone, or its last blocks, if there is time for `EPOCHS`; else none
    of it, with as many crops as there is time and disk to keep features of. Pyramids
    are trained as a whole; several processes, decoders that run the last blocks, and
    whatever else `frozen_features.hindrance` knows, keep no features.
    """
    if speed is None:
        return Training("whole", math.inf)
    macs = {name: part.exact for name, part in count_macs(config, model).items()}
    backbone, rest = macs["backbone"], sum(macs.values()) - macs["backbone"]
    time = SHARE_OF_STEPS * seconds * speed
    is_vit = config.model.backbone.name == "vit"
    # Blocks that the decoder runs count as its own, and are always trained.
    held = _num_held(config)
    depth = config.model.backbone.depth - held if is_vit else 1
    last = min(1.0, max(0, LAST_BLOCKS - held) / max(1, depth))
    for name, operations in (
        ("whole", 6 * (backbone + rest)),
        ("last", (2 + 4 * last) * backbone + 6 * rest),
    ):
        epochs = time / operations / data.num_pictures
        if epochs >= EPOCHS or not is_vit:
            return Training(name, epochs)
    if held or jax.process_count() > 1:
        return Training("last", epochs)
    vit, crop = config.model.backbone, config.data.crop_size
    cells = math.prod(-(-side // vit.patch_size) for side in crop)
    octets = 2 * cells * vit.embed_dim + 4 * math.prod(crop)
    # At least one, if all pictures pass the backbone in less than two thirds of the
    # time: then what follows sees each more often than without.
    passes = time / (2 * backbone) / data.num_pictures
    variants = min(
        MAX_VARIANTS,
        max(int(FEATURE_SHARE / SHARE_OF_STEPS * passes), int(passes > 1.5)),
        int(DISK_SHARE * machine.free_disk / octets / data.num_pictures),
    )
    if not variants or frozen_features.hindrance(config):
        operations = 2 * backbone + 6 * rest
        return Training("frozen", time / operations / data.num_pictures)
    left = time - 2 * backbone * variants * data.num_pictures
    return Training("frozen", max(0.0, left) / (6 * rest) / data.num_pictures, variants)


def _num_held(config: ml_collections.ConfigDict) -> int:
    return held_back(config).get("held_back", 0)


def _num_last(config: ml_collections.ConfigDict) -> int:
    return max(LAST_BLOCKS, _num_held(config))


def _rates(choices: Choices, chosen: Training) -> None:
    backbone = choices.config.model.backbone
    if chosen.name == "frozen":
        choices.set(
            data={"feature_variants": chosen.variants},
            optimizer={
                "frozen": ("^backbone/",),
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
            },
        )
        return
    choices.set(optimizer={"learning_rate": 2e-4, "weight_decay": 0.05})
    if backbone.name != "vit":
        return
    choices.set(optimizer={"layer_decay": LAYER_DECAY})
    if chosen.name == "last":
        last = range(backbone.depth)[-_num_last(choices.config) :]
        kept = "|".join(map(str, last))
        choices.set(
            optimizer={"frozen": (rf"^backbone/(?!blocks/blocks/({kept})/|norm)",)}
        )
