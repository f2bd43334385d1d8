"""Selection against the baseline: rows, sizes, splits and stages of the study.

    python main.py report --study=selection --plan
    python main.py report --study=selection --workdir=runs/selection

docs/selection_study.md says what has been tried and what is open. One cell alone is
``--config=configs/selection_study.py:row=mlseg,size=c120,budget=steps,seed=0``. Every
choice is made on the validation split; the test split is in no configuration that this
file makes, only in ``TEST``, which ``--read_test`` alone reads.
"""

from ml_collections import ConfigDict

from configs import segmenter, study
from configs.selection_rows import ROWS
from mlseg_jax.settings.arguments import choose, parse_arg

PRETRAINED = study.PRETRAINED
"""The run whose backbone all rows of a size start from (configs/study.py)."""

SIZES = {
    # steps of the first budget, seconds of CPU a cell is thought to take.
    "toy": {"steps": 4, "cpu_seconds": 20.0},
    "c120": {"steps": 400, "cpu_seconds": 130.0},
    "c480": {"steps": 400, "cpu_seconds": 430.0},
    "c1284": {"steps": 400, "cpu_seconds": 1200.0},
    "camvid": {"steps": 600, "cpu_seconds": 700.0},
}

SCENES = {
    "toy": study.SIZES["toy"],
    "c120": study.SIZES["small"],
    # The rarest class has 42 training pictures; 31 classes have under 5 of validation,
    # one or more none (counted when the first cells had run).
    "c480": {
        "backbone": "vit_demo", "patch": 8, "side": 64, "classes": 480, "k": 100,
        "pretraining": 2500, "train": 16_000, "eval": 1600,
    },
    # Its own classifier would take 46 minutes; backbones come from that of C = 480.
    "c1284": {
        "backbone": "vit_demo", "patch": 8, "side": 64, "classes": 1284, "k": 100,
        "pretraining": 2500, "train": 40_000, "eval": 1600,
    },
}  # fmt: skip
"""Sizes of SignScenes, as `study.SIZES`; their scenes are (seed, split, index)."""

PRETRAINED_ON = {"c1284": "c480"}
"""Size whose classifier gives a size its backbones, where it is not the size's own."""

PHOTOGRAPHS = {
    "camvid": {
        "folder": "camvid_small", "classes": 11, "k": 8, "batch": 8,
        "base": (240, 180), "crop": (128, 128), "stride": (96, 96), "rate": 1e-3,
    },
}  # fmt: skip
"""Folders of photographs below ``--data_dir``."""

SPLITS = {
    "scenes": ("train", "val"),
    "photographs": ("train[:71%]", "train[73%:93%]"),
}
"""Training and validation. Frames of a film resemble their neighbours, so validation
is a contiguous fifth of CamVid's training frames. What lies just before it is unused,
and so is all that comes after it: the test clip lies among those frames.
"""

TEST = {"scenes": "test", "photographs": "val"}
"""Read once, by ``--read_test``, when all choices are made."""

TEST_PICTURES = {"c120": 800, "c480": 3200, "c1284": 8000}
"""Scenes of the test split: every class is in five of them or more, but for 14 of 1,284
that are in two to four (five of each are in 15,200, 18 minutes for a cell of the
baseline). Other sizes have as many as for validation.
"""

CHECKPOINT_EVERY = 100
"""Steps that an interrupted cell loses at most."""

BUDGETS = ("steps", "cost")

STEP_TIMES = {
    # size: row: time of a step over the baseline's, measured once, interleaved
    # (benchmarks/study_steps.py).
    "toy": {"baseline": 1.0, "mlseg": 0.5},  # made up: toy only tries the machinery
    # Medians of 21 turns on one core of an EPYC: 348, 308, 240, 209, 540 ms.
    "c120": {
        "baseline": 1.0, "mlseg": 0.89, "encoder_only": 0.69, "linear": 0.60,
        "eomt": 1.55,
        # Another time, 1,176 of 2,524 ms, linear 1,608.
        "linear_complete": 0.45,
    },
    # Medians of 15 turns on one core: 984, 676, 502, 488, 248 ms.
    "c480": {
        "baseline": 1.0, "mlseg": 0.69, "encoder_only": 0.51, "linear": 0.50,
        "linear_complete": 0.25,
        # Another time, medians of 11 turns: 1,416 of 2,374 ms, mlseg 1,648 (0.69), with
        # present labels in training 1,652.
        "apart": 0.60,
        # Another time, beside the two above in one run.
        "decoder_apart": 0.83,
    },
    # Medians of 11 turns on one core: 2,912, 1,553, 914 ms.
    "c1284": {"baseline": 1.0, "mlseg": 0.53, "apart": 0.31, "decoder_apart": 0.59},
}  # fmt: skip
"""What the budget ``cost`` divides the steps by; fixed, so that a cell stays a cell."""

FRAMEWORKS = ("baseline", "mlseg", "encoder_only", "linear", "eomt")

STAGES = {
    # name: size, budget, rows, seeds; in this order cells are run.
    "c120, balance and cheap switches": (
        *("c120", "steps"),
        ("baseline", "mlseg", "apart", "with_present", "mlseg_auto"),
        2,
    ),
    "c120, frameworks": ("c120", "steps", FRAMEWORKS, 3),
    "c120, frameworks at equal cost": (
        *("c120", "cost"),
        ("baseline", "mlseg", "encoder_only", "linear", "linear_complete"),
        3,
    ),
    "c120, EoMT at equal cost": ("c120", "cost", ("baseline", "eomt"), 3),
    # The rule in C for the weight, which the recipes have: 33.6 here.
    "c480, equal cost": ("c480", "cost", ("baseline", "mlseg_auto"), 5),
    "c480, linear at equal cost": (
        *("c480", "cost"),
        ("linear_auto", "linear_complete"),
        3,
    ),
    "c480, the paper's weight": ("c480", "cost", ("mlseg",), 1),
    "c480, encoder-only": ("c480", "cost", ("encoder_only_auto",), 3),
    "c480, candidates": (
        *("c480", "steps"),
        (
            *("baseline", "with_present_auto", "ranker_quick_present"),
            *("with_present", "ranker_slow_present"),
            *("apart_present", "scattered_decoder_apart"),
        ),
        1,
    ),
    "c480, equal steps": ("c480", "steps", ("baseline", "mlseg_auto"), 5),
    "c480, classes apart alone": ("c480", "steps", ("baseline", "apart_auto"), 1),
    "c480, present labels and classes apart at equal cost": (
        *("c480", "cost"),
        ("baseline", "apart_present"),
        5,
    ),
    "c1284, the recipe for new data at equal cost": (
        *("c1284", "cost"),
        ("baseline", "apart_present"),
        3,
    ),
    # Added when 400 steps had been read: neither row's curve is near flat there.
    "c1284, the baseline for as many steps": (
        *("c1284", "cost"),
        ("baseline_1290", "apart_present"),
        3,
    ),
    # Added when the last ranks were seen to have learned that their labels are present.
    "c480, missed labels at random ranks": (
        *("c480", "steps"),
        ("baseline", "apart_present", "apart_scattered"),
        5,
    ),
    "c1284, missed labels at random ranks": (
        *("c1284", "cost"),
        ("baseline_1290", "apart_present", "apart_scattered"),
        3,
    ),
    "c480, missed labels at random ranks, equal cost": (
        *("c480", "cost"),
        ("baseline", "apart_present", "apart_scattered"),
        5,
    ),
    "c120, missed labels at random ranks": (
        *("c120", "steps"),
        ("baseline", "mlseg", "apart_present", "apart_scattered"),
        5,
    ),
    "camvid, missed labels at random ranks": (
        *("camvid", "steps"),
        ("baseline", "apart_present", "apart_scattered"),
        5,
    ),
    "c480, present labels in a linear classifier": (
        *("c480", "cost"),
        ("linear_complete", "linear_auto", "linear_present", "linear_apart_present"),
        1,
    ),
    # What new data has in Segmenter, in the framework that is ahead of it here.
    "c480, the recipe for new data in a linear classifier": (
        *("c480", "cost"),
        ("linear_complete", "linear_auto", "linear_apart_scattered"),
        3,
    ),
    # The trial that was missing: what our head has, in the baseline's decoder.
    "c480, the baseline with classes apart": (
        *("c480", "steps"),
        ("baseline", "baseline_decoder_apart", "apart_scattered"),
        5,
    ),
    "c480, the baseline with classes apart at equal cost": (
        *("c480", "cost"),
        ("baseline", "baseline_decoder_apart", "apart_scattered"),
        3,
    ),
    "c1284, the baseline with classes apart": (
        *("c1284", "steps"),
        ("baseline", "baseline_decoder_apart", "apart_scattered"),
        3,
    ),
    "c1284, missed labels at random ranks, equal steps": (
        *("c1284", "steps"),
        ("baseline", "apart_present", "apart_scattered"),
        3,
    ),
    "c120, equal steps": ("c120", "steps", ("baseline", "mlseg"), 5),
    "c120, equal cost": (
        *("c120", "cost"),
        ("baseline", "mlseg", "linear", "linear_complete"),
        5,
    ),
    "camvid, K = 8 of 11": ("camvid", "steps", ("baseline", "mlseg_auto"), 5),
    "c120, are the curves flat": (*("c120", "steps"), ("baseline_2x", "mlseg_2x"), 2),
    "c120, what pays in a linear classifier": (
        *("c120", "cost"),
        ("linear_complete", "linear_mt", "linear_mt_ls", "linear"),
        3,
    ),
    "c120, variants of encoder-only": (
        *("c120", "steps"),
        ("encoder_only_late", "encoder_only_narrow"),
        1,
    ),
    "c120, more switches": (
        *("c120", "steps"),
        ("prior_calibrated", "noise", "label_gradient_0.3", "prior_ranks", "missed"),
        2,
    ),
    "c120, rankers": (
        *("c120", "steps"),
        ("ranker_quick", "ranker_cross_entropy"),
        2,
    ),
    "camvid, candidates": (
        *("camvid", "steps"),
        ("baseline", "mlseg", "mlseg_auto", "apart", "with_present"),
        2,
    ),
}

AGAINST = ("baseline", "mlseg", "baseline_1290", "baseline_decoder_apart")
"""Rows that the others are compared with, seed by seed."""

FINAL = (
    "c120, equal cost",
    "c120, equal steps",
    "c120, missed labels at random ranks",
    "c480, present labels and classes apart at equal cost",
    "c1284, the recipe for new data at equal cost",
    "c1284, the baseline for as many steps",
    "c480, missed labels at random ranks",
    "c1284, missed labels at random ranks",
    "c1284, missed labels at random ranks, equal steps",
)
"""Stages whose test scores ``--read_test`` reads, once nothing of them is to be chosen
any more.
"""


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, row="mlseg", size="c120", budget="steps", seed=0)
    choose(SIZES, "size of the study", args.size)
    if args.row == PRETRAINED:
        config = study.pretrained(args, choose(SCENES, "size of scenes", args.size))
        _use_splits(config, args.size)
        return config
    argument, overrides, _ = choose(ROWS, "row of the study", args.row)
    steps = num_steps(args.row, args.size, args.budget)
    if args.size in PHOTOGRAPHS:
        config = _photographs(PHOTOGRAPHS[args.size], argument, steps)
    else:
        config = study.make(args, SCENES[args.size] | {"steps": steps}, argument)
    config.name = f"selection_{args.row}"
    config.seed = args.seed
    _use_splits(config, args.size)
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
    config.train.eval_every = config.train.steps
    return config


def _use_splits(config: ConfigDict, size: str) -> None:
    config.data.train_split, config.data.eval_split = SPLITS[kind_of(size)]
    config.train.checkpoint_every = CHECKPOINT_EVERY


def _photographs(place: dict, argument: str, steps: int) -> ConfigDict:
    if ":" in argument:
        raise ValueError("Photographs have rows of configs/segmenter.py alone.")
    config = segmenter.get_config(f"dataset=folder,backbone=vit_demo,{argument}")
    study.as_in_paper(config)
    config.data.update(
        num_classes=place["classes"],
        base_size=place["base"],
        crop_size=place["crop"],
        num_threads=1,
        cache=True,
    )
    config.model.backbone.update(image_size=place["crop"], drop_path_rate=0.0)
    config.model.decoder.dropout_rate = 0.0
    config.selection.k = place["k"]
    config.optimizer.update(
        name="adamw",
        schedule="cosine",
        learning_rate=place["rate"],
        warmup_steps=50,
        weight_decay=0.02,
        clip_norm=1.0,
        learning_rate_factors=(),
        layer_decay=1.0,
    )
    config.train.update(steps=steps, batch_size=place["batch"])
    config.eval.update(window=place["crop"], stride=place["stride"])
    return config


def take(row: str, size: str, pretrained: str, data_dir: str) -> dict[str, str]:
    """What a run is told of the places on this machine: values by key."""
    if size in PHOTOGRAPHS:
        return {"data.path": f"{data_dir}/{PHOTOGRAPHS[size]['folder']}"}
    return {} if row == PRETRAINED else study.from_pretrained("mlseg", pretrained)


def num_steps(row: str, size: str, budget: str) -> int:
    """Equal steps for all rows, or as many as cost what the baseline's do."""
    steps = SIZES[size]["steps"]
    if choose(BUDGETS, "budget", budget) == "steps":
        return steps
    times = choose(STEP_TIMES, "size with measured steps", size)
    return round(steps / choose(times, "row with measured steps", ROWS[row][2]))


def kind_of(size: str) -> str:
    return "photographs" if size in PHOTOGRAPHS else "scenes"
