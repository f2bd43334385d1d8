"""What Mask2Former's recipes for videos have beside those for pictures."""

from ml_collections import ConfigDict

from configs import region_classifier

SEGMENTS = {"video_semantic": "classes", "video_instance": "instances"}
"""What regions are trained to find in clips, by task."""

CANVAS = (480, 864)
"""Frames of 480 rows, 16 to 9, padded to a multiple of 32."""

# method.md 11.2: factor of the multi-label head's learning rate. No figure is known of
# VSPW with Swin-L.
HEAD_RATES = {"resnet101": 2.0}
VSPW_HEAD_RATE = 5.0


def num_queries(dataset: str, backbone: str) -> int:
    """As released (method.md 11.1)."""
    return 200 if dataset.startswith("youtube_vis") and backbone == "swin_l" else 100


def use_clips(config: ConfigDict, args: ConfigDict) -> None:
    """Clips of two frames, resized and mirrored as wholes (method.md 12.4); whole
    videos, or chunks of VSPW's, in evaluation.
    """
    is_vspw = args.task == "video_semantic"
    is_residual = args.backbone.startswith("resnet")
    canvas = tuple(region_classifier.fit_side(x, args.backbone) for x in CANVAS)
    config.data.update(
        segments=SEGMENTS[args.task],
        augmentation="clip",
        crop_size=canvas,
        short_sides=(480,) if is_vspw else (360, 480),
        max_side=1333,
        base_size=(1333, 480 if is_vspw or not is_residual else 360),
        photometric=False,
    )
    config.eval.window = config.eval.stride = canvas
    with config.unlocked():
        # Frames of a training clip, and how far the others are from the first drawn.
        config.data.num_frames = 2
        config.data.frame_window = 20
        # Frames that the model sees at a time in evaluation; 0: the whole video.
        config.eval.num_frames = 20 if is_vspw else 0
        if not is_vspw:
            # Pairs of query and class of a video.
            config.eval.max_instances = 10
        if args.dataset == "sign_scenes":
            # sign_scenes: frames of each video.
            config.data.video_length = 8
    rate = HEAD_RATES.get(args.backbone, VSPW_HEAD_RATE) if is_vspw else 1.0
    config.optimizer.update(
        schedule="steps",
        falls_at=(4000 / 6000,),
        learning_rate_factors=(("^backbone/", 0.1), ("^multilabel_head/", rate)),
    )
    config.train.update(steps=6000, eval_every=1000, checkpoint_every=1000)


def use_sign_videos(config: ConfigDict, side: int) -> None:
    """The embedded videos, at their own size."""
    config.data.update(
        augmentation="clip",
        short_sides=(side,),
        crop_size=(side, side),
        base_size=(0, 0),
        frame_window=4,
        train_examples=2000,
        eval_examples=30,
        cache=False,
    )
    config.eval.window = config.eval.stride = (side, side)
    config.train.update(batch_size=4, steps=4000)
    config.eval.num_frames = 4 if config.task == "video_semantic" else 0
