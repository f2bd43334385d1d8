"""MaskFormer with label selection, for semantic and panoptic segmentation.

    python main.py train --workdir=runs/ade20k_maskformer \
        --config=configs/maskformer.py:dataset=ade20k,backbone=swin_b,task=semantic

Arguments: as of ``configs/mask2former.py``; ``pixel_decoder`` is fpn, encoder_fpn (six
layers of an encoder before it; what panoptic segmentation with a residual network has
where none is named) or deformable.

There is no code of the authors for MaskFormer with label selection, but results, of
baseline and MLSeg (method.md 11.5; none of these was measured here): ADE20K semantic,
Swin-B 52.7 to 53.9, Swin-L 54.1 to 54.6 mIoU; panoptic, ResNet-50 34.7 to 36.5 PQ.
"""

from ml_collections import ConfigDict

from configs import common, region_classifier
from mlseg_jax.settings import backbones

STEPS = dict.fromkeys(region_classifier.COCO, 554_400)
STEPS |= {"ade20k_panoptic": 720_000, "sign_scenes": 4_000}
DEFAULT_STEPS = 160_000

FALLS_AT = (369_600 / 554_400,)
"""When the learning rate of COCO falls."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = region_classifier.parse(
        arg,
        large="swin_b",
        dataset="ade20k",
        backbone="",
        task="semantic",
        selection="top_k",
        pixel_decoder="",
        image="queries",
    )
    is_small = args.dataset == "sign_scenes"
    is_resnet = args.backbone in backbones.RESNETS
    if not args.pixel_decoder:
        # masks.md 3.1.
        has_encoder = is_resnet and args.task == "panoptic"
        args.pixel_decoder = "encoder_fpn" if has_encoder else "fpn"
    is_large = not is_resnet or args.task != "semantic"
    side = region_classifier.SMALL_SIDE if is_small else 640 if is_large else 512
    side = region_classifier.fit_side(side, args.backbone)
    config = region_classifier.recipe(
        "maskformer",
        args,
        side=side,
        backbone=region_classifier.make_backbone(args.backbone, side),
        pixel_decoder=region_classifier.pixel_decoder(
            args.pixel_decoder,
            is_small=is_small,
            # As of configs/mask2former.py.
            depth=2 if is_small else 6,
            num_heads=4 if is_small else 8,
            num_points=4,
            mlp_dim=256 if is_small else 2048,
            dropout_rate=0.1,
        ),
        decoder=region_classifier.decoder(
            "maskformer", is_small=is_small, num_queries=100, depth=6
        )
        | {"image": args.image, "dropout_rate": 0.1},
    )
    common.use_schedule(config, STEPS.get(args.dataset, DEFAULT_STEPS))
    # masks.md 3.3: focal losses at every pixel.
    config.loss.regions = region_classifier.region_loss(
        class_weight=1.0, mask_weight=20.0, dice_weight=1.0, mask="focal"
    )
    # masks.md 3.4: as the backbone was published, whatever is segmented.
    if is_resnet:
        region_classifier.use_adamw(config, learning_rate=1e-4, weight_decay=1e-4)
        config.optimizer.learning_rate_factors = (("^backbone/", 0.1),)
    else:
        region_classifier.use_adamw(
            config, learning_rate=6e-5, weight_decay=0.01, warmup_steps=1500
        )
    if is_small:
        region_classifier.use_sign_scenes(config)
    elif args.dataset in region_classifier.COCO:
        # Pictures are not cropped to the canvas, so it holds the largest.
        max_side = 1000 if args.backbone == "swin_l" else 1333
        side = -(-max_side // 32) * 32
        config.data.update(
            augmentation="detr",
            short_sides=tuple(range(480, 801, 32)),
            max_side=max_side,
            crop_size=(side, side),
            photometric=False,
            base_size=(1333, 800),
        )
        config.train.batch_size = 64
        config.optimizer.update(schedule="steps", falls_at=FALLS_AT)
    elif args.task == "panoptic":
        config.eval.object_threshold = 0.7
    config.lock()
    return config
