"""Mask2Former with label selection, for semantic, panoptic and instance segmentation of
pictures, and semantic and instance segmentation of videos.

    python main.py train --workdir=runs/ade20k_mask2former \
        --config=configs/mask2former.py:dataset=ade20k,backbone=swin_l,task=semantic

Arguments: ``dataset`` (rows of ``region_classifier.NUM_CLASSES``), ``backbone`` (any of
``region_classifier.BACKBONES``; ViTs and DINOv2 get a simple feature pyramid), ``task``
(semantic, panoptic, instance; video_semantic, video_instance), ``selection``:
``top_k`` is MLSeg, ``complete`` the baseline, ``oracle`` the upper bound, ``given``
takes labels from elsewhere; ``pixel_decoder`` (deformable, or fpn, which is quicker);
``image`` (what the multi-label head looks at: queries or pixels).

The paper trains with 16 pictures a batch (method.md 12.4). Its scores with Swin-L,
baseline to MLSeg (method.md section 15; none of these was measured here): ADE20K
semantic 56.1 to 56.5 mIoU at a single scale, VSPW 59.4 to 60.1 mIoU, YouTubeVIS 2019
60.4 to 61.1 AP. Videos are trained for 6,000 steps from a model of pictures
(``--config.init=``, docs/video.md).

Embedded, ``dataset=sign_scenes,task=panoptic``: on one core 2,400 steps take 19 minutes
and reach 46.9, 44.0 and 43.4 PQ (three seeds) on scenes of 40 classes whose signs
touch, with the settings of ``benchmarks/touching_signs.py --rivals=mask2former``.
"""

from ml_collections import ConfigDict

from configs import common, region_classifier, region_videos

# masks.md 5.3; Swin-L has twice as many on COCO.
STEPS = dict.fromkeys(region_classifier.COCO, 368_750) | {"sign_scenes": 4_000}
DEFAULT_STEPS = 160_000

FALLS_AT = (327_778 / 368_750, 355_092 / 368_750)
"""When the learning rate of COCO falls."""

LARGE = ("swin_b", "swin_l")
"""Backbones that are trained on ADE20K with crops of 640 pixels, not 512."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = region_classifier.parse(
        arg,
        large="swin_l",
        tasks=region_classifier.SEGMENTS | region_videos.SEGMENTS,
        dataset="ade20k",
        backbone="",
        task="semantic",
        selection="top_k",
        pixel_decoder="deformable",
        image="queries",
    )
    is_small = args.dataset == "sign_scenes"
    is_coco = args.dataset in region_classifier.COCO
    side = 640 if args.backbone in LARGE else 512
    side = region_classifier.SMALL_SIDE if is_small else 1024 if is_coco else side
    side = region_classifier.fit_side(side, args.backbone)
    is_video = args.task in region_videos.SEGMENTS
    num_queries = region_videos.num_queries(args.dataset, args.backbone)
    if args.task in ("panoptic", "instance") and args.backbone == "swin_l":
        num_queries = 200
    config = region_classifier.recipe(
        "mask2former",
        args,
        side=side,
        backbone=region_classifier.make_backbone(args.backbone, side),
        pixel_decoder=region_classifier.pixel_decoder(
            args.pixel_decoder,
            is_small=is_small,
            # deformable, encoder_fpn: layers, their heads and hidden width; points that
            # each head of deformable looks at on every map.
            depth=2 if is_small else 6,
            num_heads=4 if is_small else 8,
            num_points=4,
            mlp_dim=128 if is_small else 1024,
            dropout_rate=0.0,
        ),
        decoder=region_classifier.decoder(
            "mask2former",
            is_small=is_small,
            num_queries=num_queries,
            depth=9,
        )
        | {"image": args.image},
    )
    steps = STEPS.get(args.dataset, DEFAULT_STEPS)
    common.use_schedule(config, steps * (1 + (is_coco and args.backbone == "swin_l")))
    if is_coco:
        config.data.update(
            augmentation="large_scale_jitter",
            scale_range=(0.1, 2.0),
            photometric=False,
            base_size=(1333, 800),
        )
    config.loss.regions = region_classifier.region_loss()
    region_classifier.use_adamw(config, learning_rate=1e-4, weight_decay=0.05)
    if is_coco:
        config.optimizer.update(schedule="steps", falls_at=FALLS_AT)
    # Of published weights, and of the multi-label head (method.md 11.2).
    config.optimizer.learning_rate_factors = (
        ("^backbone/", 0.1),
        ("^multilabel_head/", 0.1),
    )
    if is_video:
        region_videos.use_clips(config, args)
    if is_small:
        region_classifier.use_sign_scenes(config)
        if is_video:
            region_videos.use_sign_videos(config, side)
    config.lock()
    return config
