"""No decoder at all: the selected classes join the last blocks of the encoder.

    python main.py train --workdir=runs/mine \
        --config=configs/encoder_only.py:dataset=folder,backbone=dinov3_b16 \
        --config.data.path=DIRECTORY

Arguments: ``dataset`` (rows of ``DATA_SETS``), ``backbone`` (rows of
``backbones.DINOV3S``, ``DINOV2S``, with ``_reg`` behind them for those with registers,
or ``VITS``), ``selection`` (``top_k``; ``complete`` lets all classes join, ``oracle``
is the upper bound, ``given`` takes labels from elsewhere), ``blocks``: how many blocks
before the end the classes join (2, 3, 4; 0 is EoMT's number), ``head``: ``narrow``
scores labels in a quarter of the width with a table of its own, ``shared`` in the full
width with the classes' own rows (the default for encoders of less than 256 channels),
``pooling`` from the mean of the patches;
``downsample``: bins a side that the head's patches are pooled to, 0 for all of them.

Not in the paper, and never trained from published weights: what it does with those is
unknown. docs/encoder_only.md has what it costs and what was measured in small.
"""

from ml_collections import ConfigDict

from configs import common, eomt, pixel_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import choose, parse_arg

HEADS = ("narrow", "shared", "pooling")
NARROWABLE = 256
"""Channels of an encoder from which on a quarter of them scores labels well enough:
with 32 of 128 the mAP of 120 labels was 40 %, with all 56 (docs/encoder_only.md).
"""


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg,
        dataset="ade20k",
        backbone="dinov3_b16",
        selection="top_k",
        blocks=0,
        head="",
        downsample=8,
    )
    if args.head:
        choose(HEADS, "head", args.head)
    is_small = args.dataset == "sign_scenes"
    backbone = make_backbone(args.backbone, 96 if is_small else 512)
    patch = backbone.patch_size
    side = -(-(96 if is_small else 512) // patch) * patch
    config = pixel_classifier.recipe(
        "encoder_only",
        args,
        side=side,
        base_size=(4 * side, side),
        steps=40_000,
        backbone=backbone,
        decoder=decoder(backbone, args.blocks),
        multilabel_head=head(backbone, args.head, args.downsample),
        auxiliary_head={"name": "none"},
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-4,
        end_learning_rate=0.0,
        warmup_steps=500,
        backbone_warmup_steps=1000,
        weight_decay=0.05,
        weight_decay_factors=(
            ("(bias|biases|scale|gate|_tokens?|position_table)$", 0.0),
        ),
        clip_norm=1.0,
        layer_decay=0.8,
        layer_decay_rule="joint",
    )
    if is_small:
        common.use_sign_scenes(config)
        config.optimizer.backbone_warmup_steps = 0
    config.lock()
    return config


def make_backbone(name: str, side: int) -> ConfigDict:
    if name in backbones.DINOV3S:
        return backbones.dinov3(name)
    if name in backbones.VITS:
        return backbones.vit(name, (side, side))
    return backbones.dinov2(name)


def decoder(backbone: ConfigDict, blocks: int = 0) -> ConfigDict:
    usual = eomt.BLOCKS.get(backbone.depth, max(1, backbone.depth // 2))
    return ConfigDict(
        {
            "name": "encoder_only",
            # Blocks of the backbone that the selected classes join, from the last one.
            "depth": blocks or usual,
        }
    )


def head(backbone: ConfigDict, kind: str = "", downsample: int = 8) -> ConfigDict:
    """Classes do not see one another: what one costs does not grow with the others."""
    kind = kind or ("shared" if backbone.embed_dim < NARROWABLE else "narrow")
    if kind == "pooling":
        return ConfigDict({"name": "global_pooling", "downsample": downsample or 16})
    width, heads = backbone.embed_dim, backbone.num_heads
    is_narrow = kind == "narrow"
    return ConfigDict(
        {
            "name": "projected_encoder",
            "projection": "linear",
            # Bins a side that the patches are pooled to; 0 keeps them as they are.
            "downsample": downsample,
            # 0 is the width of class queries.
            "embed_dim": width // 4 if is_narrow else 0,
            "num_heads": max(1, heads // 4) if is_narrow else heads,
            "dropout_rate": 0.1,
            "mlp_ratio": 4,
            "classes_apart": True,
            # The classes that join the encoder are the head's tokens, too.
            "share_embeddings": not is_narrow,
            "class_projection": False,
        }
    )
