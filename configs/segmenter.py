"""Segmenter with label selection, with the paper's recipe for each data set.

    python main.py train --workdir=runs/coco_stuff \
        --config=configs/segmenter.py:dataset=coco_stuff,backbone=vit_b16,selection=top_k

Arguments: ``dataset`` (rows of RECIPES), ``backbone`` (rows of ``common.VITS``),
``selection``: ``top_k`` is MLSeg, ``complete`` the baseline, ``oracle`` the paper's
upper bound, ``given`` takes labels from elsewhere.

The paper trains on 8 GPUs with one image each. Its mean IoU in percent, single scale,
baseline to MLSeg (method.md section 15; none of these was measured here): ViT-B/16
PASCAL-Context 53.85 to 54.76, ADE20K 48.80 to 49.68, COCO-Stuff 41.85 to 44.98,
ADE20K-Full 17.93 to 18.78, COCO+LVIS 19.41 to 21.26.
"""

from ml_collections import ConfigDict

from configs import common

# Recipes of method.md section 12.1 and 4.4. ``short``: shortest side in pixels for
# ViT-B and smaller; ViT-L takes 640 for crop and resizing.
RECIPES = {
    "pascal_context": {
        "classes": 60, "crop": 480, "base": (4160, 520), "steps": 80_000, "k": 25,
        "loss": "asymmetric", "weight": 5.0, "decay": 1e-6, "pixels": "half", "pool": 8,
    },
    "ade20k": {
        "classes": 150, "crop": 512, "base": (2048, 512), "steps": 160_000, "k": 50,
        "loss": "asymmetric", "weight": 10.0, "decay": 1e-6, "pixels": "half", "pool":
        8,
    },
    "coco_stuff": {
        "classes": 171, "crop": 512, "base": (2048, 512), "steps": 40_000, "k": 50,
        "loss": "binary_cross_entropy", "weight": 10.0, "decay": 0.0,
        "pixels": "imagenet", "pool": 8,
    },
    "ade20k_full": {
        "classes": 847, "crop": 512, "base": (2048, 512), "steps": 160_000, "k": 100,
        "loss": "asymmetric", "weight": 100.0, "decay": 0.0, "pixels": "imagenet",
        "pool": 0,
    },
    "coco_lvis": {
        "classes": 1284, "crop": 512, "base": (2048, 512), "steps": 320_000, "k": 100,
        "loss": "asymmetric", "weight": 300.0, "decay": 1e-6, "pixels": "imagenet",
        "pool": 0,
    },
    # Not in the paper: anyone's own data, and the embedded scenes.
    "folder": {
        "classes": 0, "crop": 512, "base": (2048, 512), "steps": 40_000, "k": 50,
        "loss": "asymmetric", "weight": 10.0, "decay": 0.0, "pixels": "half", "pool": 8,
    },
    "sign_scenes": {
        "classes": 120, "crop": 96, "base": (0, 0), "steps": 4_000, "k": 20,
        "loss": "asymmetric", "weight": 10.0, "decay": 0.0, "pixels": "half", "pool": 8,
    },
}  # fmt: skip

# Weight decay: a hundredfold on the multi-label block and its classifier, none on the
# decoder's norms and on the position table (method.md section 12.1).
WEIGHT_DECAY_FACTORS = (
    ("multilabel_head/(blocks|classifier)", 100.0),
    ("position_table|class_token|decoder/.*norm|multilabel_head/norm|rank_norm", 0.0),
)


def get_config(arg: str | None = None) -> ConfigDict:
    args = common.parse_arg(
        arg, dataset="ade20k", backbone="vit_b16", selection="top_k"
    )
    recipe = common.choose(RECIPES, "data set", args.dataset)
    is_large = args.backbone == "vit_l16" and recipe["crop"] == 512
    side = 640 if is_large else recipe["crop"]
    base_size = (2560, 640) if is_large else recipe["base"]
    is_baseline = common.selection_name(args.selection) == "complete"
    has_head = args.selection == "top_k"

    config = common.base("segmenter")
    config.data = common.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=base_size,
        normalisation=recipe["pixels"],
    )
    config.data.num_classes = recipe["classes"]
    # PASCAL-Context is trained on 480 pixels but keeps the table of 512.
    table = 512 if side == 480 else side
    config.model = ConfigDict(
        {
            "backbone": common.vit(args.backbone, (table, table)),
            "decoder": {"name": "segmenter", "depth": 2, "dropout_rate": 0.1},
            "multilabel_head": {
                "name": "transformer_encoder" if has_head else "none",
                # Bins a side that the image tokens are pooled to; 0 keeps them all.
                "downsample": recipe["pool"],
                # transformer_decoder: number of layers, their heads and hidden width.
                "depth": 2,
                "num_heads": 8,
                "mlp_dim": 2048,
            },
            # affine, shared, temperature, none (rank_adaptive.py).
            "rank_norm": {"kind": "affine", "unbiased_variance": False},
            "dtype": "float32",
        }
    )
    config.selection.name = args.selection
    config.selection.k = recipe["k"]
    config.loss.multilabel = recipe["loss"]
    if is_large and args.dataset == "coco_stuff":
        config.loss.multilabel = "asymmetric"
    config.loss.multilabel_weight = recipe["weight"] if has_head else 0.0
    config.optimizer.weight_decay = 0.0 if is_baseline else recipe["decay"]
    config.optimizer.weight_decay_factors = WEIGHT_DECAY_FACTORS
    config.train.steps = recipe["steps"]
    config.train.eval_every = max(1000, recipe["steps"] // 10)
    config.train.checkpoint_every = 2000
    config.eval.window = config.eval.stride = (side, side)
    if args.dataset == "sign_scenes":
        common.use_sign_scenes(config)
    config.lock()
    return config
