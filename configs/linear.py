"""A linear classifier with label selection on DINOv2: the cheapest strong model.

    python main.py train --workdir=runs/mine \
        --config=configs/linear.py:dataset=folder,backbone=dinov2_b14_reg \
        --config.data.path=DIRECTORY

Arguments: ``dataset`` (rows of RECIPES), ``backbone`` (rows of ``backbones.DINOV2S``,
``_reg`` behind them for those with registers), ``selection`` (``top_k`` is MLSeg,
``complete`` the plain linear classifier, ``oracle`` the upper bound, ``given`` takes
labels from elsewhere), ``frozen``: 1 trains only what follows the backbone, which
then has no gradients and no optimiser state; 0 trains all, at a lower rate for earlier
layers.

Not in the paper. The head is DINOv2's (batch norm, then a 1 x 1 convolution; Oquab et
al. 2023, section 7.4) with rows for the selected labels alone, and the multi-label head
is that of table 8's models. No score was measured here. The weights must be imported;
without them a frozen backbone is random and learns nothing.
"""

from ml_collections import ConfigDict

from configs import backbones, common

# ``weight``: of the multi-label loss, the paper's for each data set.
RECIPES = {
    "folder": {"classes": 0, "k": 50, "weight": 10.0},
    "pascal_context": {"classes": 60, "k": 25, "weight": 5.0},
    "ade20k": {"classes": 150, "k": 50, "weight": 10.0},
    "coco_stuff": {"classes": 171, "k": 50, "weight": 10.0},
    "ade20k_full": {"classes": 847, "k": 100, "weight": 100.0},
    "coco_lvis": {"classes": 1284, "k": 100, "weight": 300.0},
    "sign_scenes": {"classes": 120, "k": 20, "weight": 10.0},
}


def get_config(arg: str | None = None) -> ConfigDict:
    args = common.parse_arg(
        arg,
        dataset="ade20k",
        backbone="dinov2_b14_reg",
        selection="top_k",
        frozen=1,
    )
    recipe = common.choose(RECIPES, "data set", args.dataset)
    is_baseline = common.selection_name(args.selection) == "complete"
    has_head = args.selection == "top_k"
    is_small = args.dataset == "sign_scenes"
    side = 98 if is_small else 518

    config = common.base("linear")
    config.data = common.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=(4 * side, side),
        normalisation="imagenet",
    )
    config.data.num_classes = recipe["classes"]
    backbone = backbones.dinov2(args.backbone)
    config.model = ConfigDict(
        {
            "backbone": backbone,
            "decoder": {"name": "linear", "dropout_rate": 0.0},
            "multilabel_head": common.projected_encoder(
                7 if is_small else 16, num_heads=backbone.embed_dim // 64
            )
            if has_head
            else {"name": "none"},
            # As of configs/segmenter.py.
            "class_embeddings": {"in_backbone": False, "initial": "normal"},
            "auxiliary_head": {"name": "none"},
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
    config.loss.multilabel_weight = recipe["weight"] if has_head else 0.0
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
    config.train.steps = 40_000
    config.train.batch_size = 16
    config.train.eval_every = 4000
    config.train.checkpoint_every = 2000
    config.eval.mode = "whole"
    config.eval.window = config.eval.stride = (side, side)
    if is_small:
        common.use_sign_scenes(config)
    config.lock()
    return config
