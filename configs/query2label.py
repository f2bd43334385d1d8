"""Query2Label: the classifier of the independent scheme (paper section 3.2, Table 2).

    python main.py train --workdir=runs/labels \
        --config=configs/query2label.py:dataset=coco_stuff,backbone=swin_l

Arguments: ``dataset`` (rows of ``DATA_SETS``) and ``backbone`` (rows of
BACKBONES). ``docs/independent_scheme.md`` says how its scores reach a Segmenter.

Recipe of method.md section 8.2. Its mAP in the paper, in percent (Table 2; none was
measured here): COCO-Stuff ResNet-101 55.17, TResNet-L 60.10, Swin-L 64.79; COCO+LVIS
26.54, 31.01, 34.93.
"""

from ml_collections import ConfigDict

from mlseg_jax.settings import backbones, base
from mlseg_jax.settings.arguments import choose, parse_arg
from mlseg_jax.settings.data_sets import DATA_SETS

# Side of the pictures, hidden layer of the transformer, normalisation of the pixels,
# parameters that are not trained. Hidden layers: Swin-L's gives the paper's number of
# parameters (method.md 8.1), 8192 is the default of Query2Label's release, which also
# freezes what comes before the second stage of a convolutional network.
FROZEN = ("^backbone/stem/", "^backbone/stages/0/")
BACKBONES = {
    "swin_l": {"side": 384, "mlp": 6144, "pixels": "imagenet", "frozen": ()},
    "resnet101": {
        "side": 448, "mlp": 8192, "pixels": "imagenet",
        # Its batch norms are those of ImageNet, weights and statistics.
        "frozen": (*FROZEN, "^backbone/.*norm/"),
    },
    "tresnet_l": {"side": 448, "mlp": 8192, "pixels": "unit", "frozen": FROZEN},
    "tresnet_l_v2": {"side": 448, "mlp": 8192, "pixels": "unit", "frozen": FROZEN},
    "vit_demo": {"side": 96, "mlp": 512, "pixels": "half", "frozen": ()},
}  # fmt: skip

# Pictures of a data set's training split, for steps of an epoch (method.md 12.5).
NUM_EXAMPLES = {
    "pascal_context": 4_998,
    "ade20k": 20_210,
    "coco_stuff": 9_000,
    "ade20k_full": 25_574,
    "coco_lvis": 100_170,
    "folder": 10_000,
    "sign_scenes": 4_000,
}
NOT_IN_PAPER = ("folder", "sign_scenes")
NUM_EPOCHS = 80


def _backbone(name: str, size: tuple[int, int]) -> ConfigDict:
    if name in backbones.SWINS:
        backbone = backbones.swin(name)
        backbone.update(num_norms=1, shift_small_maps=False)
        return backbone
    if name in backbones.TRESNETS:
        return backbones.tresnet(name)
    if name in backbones.RESNETS:
        backbone = backbones.resnet(name)
        backbone.freeze_norms = True
        return backbone
    return backbones.vit(name, size)


def _transformer(mlp_dim: int) -> dict:
    return {
        "num_heads": 4,
        "mlp_dim": mlp_dim,
        # Layers in which image tokens look at each other; in those of the decoder class
        # queries look at them.
        "num_encoder_layers": 0,
        "num_decoder_layers": 2,
        "dropout_rate": 0.1,
        "remat": "none",
    }


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, dataset="coco_stuff", backbone="swin_l")
    num_classes, k, _ = choose(DATA_SETS, "data set", args.dataset)
    choice = choose(BACKBONES, "backbone", args.backbone)
    size = (choice["side"], choice["side"])

    config = base.base("query2label")
    config.task = "multilabel"
    config.data = base.data(
        name=args.dataset,
        crop_size=size,
        base_size=(0, 0),
        normalisation=choice["pixels"],
    )
    config.data.augmentation = "whole"
    config.data.num_classes = num_classes
    config.model = ConfigDict(
        {
            "backbone": _backbone(args.backbone, size),
            "transformer": _transformer(choice["mlp"]),
            "dtype": "bfloat16",
        }
    )
    # The labels that recall is measured at.
    config.selection.k = k
    config.loss.update(
        multilabel="asymmetric", clip=0.0, detach_focus=True, multilabel_weight=1000.0
    )
    epoch = max(1, NUM_EXAMPLES[args.dataset] // 64)
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-4,
        schedule="one_cycle",
        weight_decay=0.01,
        ema_decay=0.9997,
        # The release averages with one decay from the first step on.
        ema_warmup=args.dataset in NOT_IN_PAPER,
        frozen=choice["frozen"],
    )
    config.train.update(
        steps=NUM_EPOCHS * epoch,
        batch_size=64,
        eval_every=epoch,
        checkpoint_every=epoch,
        patience=8,
    )
    config.eval.update(weights="better", batch_size=64)
    if args.dataset == "sign_scenes":
        config.data.update(
            train_examples=4000, eval_examples=200, cache=True, rand_augment=False
        )
        config.model.dtype = "float32"
    config.lock()
    return config
