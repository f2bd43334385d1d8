"""What MaskFormer and Mask2Former have in common: their object queries become masks,
and are classified among the selected labels and no-object.
"""

from ml_collections import ConfigDict

from configs import common
from mlseg_jax.label_selection import SELECTIONS
from mlseg_jax.settings import backbones, base
from mlseg_jax.settings.arguments import choose, parse_arg
from mlseg_jax.settings.data_sets import DATA_SETS
from mlseg_jax.settings.resolve import AUTO

NUM_CLASSES = {
    "ade20k": 150,
    "ade20k_panoptic": 150,
    "coco_panoptic": 133,
    "coco_stuff": 171,
    "pascal_context": 60,
    "ade20k_full": 847,
    "coco_lvis": 1284,
    # Videos.
    "vspw": 124,
    "youtube_vis_2019": 40,
    # These say their labels themselves.
    "coco_panoptic_json": 0,
    "coco_json": 0,
    "folder": 0,
    "video_json": 0,
    # Embedded: scenes of 128 pixels.
    "sign_scenes": 40,
}
"""Labels C of the data sets that these frameworks have recipes for."""

COCO = ("coco_panoptic", "coco_panoptic_json", "coco_json")
"""What is trained as COCO is."""

SEGMENTS = {"semantic": "classes", "panoptic": "panoptic", "instance": "instances"}
"""What regions are trained to find, by task."""

BACKBONES = (
    *backbones.SWINS,
    *("resnet_demo", "resnet50", "resnet101"),
    *backbones.VITS,
    *backbones.BEITS,
    *(f"{name}{end}" for name in backbones.DINOV2S for end in ("", "_reg")),
    *backbones.DINOV3S,
)

SMALL_SIDE = 128
"""Side of embedded scenes."""

# No decay of norms and embeddings, nor of tables of positions (method.md 11.1). The
# pixel decoder's level embeddings are not among them.
WEIGHT_DECAY_FACTORS = (
    ("norm|relative_position_bias_table|position_table", 0.0),
    ("^decoder/(query_features|query_positions|level_embeddings)", 0.0),
)
FROZEN_NORMS = (r"^backbone/.*norm/(scale|bias)$",)
"""Of residual networks, as in Detectron2, whose statistics are kept as well."""


def parse(
    arg: str | None,
    *,
    large: str,
    small: str = "swin_demo",
    tasks=SEGMENTS,
    **defaults: str | int,
) -> ConfigDict:
    """``large``: the backbone where none is chosen and scenes are not embedded ones,
    for which it is ``small``.
    """
    args = parse_arg(arg, **defaults)
    choose(NUM_CLASSES, "data set", args.dataset)
    if not args.backbone:
        args.backbone = small if args.dataset == "sign_scenes" else large
    choose(BACKBONES, "backbone", args.backbone)
    choose(tasks, "task", args.task)
    return args


def recipe(
    name: str, args: ConfigDict, *, side: int, backbone: ConfigDict, **parts
) -> ConfigDict:
    """A configuration of ``args`` without an optimiser and without a loss of masks.

    Only labels that are to be found have a multi-label head, and only labels that are
    ranked a rank norm and cosines. As released, K = C: labels are sorted, and none is
    left out; ``selection.k`` says otherwise. Of data that says its labels itself nobody
    knows C here, and K is 50, as for pixels.
    """
    config = base.base(name)
    config.task = args.task
    config.data = base.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=(4 * side, side),
        normalisation="imagenet",
    )
    # As for ADE20K (method.md 12.4, masks.md 3.4): one class may fill a crop.
    config.data.update(
        segments=SEGMENTS.get(args.task, "none"),
        augmentation="short_side",
        short_sides=tuple(int(side * tenths / 10) for tenths in range(5, 21)),
        max_side=4 * side,
        max_class_share=1.0,
    )
    has_head = args.selection == "top_k"
    num_classes = NUM_CLASSES[args.dataset]
    config.data.num_classes = num_classes
    config.selection.name = choose(SELECTIONS, "selection", args.selection)
    config.selection.k = num_classes or 50
    if args.selection == "oracle":
        config.selection.k = min(config.eval.oracle_k, num_classes or 10**6)
    common.set_label_weight(config, label_weight(args.dataset) if has_head else 0.0)
    is_ranked = args.selection in ("top_k", "given")
    config.model = ConfigDict(
        {
            "backbone": backbone,
            "pixel_decoder": parts["pixel_decoder"],
            "decoder": parts["decoder"] | {"cosine": is_ranked},
            "multilabel_head": multilabel_head() if has_head else {"name": "none"},
            "class_embeddings": {"in_backbone": False, "initial": "uniform"},
            # As of configs/segmenter.py.
            "auxiliary_head": {"name": "none"},
            "rank_norm": {
                "kind": "affine" if is_ranked else "none",
                "unbiased_variance": False,
            },
            "dtype": "float32",
        }
    )
    config.train.batch_size = 16
    config.eval.mode = "whole"
    if args.task == "panoptic":
        # Least probability of a segment's class, and least share of its mask that it
        # keeps where segments overlap; whether it is only what lies in its mask.
        config.eval.object_threshold = config.eval.overlap_threshold = 0.8
        config.eval.inside_mask = name in ("mask2former", "eomt")
    if args.task == "instance":
        # Pairs of query and class, and their least score: AP wants all.
        config.eval.update(max_instances=100, object_threshold=0.0)
    config.eval.window = config.eval.stride = (side, side)
    return config


def label_weight(dataset: str) -> float | str:
    """Of the multi-label loss, a mean over C labels: as released for some 150, as with
    Segmenter for more, by the rule in C for data that says its labels itself.
    """
    if not NUM_CLASSES[dataset]:
        return AUTO
    is_published = dataset in DATA_SETS and dataset != "sign_scenes"
    return DATA_SETS[dataset][2] if is_published else 10.0


def make_backbone(name: str, side: int) -> ConfigDict:
    """With four maps of strides 4, 8, 16 and 32."""
    if name in backbones.SWINS:
        backbone = backbones.swin(name)
        if not name.endswith("demo"):
            backbone.drop_path_rate = 0.3
        return backbone
    if name in backbones.RESNETS:
        backbone = backbones.resnet(name)
        sizes = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}
        backbone.update(sizes | {"contract_dilation": False})
        backbone.freeze_norms = not name.endswith("demo")
        return backbone
    if name in backbones.BEITS:
        return backbones.beit(name, (side, side))
    if name in backbones.DINOV3S:
        backbone = backbones.dinov3(name)
    elif name.startswith("dinov2"):
        backbone = backbones.dinov2(name)
    else:
        backbone = backbones.vit(name, (side, side))
    backbone.pyramid = True
    return backbone


def fit_side(side: int, backbone: str) -> int:
    """Sides of crops are whole cells of the coarsest map: twice the patch of a ViT."""
    name = backbone.partition("_reg")[0]
    sizes = backbones.VITS.get(name) or backbones.DINOV3S.get(name)
    patch = 14 if name in backbones.DINOV2S else sizes[-1] if sizes else 16
    return -(-side // (2 * patch)) * 2 * patch


def pixel_decoder(name: str, *, is_small: bool, **more) -> dict:
    return {
        # deformable, fpn, encoder_fpn.
        "name": name,
        # Width of all maps and of the mask features.
        "embed_dim": 64 if is_small else 256,
        # Of group norms.
        "num_groups": 8 if is_small else 32,
    } | more


def decoder(name: str, *, is_small: bool, num_queries: int, depth: int) -> dict:
    return {
        "name": name,
        # Width of queries and of class queries.
        "embed_dim": 64 if is_small else 256,
        # Masks that a picture has at most.
        "num_queries": 40 if is_small else num_queries,
        "depth": 3 if is_small else depth,
        "num_heads": 4 if is_small else 8,
        "mlp_dim": 256 if is_small else 2048,
        # What the multi-label head looks at: the queries after so many layers, or
        # pixels (the coarsest map).
        "image": "queries",
        "image_layer": 1 if is_small else 3,
    }


def multilabel_head() -> dict:
    """Method.md 11.2, item 2."""
    return {
        "name": "projected_encoder",
        # convolutions, or linear.
        "projection": "linear",
        # 0: all queries.
        "downsample": 0,
        # 0 is the width of class queries.
        "embed_dim": 512,
        "num_heads": 8,
        "dropout_rate": 0.1,
        "share_embeddings": False,
        "class_projection": False,
        # As of configs/segmenter.py.
        "classes_apart": False,
        "mlp_ratio": 4,
    }


def region_loss(**values) -> dict:
    """Weights of the losses of every prediction, and of the costs of matching."""
    return {
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        # Of no-object in the mean over queries.
        "no_object_weight": 0.1,
        # points (cross-entropy at sampled points) or focal (at every pixel).
        "mask": "points",
        # points: how many; drawn so many times over, and this share of them where the
        # mask is least certain.
        "num_points": 12_544,
        "oversample": 3.0,
        "importance": 0.75,
        # Pixels of no segment (void, crowds) count nowhere; False: they are background
        # of all. Not of instances, among which all of stuff is no segment.
        "ignore_void": False,
    } | values


def use_adamw(config: ConfigDict, **values) -> None:
    config.optimizer.update(
        name="adamw",
        end_learning_rate=0.0,
        weight_decay_factors=WEIGHT_DECAY_FACTORS,
        # Largest norm of the whole gradient.
        clip_norm=0.01,
        **values,
    )
    if config.model.backbone.get("freeze_norms", False):
        config.optimizer.frozen = FROZEN_NORMS


def use_sign_scenes(config: ConfigDict) -> None:
    """The embedded data, and what suits so few and so small segments."""
    common.use_sign_scenes(config)
    side = config.data.crop_size[0]
    config.data.update(
        base_size=(10 * side, side), augmentation="crop", max_segments=32
    )
    config.loss.regions.num_points = 1024
    config.train.batch_size = 8
    if config.task == "panoptic":
        # After thousands of steps and not hundreds of thousands, few queries are sure.
        config.eval.object_threshold = 0.2
    if config.model.multilabel_head.name != "none":
        config.model.multilabel_head.update(embed_dim=64, num_heads=4)
