"""Rows of configs/selection_study.py: the baseline, the paper's method, and the
candidates one by one on top of it. A row that was tried stays, whatever it gave.
"""

from configs import study

BASELINE, MLSEG = study.BASELINE, study.MLSEG

WEIGHT = {"loss.multilabel_weight": 10.0}
"""The paper's; candidates are tried on top of it."""

PRESENT = {"loss.multilabel_weight": "auto", "selection.with_present": True}
"""The rule in C, and no present label left out in training."""

NEW_DATA = {
    **PRESENT,
    "selection.scatter_present": True,
    "model.multilabel_head.classes_apart": True,
}
"""What configs/segmenter.py has for new data."""

PRIOR = {**WEIGHT, "model.presence_prior.initial": 0.5}

PRIOR_KIND = "model.presence_prior.kind"

RATES = "optimizer.learning_rate_factors"

NORMS = ("rank_norm|class_norm", 30.0)

QUICK = (NORMS, ("multilabel_head", 10.0))
"""The multi-label head ten times as fast; all other rows have it three times."""

LINEAR = {**WEIGHT, "model.multilabel_head.downsample": 8}

DECODER_APART = {"model.decoder.classes_apart": True}

ROWS = {
    # name: argument of configs/segmenter.py, or of the recipe before its colon,
    # overrides, whose time of a step it has.
    # "..._2x" and "..._1290" have their own number of steps under either budget.
    "baseline": (BASELINE, {}, "baseline"),
    # The paper's own weight, and the rule in C.
    "mlseg": (MLSEG, WEIGHT, "mlseg"),
    "mlseg_auto": (MLSEG, {"loss.multilabel_weight": "auto"}, "mlseg"),
    # 1: what the label loss may ask of the block and the backbone.
    "label_gradient_0.3": (
        MLSEG,
        {**WEIGHT, "model.multilabel_head.label_gradient": 0.3},
        "mlseg",
    ),
    # 2: classes that do not see one another.
    "apart": (MLSEG, {**WEIGHT, "model.multilabel_head.classes_apart": True}, "apart"),
    # 3: presence as a prior.
    "prior_calibrated": (MLSEG, {**PRIOR, PRIOR_KIND: "calibrated"}, "mlseg"),
    "prior_ranks": (MLSEG, {**PRIOR, PRIOR_KIND: "ranks"}, "mlseg"),
    # 4: truth always selected in training; noise on the scores.
    "with_present": (MLSEG, {**WEIGHT, "selection.with_present": True}, "mlseg"),
    "with_present_auto": (MLSEG, PRESENT, "mlseg"),
    "apart_present": (
        MLSEG,
        {**PRESENT, "model.multilabel_head.classes_apart": True},
        "apart",
    ),
    # Those that were missed at random ranks, where the last had them.
    "apart_scattered": (MLSEG, NEW_DATA, "apart"),
    # Nor in the decoder; the same for the baseline.
    "baseline_decoder_apart": (BASELINE, DECODER_APART, "decoder_apart"),
    "scattered_decoder_apart": (MLSEG, {**NEW_DATA, **DECODER_APART}, "apart"),
    "apart_auto": (
        MLSEG,
        {
            "loss.multilabel_weight": "auto",
            "model.multilabel_head.classes_apart": True,
        },
        "apart",
    ),
    "linear_apart_present": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, **PRESENT, "model.multilabel_head.classes_apart": True},
        "linear",
    ),
    "linear_apart_scattered": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, **NEW_DATA},
        "linear",
    ),
    "noise": (
        MLSEG,
        {**WEIGHT, "selection.with_present": True, "selection.noise": 1.0},
        "mlseg",
    ),
    # 9: a margin for what was missed.
    "missed": (MLSEG, {**WEIGHT, "loss.missed_weight": 1.0}, "mlseg"),
    # 7: a better ranker: a quicker one, another loss.
    "ranker_quick": (MLSEG, {**WEIGHT, RATES: QUICK}, "mlseg"),
    "ranker_quick_present": (MLSEG, {**PRESENT, RATES: QUICK}, "mlseg"),
    "ranker_slow_present": (MLSEG, {**PRESENT, RATES: (NORMS,)}, "mlseg"),
    "ranker_cross_entropy": (
        MLSEG,
        {**WEIGHT, "loss.multilabel": "binary_cross_entropy"},
        "mlseg",
    ),
    # Longer, to see whether the baseline's curve is flat.
    "baseline_2x": (BASELINE, {"train.steps": 800}, "baseline"),
    "mlseg_2x": (MLSEG, {**WEIGHT, "train.steps": 800}, "mlseg"),
    # As many steps as the recipe for new data has at equal cost at C = 1,284.
    "baseline_1290": (BASELINE, {"train.steps": 1290}, "baseline"),
    # Other frameworks with the same backbone (docs/encoder_only.md): classes or queries
    # that join its last blocks, and no more than a linear classifier.
    "encoder_only": (f"encoder_only:{MLSEG}", WEIGHT, "encoder_only"),
    "encoder_only_auto": (
        f"encoder_only:{MLSEG}",
        {"loss.multilabel_weight": "auto"},
        "encoder_only",
    ),
    "linear": (f"linear:{MLSEG},frozen=0", LINEAR, "linear"),
    "linear_auto": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, "loss.multilabel_weight": "auto"},
        "linear",
    ),
    "linear_present": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, **PRESENT},
        "linear",
    ),
    # The same without selection: what of its lead is the framework's.
    "linear_complete": (f"linear:{BASELINE},frozen=0", {}, "linear_complete"),
    # The parts of the method in it, as the paper's table 1 takes them apart: labels
    # learned beside all C classes, and selected with one scale for all ranks. With as
    # many steps; their times are 0.99 and 0.89 of its time (11 turns, C = 120).
    "linear_mt": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, "selection.name": "complete"},
        "linear",
    ),
    "linear_mt_ls": (
        f"linear:{MLSEG},frozen=0",
        {**LINEAR, "model.rank_norm.kind": "shared"},
        "linear",
    ),
    "eomt": (f"eomt:{MLSEG}", WEIGHT, "eomt"),
    # Where classes enter (one block before the end, in place of two of four), how wide
    # the head is.
    "encoder_only_late": (f"encoder_only:{MLSEG},blocks=1", WEIGHT, "encoder_only"),
    "encoder_only_narrow": (
        f"encoder_only:{MLSEG},head=narrow",
        WEIGHT,
        "encoder_only",
    ),
}
"""The baseline, the paper's method, and the candidates one by one on top of it."""
