"""Signs that touch: object queries against connected components, seed by seed.

    python benchmarks/touching_signs.py --output=runs/touching --seeds=0,1,2 \
        --rivals=top_k,pixels --json=FILE

The long comparison of docs/results.md. SignScenes of 40 classes in 128 x 128 pixels,
six signs of ten with a twin of their class that overlaps them. One model of a rival
and a seed after the other: EoMT with label selection (``top_k``) or without
(``complete``), which starts from a Segmenter of 400 steps and whose two trainings both
count; Mask2Former with label selection and a small Swin, from random values
(``mask2former``) or without (``mask2former_complete``); and a Segmenter whose label map
is cut up (``pixels``). Thresholds are chosen on 40 scenes of validation, and 200 test
scenes are read with these alone.
What has been trained in ``--output`` is not trained again (of what was stopped, the
processor seconds are those of the last try).
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import connected_components  # noqa: E402
import measure  # noqa: E402
import two_pictures  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.open import open_dataset  # noqa: E402
from mlseg_jax.distributed.sharding import own_mesh  # noqa: E402
from mlseg_jax.runs.workdir import load_config, load_parameters  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.tasks.panoptic import find_segments  # noqa: E402

SIDE = (128, 128)

COMMON = {
    "data.touching": 0.6,
    "data.num_classes": 40,
    "data.crop_size": SIDE,
    "data.base_size": (1280, 128),
    "train.batch_size": 8,
    "train.eval_every": 10**6,
}

VIT = {"model.backbone.image_size": SIDE, "model.backbone.patch_size": 8}

PIXELS = (
    COMMON
    | VIT
    | {
        "selection.k": 40,
        "eval.window": SIDE,
        "eval.stride": SIDE,
        "optimizer.warmup_steps": 50,
    }
)

QUERIES = COMMON | {
    "selection.k": 16,
    "loss.regions.num_points": 512,
    "optimizer.warmup_steps": 30,
    "optimizer.learning_rate_factors": (
        ("rank_norm|class_norm", 30.0),
        ("multilabel_head", 3.0),
    ),
}

EOMT = QUERIES | VIT | {"init_part": "backbone"}

RECIPES = {
    "pixels": "segmenter.py:dataset=sign_scenes,backbone=vit_demo,selection=complete",
    "top_k": "eomt.py:dataset=sign_scenes,task=panoptic,backbone=vit_demo,"
    "selection=top_k",
    "complete": "eomt.py:dataset=sign_scenes,task=panoptic,backbone=vit_demo,"
    "selection=complete",
    "mask2former": "mask2former.py:dataset=sign_scenes,task=panoptic,selection=top_k",
    "mask2former_complete": "mask2former.py:dataset=sign_scenes,task=panoptic,"
    "selection=complete",
}

LEAST_AREAS = (20, 40, 80, 120, 160, 240, 320, 480, 640, 960)
"""Of pieces, in pixels; the best is far above what one expects."""

THRESHOLDS = (
    *itertools.product(
        (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4), (0.3, 0.4, 0.5, 0.6, 0.8)
    ),
)
"""Least probability of a segment, and least share of its mask that it keeps."""


def settings_of(rival: str, seed: int, steps: int, first: pathlib.Path | None) -> dict:
    """Values by key; ``first`` is the run that queries start from."""
    settings = {"train.steps": steps, "seed": seed}
    if rival == "pixels":
        return PIXELS | settings
    if rival.startswith("mask2former"):
        return QUERIES | settings
    return EOMT | settings | {"init": first}


def train(
    workdir: pathlib.Path, rival: str, seed: int, steps: int, first=None
) -> float:
    """Trains a model where there is none, and returns its processor seconds."""
    spent = workdir / "spent.json"
    if not spent.exists():
        settings = settings_of(rival, seed, steps, first)
        command = [
            *(sys.executable, str(measure.ROOT / "main.py"), "train"),
            f"--config={measure.ROOT / 'configs' / RECIPES[rival]}",
            f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]
        spent.write_text(json.dumps(two_pictures.run(command)))
    return json.loads(spent.read_text())


def query_qualities(
    workdir: pathlib.Path, split: str, examples: int, thresholds: Sequence[tuple]
) -> list[dict]:
    """A row of panoptic qualities for each pair of `THRESHOLDS`."""
    config = load_config(workdir)
    config.data.update(eval_split=split, eval_examples=examples)
    config.mesh.update(data=-1, fsdp=1)
    source = open_dataset(config.data, train=False)
    model, parameters, _ = load_parameters(workdir, config, "latest")
    policy = evaluation_policy(config, source.info.num_classes)
    engine = make_engine(config, model, parameters, own_mesh(config))

    def look(group):
        images = [example["image"] for example in group]
        return engine.segment(images, [(policy, None)])[0]

    def find(picture, pair):
        config.eval.object_threshold, config.eval.overlap_threshold = pair
        found = find_segments(picture, config.eval, source.info)
        return found.segment_map, found.classes

    return connected_components.qualities(
        source, config.eval.batch_size, look, find, thresholds
    )


def trial(output: pathlib.Path, rival: str, seed: int, args) -> dict:
    """Trains a rival with a seed, chooses its thresholds, reads the test scenes."""
    spent, start = 0.0, None
    if rival == "pixels":
        steps, choices = args.pixel_steps, LEAST_AREAS
        evaluate = connected_components.evaluate
    else:
        steps, choices, evaluate = args.query_steps, THRESHOLDS, query_qualities
    if rival in ("top_k", "complete"):
        start = output / f"first_{args.first_steps}_{seed}"
        spent = train(start, "pixels", seed, args.first_steps)
    workdir = output / f"{rival}_{steps}_{seed}"
    spent += train(workdir, rival, seed, steps, start)
    seen = evaluate(workdir, "val", args.choose_on, choices)
    chosen = max(range(len(seen)), key=lambda i: seen[i]["PQ"])
    (row,) = evaluate(workdir, "test", args.examples, [choices[chosen]])
    return {
        "rival": rival,
        "seed": seed,
        "steps": steps,
        "CPU s": spent,
        "thresholds": str(choices[chosen]),
        "PQ of validation": 100 * seen[chosen]["PQ"],
    } | {name: 100 * row[name] for name in ("PQ", "PQ_things", "PQ_stuff")}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--rivals", default="top_k,pixels,complete")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--first-steps", type=int, default=400, help="as a Segmenter")
    parser.add_argument("--query-steps", type=int, default=2400)
    parser.add_argument("--pixel-steps", type=int, default=4550, help="of equal cost")
    parser.add_argument("--choose-on", type=int, default=40, help="validation scenes")
    parser.add_argument("--examples", type=int, default=200, help="test scenes")
    parser.add_argument("--json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    rows = []
    for seed in map(int, args.seeds.split(",")):
        for rival in args.rivals.split(","):
            if rival not in RECIPES:
                sys.exit(f"There is no rival {rival!r}; take {', '.join(RECIPES)}.")
            rows.append(trial(args.output, rival, seed, args))
            measure.print_table(rows)
    measure.print_machine(measure.machine())
    measure.write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
