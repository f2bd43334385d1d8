"""The paper's ablations in miniature, on SignScenes: rows of `report --study`.

    python main.py report --study=small --workdir=runs/study

trains every row with three seeds, one after the other, and writes ``study.md``. One row
alone is ``--config=configs/study.py:row=mlseg,size=small,seed=0``. ``small`` is meant
for two CPU cores and 90 minutes, ``full`` for one GPU or TPU; neither was measured yet.
``toy`` only tries the machinery.
"""

from ml_collections import ConfigDict

from configs import common, segmenter

MLSEG, BASELINE = "selection=top_k", "selection=complete"

# Title of a table: its rows; the first table has what all are compared with.
TABLES = {
    "Table 1 and figure 3: parts of the method, and the oracle": (
        *("baseline", "mt", "mt_ls", "mlseg", "oracle"),
    ),
    "Table 4: number of selected labels": ("k_half", "mlseg", "k_double", "k_all"),
    "Table 5: weight of the multi-label loss": ("weight_1", "mlseg", "weight_50"),
    "Table 6: multi-label heads": ("global_pooling", "transformer_decoder", "mlseg"),
    "Table 7: other methods": ("baseline", "encnet", "essnet", "mlseg"),
}

ROWS = {
    # name: argument of configs/segmenter.py, overrides; a float K is a share of C.
    "baseline": (BASELINE, {}),
    "mt": (MLSEG, {"selection.name": "complete"}),
    "mt_ls": (MLSEG, {"model.rank_norm.kind": "shared"}),
    "mlseg": (MLSEG, {}),
    "oracle": ("selection=oracle", {}),
    "k_half": (MLSEG, {"selection.k": 0.5}),
    "k_double": (MLSEG, {"selection.k": 2.0}),
    "k_all": (MLSEG, {"selection.k": 1e9}),
    "weight_1": (MLSEG, {"loss.multilabel_weight": 1.0}),
    "weight_50": (MLSEG, {"loss.multilabel_weight": 50.0}),
    "transformer_decoder": ("head=transformer_decoder", {}),
    "global_pooling": ("head=global_pooling", {}),
    "encnet": (f"{BASELINE},decoder=encnet", {}),
    "essnet": (f"{BASELINE},decoder=essnet", {}),
}

SIZES = {
    # backbone, C, K, steps, training and evaluation examples
    "toy": ("vit_demo", 20, 5, 4, 32, 8),
    "small": ("vit_demo", 120, 20, 400, 4000, 100),
    "full": ("vit_s16", 1284, 100, 40_000, 40_000, 500),
}


def get_config(arg: str | None = None) -> ConfigDict:
    args = common.parse_arg(arg, row="mlseg", size="small", seed=0)
    argument, overrides = common.choose(ROWS, "row of the study", args.row)
    size = common.choose(SIZES, "size of the study", args.size)
    backbone, num_classes, k, steps, train_examples, eval_examples = size
    config = segmenter.get_config(f"dataset=sign_scenes,backbone={backbone},{argument}")
    config.name = f"study_{args.row}"
    config.seed = args.seed
    config.data.update(
        num_classes=num_classes,
        train_examples=train_examples,
        eval_examples=eval_examples,
    )
    config.model.backbone.drop_path_rate = 0.0
    config.model.decoder.dropout_rate = 0.0
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=min(100, steps // 4))
    config.train.update(steps=steps, eval_every=steps, checkpoint_every=steps)
    if config.selection.name != "oracle":
        config.selection.k = k
    config.selection.k = min(config.selection.k, num_classes)
    config.loss.num_nearest = k
    overrides = dict(overrides)
    if "selection.k" in overrides:
        share = overrides["selection.k"]
        overrides["selection.k"] = min(num_classes, round(share * k))
    config.update_from_flattened_dict(overrides)
    return config
