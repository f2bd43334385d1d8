"""What `accelerator.py` runs: configurations, the device, and batches by forecast."""

import json
import pathlib
import re

import measure

measure.use_repository()

SIDE, RANKS, POOL = 640, 100, 8
"""Pixels a side, K, and bins a side of the multi-label head's image tokens, alike for
all C, so that rows differ in C alone.
"""

BATCH = 32
"""Images per chip, where they fit: more change little."""

TRAINING = ("train 150", "train 1284", "train 10000")
OTHERS = ("deeplabv3", "mask2former")
CASES = ("train 1284", "train 150", "train 10000", *OTHERS)
"""With a forecast, in the order of the parts that wait for them."""

DRY_CLASSES = {150: 20, 1284: 24, 10_000: 32}


def make_config(case: str, dry: bool):
    """The configuration of a case, such as ``train 1284`` or ``mask2former``."""
    name, _, classes = case.partition(" ")
    if name in OTHERS:
        return _other(name, dry)
    from configs import segmenter

    selection = "complete" if name == "complete" else "top_k"
    config = segmenter.get_config(
        f"dataset=coco_lvis,backbone=vit_l16,selection={selection}"
    )
    side = (SIDE, SIDE)
    num_classes = int(classes)
    with config.unlocked():
        config.name = case
        config.data.update(num_classes=num_classes, crop_size=side, base_size=(0, 0))
        config.model.dtype = "bfloat16"
        config.model.backbone.update(image_size=side, scan=True, remat="full")
        config.eval.update(window=side, stride=side, batch_size=BATCH)
        if selection == "top_k":
            config.selection.k = RANKS
            config.model.multilabel_head.downsample = POOL
        if dry:
            _shrink(config, num_classes)
    return config


def _shrink(config, num_classes: int) -> None:
    side = (32, 32)
    config.data.update(num_classes=DRY_CLASSES[num_classes], crop_size=side)
    config.model.backbone.update(
        embed_dim=16, depth=1, num_heads=2, mlp_dim=32, image_size=side
    )
    config.eval.update(window=side, stride=side, batch_size=2)
    config.model.decoder.update(depth=1)
    if config.selection.name == "top_k":
        config.selection.k = 4


def _other(name: str, dry: bool):
    """As the paper trains them on ADE20K, with ResNet-101 and Swin-L; in bfloat16."""
    from configs import deeplabv3, mask2former

    if name == "deeplabv3":
        backbone = "resnet_demo" if dry else "resnet101"
        config = deeplabv3.get_config(f"dataset=ade20k,backbone={backbone}")
    else:
        backbone = "resnet_demo" if dry else "swin_l"
        config = mask2former.get_config(
            f"dataset=ade20k,backbone={backbone},task=semantic"
            + ",pixel_decoder=fpn" * dry
        )
    with config.unlocked():
        config.name = name
        config.model.dtype = "bfloat16"
        if "scan" in config.model.backbone:
            config.model.backbone.update(scan=True, remat="full")
        if dry:
            config.data.update(num_classes=20, crop_size=(32, 32))
            config.model.backbone.depths = (1, 1, 1, 1)
            config.selection.k = 4
            if name == "mask2former":
                config.model.decoder.update(depth=1, num_queries=8, image_layer=1)
                config.loss.regions.num_points = 48
    return config


TOPOLOGIES = {
    "NVIDIA H200": ("h200", 1),
    "NVIDIA H100": ("h100", 1),
    "NVIDIA A100": ("a100", 1),
    "TPU v4": ("v4", 4),
    "TPU v5 lite": ("v5e", 4),
    "TPU v5e": ("v5e", 4),
    "TPU v5p": ("v5p", 4),
    "TPU v5": ("v5p", 4),
    "TPU v6 lite": ("v6e", 4),
    "TPU v6e": ("v6e", 4),
    "TPU7x": ("tpu7x", 4),
}
"""How ``plan`` calls a device, by the start of its name, and the fewest it knows."""


def topology_name(device_kind: str, count: int, dry: bool) -> str:
    """For ``plan``.

    Raises:
      LookupError: it knows no such device.
    """
    if dry:
        return "cpu1"
    kinds = [kind for kind in TOPOLOGIES if device_kind.startswith(kind)]
    if not kinds:
        raise LookupError(f"`plan` knows no {device_kind}, so there is no forecast.")
    name, fewest = TOPOLOGIES[max(kinds, key=len)]
    if name == "tpu7x":  # Two devices of JAX are one chip.
        count = -(-count // 2)
    count = max(count, fewest)
    return f"{name}x{count}" if re.match(r"[ah]\d", name) else f"{name}-{count}"


def fitting_batch(batch: int, total: int, usable: int | None) -> int:
    """Images per chip, a power of two, where so many take ``total`` bytes."""
    while usable is not None and total > usable and batch > 1:
        batch, total = batch // 2, total / 2
    return batch


def read_rows(output: pathlib.Path, part: str) -> list[dict]:
    """What another part has written so far."""
    path = output / "parts" / f"{part.replace(' ', '_')}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def forecast_of(output: pathlib.Path, case: str) -> dict:
    """The row of a case; a batch of an eighth where ``plan`` had nothing to say."""
    rows = [row for row in read_rows(output, "forecast") if row["case"] == case]
    return rows[0] if rows else {"case": case, "batch": BATCH // 8}
