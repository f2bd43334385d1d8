"""What is chosen for somebody's own pictures, and the reason for it in a line each."""

import math
import re

from input_pipeline.datasets.split_parts import split_part
from mlseg_jax.fitting.choices import SHARE_OF_STEPS, Choices, given_side
from mlseg_jax.fitting.facts import Data, Machine
from mlseg_jax.fitting.weights import start_from_weights
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import training_flops
from mlseg_jax.settings import backbones
from mlseg_jax.settings.advice import fitting_selection
from mlseg_jax.settings.resolve import LABEL_WEIGHT_PER_CLASS

BACKBONES = ("resnet18_half", "resnet18", "resnet34", "resnet50")
"""From nothing: the last for which there are `EPOCHS` and `CROPS` in the time there is.
"""

EPOCHS, CROPS = 60, 40_000
"""Crops of each training picture, and in all, that a larger backbone needs to be worth
its time: guesses, beyond 14 epochs (docs/own_data.md), where the smallest was ahead.
"""

LONGEST_SHORT_SIDES = ((20, 192), (60, 256), (math.inf, 384))
"""On processors: minutes, and up to these the longest shorter side of pictures."""

ON_ACCELERATORS = 512
"""The same there, whatever the minutes."""

SMALLEST_SHORT_SIDE = 96
"""Smaller pictures are enlarged to it: the backbone's last map has stride 32."""

MANY_CLASSES = 1000
"""On processors: above it labels are scored from the mean of the image alone, for
class tokens that look at one another cost their square.
"""

VALIDATION = 0.1
"""Share of the training pictures that checkpoints are chosen by: the last ones, for
frames of a film resemble their neighbours.
"""

MIN_VALIDATION = 2
CACHE_SHARE = 0.2
"""Of the free memory that decoded pictures may take."""

SIDED = {"left", "right", "links", "rechts", "gauche", "droite"}
"""Words in names of classes that a mirror image would belie."""


def choose(
    choices: Choices, data: Data, machine: Machine, seconds: float, speed: float | None
) -> None:
    """All but what needs steps to be measured (`schedule`).

    Args:
      choices: where to.
      data: what there is to learn from.
      machine: where.
      seconds: that there are.
      speed: operations a second of the machine; None where that is not known.
    """
    _say_what_is_there(choices, data, machine)
    _selection(choices, data, machine)
    _augmentation(choices, data)
    _batch(choices, data, machine)
    _sizes(choices, data, machine, seconds)
    if choices.config.init:
        start_from_weights(choices, data, machine, seconds, speed)
    else:
        _backbone(choices, data, seconds, speed)
    _say_sizes(choices)
    _evaluation(choices, data)
    _validation(choices, data)
    _reading(choices, data, machine)


def choose_precision(choices: Choices, machine: Machine) -> None:
    """Before the machine's speed is measured, which depends on it."""
    if machine.has_bfloat16:
        choices.set(model={"dtype": "bfloat16"})


def _say_what_is_there(choices: Choices, data: Data, machine: Machine) -> None:
    height, width = data.size
    sizes = "all" if data.is_uniform else "half of them up to"
    choices.say(
        "data",
        f"{data.num_pictures:,} training pictures, {sizes} {width} x {height}, "
        f"{data.num_labels.mean():.1f} of {data.num_classes:,} classes in a picture",
    )
    dtype = choices.config.model.dtype
    precision = "" if dtype == "float32" else f"; {dtype}, parameters in float32"
    choices.say("machine", f"{machine}{precision}")


def _sizes(choices: Choices, data: Data, machine: Machine, seconds: float) -> None:
    short = min(data.size)
    longest = ON_ACCELERATORS
    if machine.is_cpu:
        limits = LONGEST_SHORT_SIDES
        longest = next(side for minutes, side in limits if seconds <= 60 * minutes)
    given = given_side(choices)
    side = max(min(max(short, SMALLEST_SHORT_SIDE), longest), given)
    if choices.is_given("data.base_size"):
        side = min(choices.config.data.base_size) or short
    base = (0, 0) if side == short and data.is_uniform else (8 * side, side)
    # Three quarters, in whole cells of the backbone's last map.
    crop = max(64, round(0.75 * side / 32) * 32)
    choices.set(data={"base_size": base, "crop_size": (crop, crop)})


def _say_sizes(choices: Choices) -> None:
    base = choices.config.data.base_size
    height, width = choices.config.data.crop_size
    shown = "as they are" if max(base) == 0 else f"shorter side {min(base)}"
    low, high = choices.config.data.scale_range
    choices.say(
        "sizes",
        f"pictures {shown}, crops of {height} x {width} at scales of {low:g} to "
        f"{high:g}",
    )


def _selection(choices: Choices, data: Data, machine: Machine) -> None:
    fitting = fitting_selection(data.num_classes, data.num_labels)
    choices.set(selection={"name": fitting.name})
    config = choices.config
    if config.selection.name == "top_k":
        # Given by the user, where the advice is to do without.
        weight = fitting.weight or round(LABEL_WEIGHT_PER_CLASS * data.num_classes, 2)
        choices.set(selection={"k": fitting.k}, loss={"multilabel_weight": weight})
        if machine.is_cpu and data.num_classes > MANY_CLASSES:
            choices.set(model__multilabel_head={"name": "global_pooling"})
            choices.set(model__multilabel_head={"downsample": 1})
        text = (
            f"the best {config.selection.k} of {data.num_classes:,} labels, twice what "
            f"99 % of the pictures hold; weight of their loss "
            f"{config.loss.multilabel_weight}"
        )
    else:
        choices.set(
            selection={"k": fitting.k},
            loss={"multilabel_weight": 0.0},
            model__multilabel_head={"name": "none"},
            model__rank_norm={"kind": "none"},
        )
        text = "all labels, for pictures hold most of them: little could be left out"
        if choices.is_given("selection.name"):
            text = f"{config.selection.name}, as given"
    choices.say("selection", text)


def _augmentation(choices: Choices, data: Data) -> None:
    names = map(str.lower, data.class_names)
    words = {word for name in names for word in re.split(r"[\W_]+", name)}
    sided = sorted(words & SIDED)
    # With two classes crops of one are no exception that is to be avoided.
    share = 0.75 if data.num_classes > 2 else 1.0
    choices.set(data={"flip_rate": 0.0 if sided else 0.5, "max_class_share": share})
    mirrored = f"not mirrored (a class is called {sided[0]!r})" if sided else "mirrored"
    colours = "colours changed" if choices.config.data.photometric else "colours kept"
    choices.say("augmentation", f"scaled, {mirrored}, {colours}")


def _batch(choices: Choices, data: Data, machine: Machine) -> None:
    size = 8 if machine.is_cpu else 16 * machine.num_devices
    choices.set(train={"batch_size": size})


def _backbone(
    choices: Choices, data: Data, seconds: float, speed: float | None
) -> None:
    if choices.is_given("model.backbone", "model.decoder"):
        choices.say("model", "as given")
        return
    chosen = None
    for name in BACKBONES:
        config = choices.config.copy_and_resolve_references()
        config.model.backbone = backbones.resnet(name)
        model = FunctionalModel.build(config, data.num_classes)
        crops = math.inf
        if speed is not None:
            crops = SHARE_OF_STEPS * seconds * speed / training_flops(config, model)
        if chosen is not None and crops < max(CROPS, EPOCHS * data.num_pictures):
            break
        chosen = name
        size = f"{model.num_parameters / 1e6:.1f} million parameters"
    choices.set(model={"backbone": backbones.resnet(chosen)})
    choices.say(
        "model",
        f"{chosen} and UPerNet of width {choices.config.model.decoder.embed_dim}, "
        f"{size}, from nothing",
    )


def _evaluation(choices: Choices, data: Data) -> None:
    base, crop = choices.config.data.base_size, choices.config.data.crop_size
    height, width = data.size
    if max(base) > 0:
        scale = min(base) / min(height, width)
        height, width = round(scale * height), round(scale * width)
    if data.is_uniform and height * width <= 4 * math.prod(crop):
        window = stride = (height, width)
        text = "whole pictures"
    else:
        window = tuple(crop)
        stride = tuple(side * 2 // 3 for side in crop)
        text = f"windows of {window[0]} x {window[1]} that overlap by a third"
    choices.set(eval={"mode": "slide", "window": window, "stride": stride})
    choices.say("evaluation", text)


def _validation(choices: Choices, data: Data) -> None:
    count = max(MIN_VALIDATION, round(VALIDATION * data.num_pictures))
    checkpoint = choices.config.eval.checkpoint
    if choices.is_given("data.validation_split"):
        choices.say("validation", "as given")
    elif choices.is_given("eval.checkpoint") and checkpoint == "latest":
        choices.say("validation", "none, for the last checkpoint is kept")
    elif data.num_pictures < 2 * count:
        choices.set(eval={"checkpoint": "latest"})
        choices.say("validation", "none, for the pictures are too few")
    else:
        keep_back(choices, data, count)


def keep_back(choices: Choices, data: Data, count: int) -> None:
    """The last so many training pictures are for validation, and not trained on, also
    of a part of the pictures that was given.
    """
    name = split_part(choices.config.data.train_split).name
    first, end = data.first, data.first + data.num_pictures
    middle = end - count
    choices.set(data={"validation_split": f"{name}[{middle}:{end}]"})
    choices.narrow("data.train_split", f"{name}[{first}:{middle}]")
    choices.say(
        "validation",
        f"the last {count} training pictures say which checkpoint is kept",
    )


def _reading(choices: Choices, data: Data, machine: Machine) -> None:
    choices.set(data={"num_threads": max(1, min(4, machine.cores))})
    if not machine.is_cpu:
        choices.set(data={"num_workers": max(0, machine.cores // 4 - 1)})
    # Each worker keeps all of them, and this process what it looks at itself.
    copies = 1 + choices.config.data.num_workers
    size = copies * data.octets.mean() * data.num_pictures
    choices.set(data={"cache": bool(size <= CACHE_SHARE * machine.free_bytes)})
