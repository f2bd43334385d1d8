"""UPerNet with label selection on Swin and BEiT, with the paper's recipes (table 8).

    python main.py train --workdir=runs/ade20k_swin \
        --config=configs/upernet.py:dataset=ade20k,backbone=swin_b,selection=top_k

Arguments: ``dataset`` (rows of ``DATA_SETS``), ``backbone`` (rows of
``backbones.SWINS`` and ``BEITS``), ``selection``: ``top_k`` is MLSeg, ``complete`` the
baseline, ``oracle`` the upper bound, ``given`` takes labels from elsewhere;
``class_projection=1`` adds the matrix that the published parameter counts have and the
released code has not (method.md 16, row 22).

The paper trains on 8 GPUs of 32 GB, Swin-B with two images each, BEiT-L with one at a
time. Its mean IoU in percent, baseline to MLSeg (table 8, method.md section 15; none of
these was measured here). Swin-B: ADE20K 52.4 to 53.0 and COCO-Stuff 47.2 to 47.9, both
at six scales and mirrored; COCO+LVIS 20.3 to 20.8 at a single scale. BEiT-L: ADE20K
57.0 to 57.8, COCO-Stuff 49.9 to 50.3, at six scales and mirrored; on COCO+LVIS it ran
out of memory there (``docs/planning.md`` has what it needs here).
"""

from ml_collections import ConfigDict

from configs import common, pixel_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import choose, parse_arg
from mlseg_jax.settings.resolve import AUTO

# Steps with Swin and with BEiT (method.md 12.1, which has none for BEiT on COCO+LVIS).
STEPS = {
    "ade20k": (160_000, 160_000),
    "coco_stuff": (40_000, 160_000),
    "coco_lvis": (160_000, 160_000),
    # Not in the paper.
    "pascal_context": (80_000, 80_000),
    "ade20k_full": (160_000, 160_000),
    "folder": (40_000, 40_000),
    "sign_scenes": (4_000, 4_000),
}

# Official Swin-UPerNet: none on norms and tables of positions.
SWIN_DECAY_FACTORS = (("norm|relative_position_bias_table", 0.0),)
# BEiT: none on anything of one dimension.
BEIT_DECAY_FACTORS = (("(bias|biases|scale|class_token)$", 0.0),)
# The released configuration of Swin (method.md 9.1); that of BEiT is not in effect.
SWIN_RATE_FACTORS = (("multilabel_head/encoder/(blocks|classifier)", 0.1),)


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg,
        dataset="ade20k",
        backbone="swin_b",
        selection="top_k",
        class_projection=0,
    )
    steps = choose(STEPS, "data set", args.dataset)
    names = [*backbones.SWINS, *backbones.BEITS]
    is_beit = choose(names, "backbone", args.backbone) in backbones.BEITS
    is_small = args.dataset == "sign_scenes"
    side = 96 if is_small else 640 if is_beit else 512
    if is_beit:
        backbone = backbones.beit(args.backbone, (side, side))
        width = backbone.embed_dim
    else:
        backbone = backbones.swin(args.backbone)
        width = 64 if args.backbone == "swin_demo" else 512

    config = pixel_classifier.recipe(
        "upernet",
        args,
        side=side,
        base_size=(4 * side, side),
        steps=steps[is_beit],
        backbone=backbone,
        decoder={
            "name": "upernet",
            # Width of all maps, pixel embeddings and class queries.
            "embed_dim": width,
            # Of whole channels of the pixel embeddings.
            "dropout_rate": 0.1,
        },
        multilabel_head=pixel_classifier.projected_encoder(
            0,
            num_heads=width // 64,
            share_embeddings=not is_beit,
            class_projection=args.class_projection,
        ),
        auxiliary_head=pixel_classifier.fcn_head(level=2),
    )
    _use_recipe(config, is_beit)
    if is_beit:
        weight = config.loss.multilabel_weight
        if weight != AUTO:
            config.loss.multilabel_weight = 0.5 * weight
        config.eval.mode = "slide"
        # A third of each window is seen twice.
        config.eval.stride = (side * 2 // 3,) * 2
    if is_small:
        common.use_sign_scenes(config)
    config.lock()
    return config


def _use_recipe(config: ConfigDict, is_beit: bool) -> None:
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
    elif config.model.multilabel_head.name != "none":
        config.optimizer.learning_rate_factors = SWIN_RATE_FACTORS
