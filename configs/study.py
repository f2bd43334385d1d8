"""The paper's ablations in miniature, on SignScenes: rows of `report --study`.

    python main.py report --study=small --workdir=runs/study

trains every row with three seeds, from one backbone that a classifier has trained
before, and writes ``study.md`` and ``study.png``. One row alone is
``--config=configs/study.py:row=mlseg,size=small,seed=0``, with ``--config.init`` and
``--config.init_part=backbone/`` for the backbone. ``small`` takes about 130 CPU minutes
(two runs at a time on two cores: a good hour); what came out is in docs/results.md.
``full`` is for one GPU or TPU and was not run; ``toy`` only tries the machinery.
"""

from ml_collections import ConfigDict

from configs import common, encoder_only, eomt, linear, query2label, segmenter
from mlseg_jax.settings import backbones, base
from mlseg_jax.settings.arguments import choose, parse_arg
from mlseg_jax.settings.resolve import AUTO

RECIPES = {
    "": segmenter, "linear": linear, "encoder_only": encoder_only, "eomt": eomt,
}  # fmt: skip
"""By what stands before the colon of a row's argument, if anything."""

MLSEG, BASELINE = "selection=top_k", "selection=complete"
ALL = 1e9

PRETRAINED = "pretrained"
"""The run that comes first: a classifier of whole pictures (Query2Label). All rows
start from its backbone, as the paper's do from one of ImageNet, and the independent
scheme is given its labels."""

ROWS = {
    # name: argument of configs/segmenter.py, overrides; a float K is a share of K.
    "baseline": (BASELINE, {}),
    "mt": (MLSEG, {"selection.name": "complete"}),
    "mt_ls": (MLSEG, {"model.rank_norm.kind": "shared"}),
    "mlseg": (MLSEG, {}),
    "oracle": ("selection=oracle", {}),
    "k_half": (MLSEG, {"selection.k": 0.5}),
    "k_double": (MLSEG, {"selection.k": 2.0}),
    "k_all": (MLSEG, {"selection.k": ALL}),
    "weight_1": (MLSEG, {"loss.multilabel_weight": 1.0}),
    "weight_50": (MLSEG, {"loss.multilabel_weight": 50.0}),
    "transformer_decoder": ("head=transformer_decoder", {}),
    "global_pooling": ("head=global_pooling", {}),
    "segmentation_logits": ("head=segmentation_logits", {}),
    "independent": ("selection=given", {}),
    "encnet": (f"{BASELINE},decoder=encnet", {}),
    "essnet": (f"{BASELINE},decoder=essnet", {}),
}

# A scale of the rank norm moves by at most the learning rate a step, whatever its
# gradient: after a few hundred steps those of all ranks had gone the same way by the
# same length (the paper's recipes have up to 320,000 steps). docs/results.md says from
# which trials these factors and K were chosen.
LEARNING_RATE_FACTORS = (("rank_norm|class_norm", 30.0), ("multilabel_head", 3.0))

FIRST = (
    *("baseline", "mt", "mt_ls", "mlseg", "oracle"),
    *("independent", "k_half", "k_double", "k_all"),
)
"""Rows that are run with all seeds before the others are run at all."""

EVALUATED = {
    # name: whose checkpoint is evaluated once more, with what settings.
    "baseline_true_labels": ("baseline", {"selection.eval_name": "oracle"}),
    "mlseg_true_labels": ("mlseg", {"selection.eval_name": "oracle"}),
    "mlseg_eval_k_quarter": ("mlseg", {"selection.eval_k": 0.25}),
    "mlseg_eval_k_half": ("mlseg", {"selection.eval_k": 0.5}),
    "mlseg_eval_k_double": ("mlseg", {"selection.eval_k": 2.0}),
    "mlseg_eval_k_all": ("mlseg", {"selection.eval_k": ALL}),
    # At most twice K; probabilities of the asymmetric loss are high.
    "mlseg_minimum_score": (
        "mlseg", {"selection.eval_k": 2.0, "selection.minimum_score": 0.3}
    ),
    "mlseg_cumulative": (
        "mlseg", {"selection.eval_k": 2.0, "selection.cumulative": 0.3}
    ),
}  # fmt: skip

# Title of a table: its rows.
TABLES = {
    "Table 1 and figure 3: parts of the method, and the oracle": (
        *("baseline", "mt", "mt_ls", "mlseg"),
        *("baseline_true_labels", "mlseg_true_labels", "oracle"),
    ),
    "Tables 2 and 3: labels from a classifier of its own": (
        *("baseline", "independent", "mlseg"),
    ),
    "Table 4: number of selected labels": ("k_half", "mlseg", "k_double", "k_all"),
    "Section 4.3: another number of labels in evaluation only": (
        *("mlseg_eval_k_quarter", "mlseg_eval_k_half", "mlseg"),
        *("mlseg_eval_k_double", "mlseg_eval_k_all"),
    ),
    "Section 4.3: as many labels as the scores say, in evaluation only": (
        *("mlseg", "mlseg_minimum_score", "mlseg_cumulative"),
    ),
    "Table 5: weight of the multi-label loss": ("weight_1", "mlseg", "weight_50"),
    "Table 6: multi-label heads": (
        *("segmentation_logits", "global_pooling", "transformer_decoder", "mlseg"),
    ),
    "Table 7: other methods": ("baseline", "encnet", "essnet", "mlseg"),
}

# From the baseline to the oracle, a change at a time: what the gap is made of.
CHAIN = ("baseline", "mt", "mt_ls", "mlseg", "mlseg_true_labels", "oracle")

# Figure 3: rows and their names.
BARS = {
    "baseline": "baseline",
    "mlseg": "MLSeg",
    "baseline_true_labels": "baseline\ntold labels",
    "mlseg_true_labels": "MLSeg\ntold labels",
    "oracle": "told labels\nin training\ntoo",
}

SIZES = {
    "toy": {
        "backbone": "vit_demo", "patch": 8, "side": 32, "classes": 20, "k": 5,
        "pretraining": 4, "steps": 4, "train": 32, "eval": 8, "at_a_time": 2,
    },
    "small": {
        "backbone": "vit_demo", "patch": 8, "side": 64, "classes": 120, "k": 40,
        "pretraining": 1500, "steps": 400, "train": 4000, "eval": 400, "at_a_time": 2,
    },
    "full": {
        "backbone": "vit_s16", "patch": 16, "side": 256, "classes": 1284, "k": 100,
        "pretraining": 40_000, "steps": 40_000, "train": 40_000, "eval": 2000,
        "at_a_time": 1,
    },
}  # fmt: skip
"""Side of the pictures, numbers of examples, and how many runs go at a time, each with
its share of the cores."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, row="mlseg", size="small", seed=0)
    size = choose(SIZES, "size of the study", args.size)
    if args.row == PRETRAINED:
        return pretrained(args, size)
    argument, overrides = choose(ROWS, "row of the study", args.row)
    config = make(args, size, argument)
    config.update_from_flattened_dict(_numbers(overrides, size))
    return config


def make(args: ConfigDict, size: dict, argument: str) -> ConfigDict:
    """A row of a study on SignScenes without the row's own overrides.

    Every framework has the same pixels, backbone, batch and update rule.
    """
    k, steps, side = size["k"], size["steps"], (size["side"], size["side"])
    name, _, argument = argument.rpartition(":")
    # The recipe of linear classifiers knows other backbones alone.
    backbone = "dinov2_demo" if name == "linear" else size["backbone"]
    config = choose(RECIPES, "recipe", name).get_config(
        f"dataset=sign_scenes,backbone={backbone},{argument}"
    )
    as_in_paper(config)
    config.model.backbone = backbones.vit(size["backbone"], side)
    config.data.pixel_mean, config.data.pixel_std = base.NORMALISATIONS["half"]
    config.train.batch_size = 16
    if config.loss.multilabel_weight == AUTO:
        common.set_label_weight(config, 10.0)  # the paper's, for 150 labels
    _use_size(config, args, size, steps)
    for part in (config.model.decoder, config.model.multilabel_head):
        if "dropout_rate" in part:
            part.dropout_rate = 0.0
    config.optimizer.update(learning_rate=7e-4, warmup_steps=min(50, steps // 4))
    config.optimizer.learning_rate_factors = LEARNING_RATE_FACTORS
    # The hundredfold decay of the multi-label head belongs to the paper's 1e-6.
    config.optimizer.weight_decay_factors = segmenter.WEIGHT_DECAY_FACTORS[1:]
    config.eval.update(window=side, stride=side)
    if config.selection.name != "oracle":
        config.selection.k = k
    config.selection.k = min(config.selection.k, size["classes"])
    config.loss.num_nearest = k
    return config


def as_in_paper(config: ConfigDict) -> None:
    """A recipe of Segmenter for new data without what is not the paper's."""
    config.selection.update(with_present=False, scatter_present=False)
    if config.model.decoder.name == "segmenter":
        config.model.multilabel_head.classes_apart = False


def pretrained(args: ConfigDict, size: dict) -> ConfigDict:
    """The run whose backbone the rows start from."""
    config = query2label.get_config("dataset=sign_scenes,backbone=vit_demo")
    config.model.backbone = backbones.vit(size["backbone"], (size["side"],) * 2)
    _use_size(config, args, size, size["pretraining"])
    config.data.cutout = 0.0
    config.model.transformer.dropout_rate = 0.0
    config.optimizer.update(learning_rate=1e-3, ema_decay=0.0, clip_norm=1.0)
    config.selection.k = size["k"]
    config.train.update(batch_size=16, patience=0)
    return config


def _use_size(config: ConfigDict, args: ConfigDict, size: dict, steps: int) -> None:
    side = (size["side"], size["side"])
    config.name = f"study_{args.row}"
    config.seed = args.seed
    config.data.update(
        num_classes=size["classes"],
        train_examples=size["train"],
        eval_examples=size["eval"],
        crop_size=side,
        base_size=(0, 0),
        num_threads=1,
    )
    config.model.backbone.update(
        image_size=side, patch_size=size["patch"], drop_path_rate=0.0
    )
    config.train.update(steps=steps, eval_every=steps, checkpoint_every=steps)


def from_pretrained(row: str, workdir: str) -> dict[str, str]:
    """What a row takes from the run that came first."""
    values = {"init": workdir, "init_part": "backbone/"}
    if ROWS[row][0] == "selection=given":
        values["selection.classifier"] = workdir
    return values


def in_order() -> tuple[tuple[str, ...], ...]:
    """The rows in the groups in which they are run."""
    return FIRST, tuple(row for row in ROWS if row not in FIRST)


def evaluated(name: str) -> dict[str, tuple[str, dict]]:
    """`EVALUATED` with the numbers of labels of a size."""
    size = choose(SIZES, "size of the study", name)
    return {
        row: (trained, _numbers(settings, size))
        for row, (trained, settings) in EVALUATED.items()
    }


def _numbers(settings: dict, size: dict) -> dict:
    """Shares of K as numbers of labels, at most C."""
    return {
        key: min(size["classes"], round(value * size["k"]))
        if key in ("selection.k", "selection.eval_k")
        else value
        for key, value in settings.items()
    }
