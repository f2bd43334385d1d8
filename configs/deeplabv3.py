"""DeepLabv3 with label selection, with the paper's recipe for each data set (table 8).

    python main.py train --workdir=runs/coco_stuff_deeplab \
        --config=configs/deeplabv3.py:dataset=coco_stuff,selection=top_k

Arguments: ``dataset`` (rows of ``DATA_SETS``), ``backbone`` (rows of
``backbones.RESNETS``), ``selection``: ``top_k`` is MLSeg, ``complete`` the baseline,
``oracle`` the upper bound, ``given`` takes labels from elsewhere;
``class_projection=1`` adds the matrix that the published parameter counts have and the
released code has not (method.md 16, row 22).

The paper trains on 8 GPUs with two images each and tests whole images. Its mean IoU in
percent with ResNet-101, baseline to MLSeg (table 8, method.md section 15; none of these
was measured here): ADE20K 45.19 to 46.61 and COCO-Stuff 38.42 to 39.86, both at six
scales and mirrored; COCO+LVIS 11.04 to 12.76 at a single scale. At a single scale the
release's page says 44.1 to 45.5 on ADE20K, 37.3 to 38.4 on COCO-Stuff.
"""

from ml_collections import ConfigDict

from configs import common, pixel_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import choose, parse_arg

# Steps, and bins a side that the multi-label head's map is pooled to (method.md 9.1 and
# 12.1). The release has a configuration for COCO-Stuff alone; the bins of COCO+LVIS are
# those that reproduce the published FLOPs.
RECIPES = {
    "ade20k": (80_000, 16),
    "coco_stuff": (20_000, 16),
    "coco_lvis": (160_000, 32),
    # Not in the paper.
    "pascal_context": (80_000, 16),
    "ade20k_full": (160_000, 32),
    "folder": (40_000, 16),
    "sign_scenes": (4_000, 12),
}


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg,
        dataset="ade20k",
        backbone="resnet101_v1c",
        selection="top_k",
        class_projection=0,
    )
    steps, bins = choose(RECIPES, "data set", args.dataset)
    is_small = args.dataset == "sign_scenes"
    embed_dim = 128 if args.backbone == "resnet_demo" else 512
    config = pixel_classifier.recipe(
        "deeplabv3",
        args,
        side=96 if is_small else 512,
        base_size=(2048, 512),
        steps=steps,
        backbone=backbones.resnet(args.backbone),
        decoder={
            "name": "deeplabv3",
            # Width of pixel embeddings and class queries.
            "embed_dim": embed_dim,
            # In cells of the last map, of which a crop of 96 pixels has 12 a side.
            "dilations": (1, 2, 4, 6) if is_small else (1, 12, 24, 36),
            # Of whole channels of the pixel embeddings.
            "dropout_rate": 0.1,
        },
        multilabel_head=pixel_classifier.projected_encoder(
            bins, num_heads=embed_dim // 64, class_projection=args.class_projection
        ),
        auxiliary_head=pixel_classifier.fcn_head(level=2),
    )
    config.optimizer.update(
        learning_rate=1e-2, end_learning_rate=1e-4, weight_decay=5e-4
    )
    if is_small:
        common.use_sign_scenes(config)
    config.lock()
    return config
