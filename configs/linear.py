"""A linear classifier with label selection on DINOv2 or DINOv3: the cheapest strong
model.

    python main.py train --workdir=runs/mine \
        --config=configs/linear.py:dataset=folder,backbone=dinov2_b14_reg \
        --config.data.path=DIRECTORY

Arguments: ``dataset`` (rows of ``DATA_SETS``), ``backbone`` (rows of
``backbones.DINOV2S``, ``_reg`` behind them for those with registers, or of
``backbones.DINOV3S``), ``selection`` (``top_k`` is MLSeg, ``complete`` the plain linear
classifier, ``oracle`` the upper bound, ``given`` takes labels from elsewhere),
``frozen``: 1 trains only what follows
the backbone, which then has no gradients and no optimiser state; 0 trains all, at a
lower rate for earlier layers.

Not in the paper. The head is DINOv2's (batch norm, then a 1 x 1 convolution; Oquab et
al. 2023, section 7.4) with rows for the selected labels alone, and the multi-label head
is that of table 8's models. No score was measured here. The weights must be imported;
without them a frozen backbone is random and learns nothing. On the embedded scenes
``dataset=sign_scenes,backbone=dinov2_demo,frozen=0`` trains all of it from nothing.
"""

from ml_collections import ConfigDict

from configs import common, pixel_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg,
        dataset="ade20k",
        backbone="dinov2_b14_reg",
        selection="top_k",
        frozen=1,
    )
    is_small = args.dataset == "sign_scenes"
    side = 98 if is_small else 518
    if args.backbone in backbones.DINOV3S:
        backbone = backbones.dinov3(args.backbone)
        side = 96 if is_small else 512
    else:
        backbone = backbones.dinov2(args.backbone)
    config = pixel_classifier.recipe(
        "linear",
        args,
        side=side,
        base_size=(4 * side, side),
        steps=40_000,
        backbone=backbone,
        decoder={"name": "linear", "dropout_rate": 0.0},
        multilabel_head=pixel_classifier.projected_encoder(
            7 if is_small else 16, num_heads=backbone.embed_dim // 64
        ),
        auxiliary_head={"name": "none"},
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3 if args.frozen else 6e-5,
        end_learning_rate=0.0,
        poly_power=1.0,
        warmup_steps=1500,
        weight_decay=1e-4 if args.frozen else 0.05,
        weight_decay_factors=(("(bias|biases|scale|_token)$", 0.0),),
    )
    if args.frozen:
        config.optimizer.frozen = ("^backbone/",)
    else:
        config.optimizer.layer_decay = 0.8
    if is_small:
        common.use_sign_scenes(config)
    config.lock()
    return config
