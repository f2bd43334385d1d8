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

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common, region_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import choose

BLOCKS = {12: 3, 24: 4, 32: 4, 40: 5}
"""Blocks that queries join, by the depth of the backbone (masks.md 7.1)."""


class Training(NamedTuple):
    """How long, and what falls off towards the backbone's first blocks.

    Attributes:
      steps: at 16 pictures a batch.
      sixth: steps in which one block's masks cease; they begin to at 1 to 4 of these.
      layer_decay: factor of the learning rate from block to block.
      layer_decay_rule: last, or joint, where all that queries join are at the full one.
    """

    steps: int
    sixth: float
    layer_decay: float
    layer_decay_rule: str


TRAININGS = {
    # Epochs: 31, 16, 12, 12.
    ("ade20k", "dinov2"): Training(39_156, 6_520, 0.8, "last"),
    ("ade20k", "dinov3"): Training(20_208, 3_260, 1.0, "last"),
    ("coco", "dinov2"): Training(88_715, 14_782, 0.8, "last"),
    ("coco", "dinov3"): Training(88_715, 14_782, 0.8, "joint"),
}
"""As published (masks.md 7.2); other data sets are trained as ADE20K, other backbones
as DINOv2.
"""

SMALL = Training(4_000, 4_000 / 6, 1.0, "last")

FIRST_DINOV3_END = 3_000
"""On DINOv3 the first block's masks begin to cease at once, until this step."""

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
        if args.backbone in backbones.VITS:  # Others have the published table.
            backbone.image_size = (side, side)
    is_dinov3 = args.backbone.startswith("dinov3")
    depth = BLOCKS.get(backbone.depth, max(1, backbone.depth // 2))
    training = choose_training(args, backbone)
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
            **mask_shares(training, depth, is_dinov3=is_dinov3 and not is_small),
            # What the multi-label head looks at: pixels (the patches that enter these
            # blocks), or the queries after so many of them.
            "image": args.image,
            "image_layer": min(2, depth),
        },
    )
    common.use_schedule(config, training.steps)
    config.data.update(
        augmentation="large_scale_jitter",
        scale_range=(0.5, 2.0) if args.task == "semantic" else (0.1, 2.0),
        photometric=args.dataset not in region_classifier.COCO,
        base_size=(side, side),
    )
    if args.task == "semantic":
        config.data.base_size = (4 * side, side)
        config.eval.mode = "slide"
    config.loss.regions = region_classifier.region_loss()
    _use_adamw(config, training, is_dinov3=is_dinov3)
    if is_small:
        region_classifier.use_sign_scenes(config)
        config.optimizer.backbone_warmup_steps = 0
        config.eval.mode = "whole"
    config.lock()
    return config


def choose_training(args: ConfigDict, backbone: ConfigDict) -> Training:
    """S and B are trained twice as long on COCO."""
    if args.dataset == "sign_scenes":
        return SMALL
    data = "coco" if args.dataset in region_classifier.COCO else "ade20k"
    generation = "dinov3" if args.backbone.startswith("dinov3") else "dinov2"
    training = TRAININGS[data, generation]
    if data == "coco" and backbone.depth <= 12:
        steps, sixth = 2 * training.steps, 2 * training.sixth
        training = training._replace(steps=steps, sixth=sixth)
    return training


def mask_shares(training: Training, depth: int, *, is_dinov3: bool) -> dict:
    """Masks cease block by block, which spread over four sixths."""
    sixths = [1 + 3 * i / max(1, depth - 1) for i in range(depth)]
    starts = [training.sixth * x for x in sixths]
    ends = [training.sixth * (x + 1) for x in sixths]
    if is_dinov3:
        starts[0], ends[0] = 0, FIRST_DINOV3_END
    # Shares of the training between which each block ceases to mask; () and () never
    # mask.
    return {
        "mask_starts": tuple(round(x / training.steps, 6) for x in starts),
        "mask_ends": tuple(round(x / training.steps, 6) for x in ends),
    }


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


def _use_adamw(config: ConfigDict, training: Training, *, is_dinov3: bool) -> None:
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
        layer_decay=training.layer_decay,
        layer_decay_rule=training.layer_decay_rule,
    )
