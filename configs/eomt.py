"""EoMT, the encoder-only mask transformer, plain or with label selection.

    python main.py train --workdir=runs/ade20k_eomt \
        --config=configs/eomt.py:dataset=ade20k,backbone=dinov2_l14_reg,task=semantic

Arguments: ``dataset`` (rows of ``region_classifier.NUM_CLASSES``), ``backbone`` (rows
of ``backbones.DINOV2S``, with ``_reg`` behind them as published, ``DINOV3S`` or
``VITS``), ``task`` (semantic, panoptic, instance), ``selection``: ``complete`` is the
published model, ``top_k`` classifies among the labels that are selected first,
``oracle`` is the upper bound, ``given`` takes labels from elsewhere; ``image`` (what
the multi-label head looks at: pixels, the patches that enter the last blocks, or
queries, after the second of them); ``side`` (of crops; 0 is as published: 512 for
semantic segmentation, else 640).

The recipe is the authors' (masks.md 7.2), who train on pictures of one size, 16 a
batch, with weights of DINOv2 or DINOv3, whose files must be imported (docs/weights.md).
Their scores, none of which was measured here: ADE20K semantic with L at 512 pixels 58.4
mIoU (DINOv2), 59.5 (DINOv3), COCO panoptic with L at 640 56.0 and 56.8 PQ. Not as
theirs: pictures are tested as a whole, or in windows that begin every ``eval.stride``
pixels, where they pad to a square or spread the windows evenly.
"""

from ml_collections import ConfigDict

from configs import common, region_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import choose

BLOCKS = {12: 3, 24: 4, 32: 4, 40: 5}
"""Blocks that queries join, by the depth of the backbone (masks.md 7.1)."""

STEPS = {
    # 12 epochs; 31 epochs.
    "coco_panoptic": 88_715,
    "coco_panoptic_json": 88_715,
    "sign_scenes": 4_000,
}
DEFAULT_STEPS = 39_156

PATCH = 16
"""DINOv2 is trained further with larger patches than its own, as with all others."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = region_classifier.parse(
        arg,
        large="dinov2_l14_reg",
        small="dinov3_demo",
        dataset="ade20k",
        backbone="",
        task="semantic",
        selection="complete",
        image="pixels",
        side=0,
    )
    is_small = args.dataset == "sign_scenes"
    side = args.side or (640 if args.task != "semantic" else 512)
    backbone = make_backbone(args.backbone, side)
    if is_small:
        side = -(-region_classifier.SMALL_SIDE // backbone.patch_size)
        side *= backbone.patch_size
    is_coco = args.dataset.startswith("coco_panoptic")
    depth = BLOCKS.get(backbone.depth, max(1, backbone.depth // 2))
    starts = [(1 + 3 * i / max(1, depth - 1)) / 6 for i in range(depth)]
    config = region_classifier.recipe(
        "eomt",
        args,
        side=side,
        backbone=backbone,
        pixel_decoder={"name": "none"},
        decoder={
            "name": "eomt",
            # Masks that a picture has at most.
            "num_queries": 40 if is_small else 200 if args.task != "semantic" else 100,
            # Blocks of the backbone that queries join, from the last one.
            "depth": depth,
            # Shares of the training between which each of them ceases to mask; () and
            # () never mask.
            "mask_starts": tuple(round(start, 4) for start in starts),
            "mask_ends": tuple(round(start + 1 / 6, 4) for start in starts),
            # What the multi-label head looks at: pixels (the patches that enter these
            # blocks), or the queries after so many of them.
            "image": args.image,
            "image_layer": min(2, depth),
        },
    )
    common.use_schedule(config, STEPS.get(args.dataset, DEFAULT_STEPS))
    config.data.update(
        augmentation="large_scale_jitter",
        scale_range=(0.5, 2.0) if args.task == "semantic" else (0.1, 2.0),
        photometric=not is_coco,
        base_size=(side, side),
    )
    if args.task == "semantic":
        config.data.base_size = (4 * side, side)
        config.eval.mode = "slide"
    config.loss.regions = region_classifier.region_loss()
    _use_adamw(config, is_dinov3=args.backbone.startswith("dinov3"))
    if is_small:
        region_classifier.use_sign_scenes(config)
        config.optimizer.backbone_warmup_steps = 0
        config.eval.mode = "whole"
    config.lock()
    return config


def make_backbone(name: str, side: int) -> ConfigDict:
    """As published: patches of 16 pixels, and positions of patches alone."""
    if name in backbones.DINOV3S:
        backbone = backbones.dinov3(name)
        # As transformers' module does in training.
        backbone.position_rescale = 2.0
        return backbone
    if name in backbones.VITS:
        return backbones.vit(name, (side, side))
    start = name.removesuffix("_reg")
    choose(backbones.DINOV2S, "backbone", start)
    backbone = backbones.dinov2(name)
    if not start.endswith("demo"):
        backbone.update(patch_size=PATCH, image_size=(side, side), positions="patches")
    return backbone


def _use_adamw(config: ConfigDict, *, is_dinov3: bool) -> None:
    """masks.md 7.2; every parameter decays."""
    config.optimizer.update(
        name="adamw",
        learning_rate=2e-4 if is_dinov3 else 1e-4,
        end_learning_rate=0.0,
        weight_decay=0.05,
        clip_norm=0.01,
        # Heads and queries; the backbone stands still until then, and warms up itself.
        warmup_steps=2000 if is_dinov3 else 500,
        backbone_warmup_steps=3000 if is_dinov3 else 1000,
        layer_decay=0.8,
        layer_decay_rule="joint",
    )
