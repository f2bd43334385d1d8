"""Segmenter with label selection, with the paper's recipe for each data set.

    python main.py train --workdir=runs/coco_stuff \
        --config=configs/segmenter.py:dataset=coco_stuff,backbone=vit_b16,selection=top_k

Arguments: ``dataset`` (rows of ``DATA_SETS``), ``backbone`` (rows of
``backbones.VITS``), ``selection``: ``top_k`` is MLSeg, ``complete`` the baseline,
``oracle`` the paper's upper bound, ``given`` takes labels from elsewhere; ``head``
(rows of HEADS) scores the labels; ``decoder``: with ``encnet`` and ``essnet`` the two
methods of table 7, which need selection=complete; ``oce=1`` puts the class embeddings
into the backbone.
``configs/paper.py`` names every row of the paper. New data (``folder`` and
``sign_scenes``) has the best recipe that was found, which is not all the paper's
(`_is_own`).

The paper trains on 8 GPUs with one image each. Its mean IoU in percent, single scale,
baseline to MLSeg (method.md section 15; none of these was measured here): ViT-B/16
PASCAL-Context 53.85 to 54.76, ADE20K 48.80 to 49.68, COCO-Stuff 41.85 to 44.98,
ADE20K-Full 17.93 to 18.78, COCO+LVIS 19.41 to 21.26.
"""

from ml_collections import ConfigDict

from configs import common
from mlseg_jax.settings import backbones, base
from mlseg_jax.settings.arguments import choose, parse_arg
from mlseg_jax.settings.data_sets import DATA_SETS
from mlseg_jax.settings.resolve import AUTO

# Crop, longest and shortest side, steps, multi-label loss, weight decay, normalisation,
# bins a side that the multi-label head's tokens are pooled to (method.md sections 12.1
# and 4.4). ViT-L takes 640 pixels for 512.
RECIPES = {
    "pascal_context": {
        "crop": 480, "base": (4160, 520), "steps": 80_000, "loss": "asymmetric",
        "decay": 1e-6, "pixels": "half", "pool": 8,
    },
    "ade20k": {
        "crop": 512, "base": (2048, 512), "steps": 160_000, "loss": "asymmetric",
        "decay": 1e-6, "pixels": "half", "pool": 8,
    },
    "coco_stuff": {
        "crop": 512, "base": (2048, 512), "steps": 40_000,
        "loss": "binary_cross_entropy", "decay": 0.0, "pixels": "imagenet", "pool": 8,
    },
    "ade20k_full": {
        "crop": 512, "base": (2048, 512), "steps": 160_000, "loss": "asymmetric",
        "decay": 0.0, "pixels": "imagenet", "pool": 0,
    },
    "coco_lvis": {
        "crop": 512, "base": (2048, 512), "steps": 320_000, "loss": "asymmetric",
        "decay": 1e-6, "pixels": "imagenet", "pool": 0,
    },
    # Not in the paper: anyone's own data, and the embedded scenes.
    "folder": {
        "crop": 512, "base": (2048, 512), "steps": 40_000, "loss": "asymmetric",
        "decay": 0.0, "pixels": "half", "pool": 8,
    },
    "sign_scenes": {
        "crop": 96, "base": (0, 0), "steps": 4_000, "loss": "asymmetric",
        "decay": 0.0, "pixels": "half", "pool": 8,
    },
}  # fmt: skip

# How labels are scored, where they are selected: the three ways of the paper's table 6,
# and out of the segmentation logits (end of section 4.3).
HEADS = (
    *("transformer_encoder", "transformer_decoder", "global_pooling"),
    "segmentation_logits",
)
DECODERS = ("segmenter", "encnet", "essnet")

# Weight decay: a hundredfold on the multi-label block and its classifier, none on the
# decoder's norms and on the position table (method.md section 12.1).
WEIGHT_DECAY_FACTORS = (
    ("multilabel_head/(blocks|classifier)", 100.0),
    ("position_table|class_token|decoder/.*norm|multilabel_head/norm|rank_norm", 0.0),
)
# The release finds its multi-label block by position; with the oracle there is none,
# and the first of the decoder's stands there.
ORACLE_DECAY_FACTORS = (("decoder/blocks/blocks/0", 100.0), WEIGHT_DECAY_FACTORS[1])


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(
        arg,
        dataset="ade20k",
        backbone="vit_b16",
        selection="top_k",
        head="transformer_encoder",
        decoder="segmenter",
        oce=0,
    )
    recipe = choose(RECIPES, "data set", args.dataset)
    choose(HEADS, "head", args.head)
    choose(DECODERS, "decoder", args.decoder)
    if args.decoder != "segmenter" and args.selection != "complete":
        raise ValueError(
            f"{args.decoder} classifies all labels: add selection=complete."
        )
    is_large = args.backbone == "vit_l16" and recipe["crop"] == 512
    side = 640 if is_large else recipe["crop"]

    config = base.base("segmenter")
    config.data = base.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=(2560, 640) if is_large else recipe["base"],
        normalisation=recipe["pixels"],
    )
    common.use_labels(config, args.dataset, args.selection)
    common.use_schedule(config, recipe["steps"])
    config.model = _model(args, recipe, side)
    config.optimizer.weight_decay_factors = WEIGHT_DECAY_FACTORS
    _use_losses(config, args, recipe)
    own = _is_own(args)
    config.selection.update(with_present=own, scatter_present=own)
    config.eval.window = config.eval.stride = (side, side)
    if args.selection == "oracle":
        _use_oracle(config, args.dataset)
    if args.dataset == "sign_scenes":
        common.use_sign_scenes(config)
    config.lock()
    return config


def _model(args: ConfigDict, recipe: dict, side: int) -> ConfigDict:
    head = args.head if args.selection == "top_k" else "none"
    head = "linear" if args.decoder == "encnet" else head
    pools = {"transformer_decoder": 16, "global_pooling": 16}
    # PASCAL-Context is trained on 480 pixels but keeps the table of 512.
    table = 512 if side == 480 else side
    return ConfigDict(
        {
            "backbone": backbones.vit(args.backbone, (table, table)),
            "decoder": {
                # segmenter, encnet, essnet.
                "name": args.decoder,
                "depth": 2,
                "dropout_rate": 0.1,
                # encnet: code words. essnet: width in which cosines are taken.
                "num_codes": 64,
                "cosine_dim": 64,
                # Class tokens that do not see one another.
                "classes_apart": False,
            },
            "multilabel_head": {
                "name": head,
                # Bins a side that the image tokens are pooled to; 0 keeps them all.
                "downsample": pools.get(head, recipe["pool"]),
                # transformer_encoder: classes that do not see one another, and the
                # width of its hidden layer over its tokens'.
                "classes_apart": _is_own(args) and head == HEADS[0],
                "mlp_ratio": 4,
                # Factor of the gradient that the label loss sends beyond the scores'
                # own layer.
                "label_gradient": 1.0,
                # transformer_decoder: number of layers, their heads and hidden width.
                "depth": 2,
                "num_heads": 8,
                "mlp_dim": 2048,
            },
            "class_embeddings": {
                # True is the paper's OCE: they pass the last block of the backbone.
                "in_backbone": bool(args.oce),
                # normal; or zeros, as the release has it for OCE with a checkpoint.
                "initial": "zeros" if args.oce else "normal",
            },
            # A pixel loss on an earlier map: none, fcn (decoders/auxiliary.py).
            "auxiliary_head": {"name": "none"},
            # affine, shared, temperature, none (rank_adaptive.py).
            "rank_norm": {"kind": "affine", "unbiased_variance": False},
            # What label scores tell the logits: none, shared, ranks, calibrated; the
            # first weight, and whether pixels leave the scores alone
            # (presence_prior.py).
            "presence_prior": {"kind": "none", "initial": 0.0, "detach": True},
            "dtype": "float32",
        }
    )


def _is_own(args: ConfigDict) -> bool:
    """Whether nothing is the paper's. Then present labels are always selected in
    training, at random ranks where the scores missed them, and classes do not see one
    another in the multi-label block, which is the best found: ahead with many classes,
    level with few (docs/selection_study.md).
    """
    weight_by_rule = DATA_SETS[args.dataset][2] == AUTO
    return weight_by_rule and args.selection == "top_k"


def _use_losses(config: ConfigDict, args: ConfigDict, recipe: dict) -> None:
    """Losses and weight decay (method.md sections 4.4, 10 and 12.1)."""
    loss, head = config.loss, config.model.multilabel_head.name
    loss.multilabel = recipe["loss"]
    if args.dataset == "coco_stuff" and args.backbone == "vit_l16":
        loss.multilabel = "asymmetric"
    if args.selection == "top_k":
        config.optimizer.weight_decay = recipe["decay"]
    if head in ("transformer_decoder", "global_pooling"):
        loss.update(multilabel="asymmetric", gamma_negative=0.0)
    if args.decoder == "encnet":
        loss.update(multilabel="binary_cross_entropy", multilabel_weight=0.2)
    if args.decoder == "essnet":
        loss.update(pixel="nearest_classes", num_nearest=config.selection.k)


def _use_oracle(config: ConfigDict, dataset: str) -> None:
    """The release's ground-truth head (method.md 7.1), with a limit on its labels."""
    config.selection.k = min(config.eval.oracle_k, config.data.num_classes or 10**6)
    config.model.rank_norm.unbiased_variance = True
    if dataset == "ade20k":
        config.optimizer.weight_decay = RECIPES[dataset]["decay"]
        config.optimizer.weight_decay_factors = ORACLE_DECAY_FACTORS
