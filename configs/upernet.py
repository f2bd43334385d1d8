"""UPerNet with label selection on Swin and BEiT, with the paper's recipes (table 8).

    python main.py train --workdir=runs/ade20k_swin \
        --config=configs/upernet.py:dataset=ade20k,backbone=swin_b,selection=top_k

Arguments: ``dataset`` (rows of RECIPES), ``backbone`` (rows of ``backbones.SWINS`` and
``BEITS``), ``selection``: ``top_k`` is MLSeg, ``complete`` the baseline, ``oracle`` the
upper bound, ``given`` takes labels from elsewhere; ``class_projection=1`` adds the
matrix that the published parameter counts have and the released code has not (method.md
16, row 22).

The paper trains on 8 GPUs of 32 GB, Swin-B with two images each, BEiT-L with one at a
time. Its mean IoU in percent, baseline to MLSeg (table 8, method.md section 15; none of
these was measured here). Swin-B: ADE20K 52.4 to 53.0 and COCO-Stuff 47.2 to 47.9, both
at six scales and mirrored; COCO+LVIS 20.3 to 20.8 at a single scale. BEiT-L: ADE20K
57.0 to 57.8, COCO-Stuff 49.9 to 50.3, at six scales and mirrored; on COCO+LVIS it ran
out of memory there (``docs/planning.md`` has what it needs here).
"""

from ml_collections import ConfigDict

from configs import backbones, common

# Recipes of method.md sections 9.1 and 12.1, which has no schedule for BEiT on
# COCO+LVIS. ``steps``: Swin's and BEiT's. ``weight``: of the multi-label loss on Swin.
RECIPES = {
    "ade20k": {"classes": 150, "steps": (160_000, 160_000), "k": 50, "weight": 10.0},
    "coco_stuff": {"classes": 171, "steps": (40_000, 160_000), "k": 50, "weight": 10.0},
    "coco_lvis": {
        "classes": 1284, "steps": (160_000, 160_000), "k": 100, "weight": 300.0,
    },
    # Not in the paper: other data, and the embedded scenes.
    "pascal_context": {
        "classes": 60, "steps": (80_000, 80_000), "k": 25, "weight": 5.0,
    },
    "ade20k_full": {
        "classes": 847, "steps": (160_000, 160_000), "k": 100, "weight": 100.0,
    },
    "folder": {"classes": 0, "steps": (40_000, 40_000), "k": 50, "weight": 10.0},
    "sign_scenes": {"classes": 120, "steps": (4_000, 4_000), "k": 20, "weight": 10.0},
}  # fmt: skip

# Official Swin-UPerNet: none on norms and tables of positions.
SWIN_DECAY_FACTORS = (("norm|relative_position_bias_table", 0.0),)
# BEiT: none on anything of one dimension.
BEIT_DECAY_FACTORS = (("(bias|biases|scale|class_token)$", 0.0),)
# The released configuration of Swin (method.md 9.1); that of BEiT is not in effect.
SWIN_RATE_FACTORS = (("multilabel_head/encoder/(blocks|classifier)", 0.1),)


def get_config(arg: str | None = None) -> ConfigDict:
    args = common.parse_arg(
        arg,
        dataset="ade20k",
        backbone="swin_b",
        selection="top_k",
        class_projection=0,
    )
    recipe = common.choose(RECIPES, "data set", args.dataset)
    names = [*backbones.SWINS, *backbones.BEITS]
    is_beit = common.choose(names, "backbone", args.backbone) in backbones.BEITS
    is_baseline = common.selection_name(args.selection) == "complete"
    has_head = args.selection == "top_k"
    is_small = args.dataset == "sign_scenes"
    side = 96 if is_small else 640 if is_beit else 512
    width = backbones.BEITS[args.backbone][0] if is_beit else 512

    config = common.base("upernet")
    config.data = common.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=(4 * side, side),
        normalisation="imagenet",
    )
    config.data.num_classes = recipe["classes"]
    config.model = ConfigDict(
        {
            "backbone": backbones.beit(args.backbone, (side, side))
            if is_beit
            else backbones.swin(args.backbone),
            "decoder": {
                "name": "upernet",
                # Width of all maps, pixel embeddings and class queries.
                "embed_dim": width,
                # Of whole channels of the pixel embeddings.
                "dropout_rate": 0.1,
            },
            "multilabel_head": common.projected_encoder(
                0,
                num_heads=width // 64,
                share_embeddings=not is_beit,
                class_projection=args.class_projection,
            )
            if has_head
            else {"name": "none"},
            # As of configs/segmenter.py.
            "class_embeddings": {"in_backbone": False, "initial": "normal"},
            "auxiliary_head": common.fcn_head(level=2),
            # affine, shared, temperature, none (rank_adaptive.py).
            "rank_norm": {
                "kind": "none" if is_baseline else "affine",
                "unbiased_variance": False,
            },
            "dtype": "float32",
        }
    )
    config.selection.name = args.selection
    config.selection.k = recipe["k"]
    if has_head:
        config.loss.multilabel_weight = recipe["weight"] * (0.5 if is_beit else 1.0)
    else:
        config.loss.multilabel_weight = 0.0
    _use_recipe(config, is_beit, has_head)
    config.train.steps = recipe["steps"][is_beit]
    config.train.batch_size = 16
    config.train.eval_every = max(1000, config.train.steps // 10)
    config.train.checkpoint_every = 2000
    config.eval.mode = "slide" if is_beit else "whole"
    config.eval.window = (side, side)
    # A third of each window is seen twice.
    config.eval.stride = (side * 2 // 3,) * 2 if is_beit else (side, side)
    if is_small:
        common.use_sign_scenes(config)
    config.lock()
    return config


def _use_recipe(config: ConfigDict, is_beit: bool, has_head: bool) -> None:
    """Method.md 12.1; for Swin the official schedule (section 16, row 23)."""
    config.optimizer.update(
        name="adamw",
        learning_rate=2e-5 if is_beit else 6e-5,
        end_learning_rate=0.0,
        poly_power=1.0,
        warmup_steps=3000 if is_beit else 1500,
        weight_decay=0.05 if is_beit else 0.01,
        weight_decay_factors=BEIT_DECAY_FACTORS if is_beit else SWIN_DECAY_FACTORS,
    )
    if is_beit:
        config.optimizer.layer_decay = 0.95
    elif has_head:
        config.optimizer.learning_rate_factors = SWIN_RATE_FACTORS
