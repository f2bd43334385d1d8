"""A prediction and a training step of whole frameworks, in turns, by number of labels.

    python benchmarks/frameworks.py --json=FILE [--backbone=vit_b16] [--labels=1284]

One picture of 512 x 512, float32, all on the same ViT, as their recipes have them but
for K. Each framework is a process of its own; predictions, then steps, are made by one
framework after the other, again and again, so that whatever else the machine does meets
all alike. Printed are medians, multiply-accumulates of a prediction (``summary``), and
what XLA says that a step needs beside parameters and optimiser (`label_count`).
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import label_count  # noqa: E402
import measure  # noqa: E402

RECIPES = {
    # name: file of configs/, arguments besides the backbone.
    "encoder_only": ("encoder_only", "dataset=ade20k"),
    "segmenter": ("segmenter", "dataset=ade20k"),
    "segmenter_complete": ("segmenter", "dataset=ade20k,selection=complete"),
    "eomt": ("eomt", "dataset=ade20k,selection=top_k"),
    "eomt_complete": ("eomt", "dataset=ade20k"),
    "mask2former": ("mask2former", "dataset=ade20k,task=semantic"),
}
"""``..._complete`` are without label selection."""

ROWS = "encoder_only,segmenter,eomt,eomt_complete,mask2former"
WORDS = {"predict": "prediction", "train": "step"}


def make_config(args, name: str, num_classes: int):
    from mlseg_jax.settings import recipes

    recipe, argument = RECIPES[name]
    config = recipes.load(f"configs/{recipe}.py:{argument},backbone={args.backbone}")
    side = (args.image, args.image)
    with config.unlocked():
        config.data.update(num_classes=num_classes, crop_size=side, base_size=(0, 0))
        config.data.augmentation = "crop"
        config.eval.update(window=side, stride=side)
        config.model.backbone.image_size = side
        config.model.backbone.scan = args.scan
        config.selection.k = min(args.k, num_classes)
    return config


def answer(args, name: str, num_classes: int) -> None:
    """What a framework's process does: see `measure.Worker`."""
    from mlseg_jax.models.build import FunctionalModel
    from mlseg_jax.models.flops import count_macs

    config = make_config(args, name, num_classes)
    prepared = {}

    def prepare_predict() -> dict[str, float]:
        prepared["predict"] = label_count.prepare_prediction(config, num_classes)
        prepared["predict"]()  # Compiles.
        measure.give_back_memory()
        return {}

    def prepare_train() -> dict[str, float]:
        prepared.clear()  # Steps do not share their memory with predictions.
        needed, prepared["train"] = label_count.prepare_step(config, num_classes)
        prepared["train"]()
        measure.give_back_memory()
        return {"step MB": needed / label_count.MB}

    def facts() -> dict[str, float]:
        macs = count_macs(config, FunctionalModel.build(config, num_classes))
        return {"GMACs": sum(part.exact for part in macs.values()) / 1e9}

    words = {
        "facts": facts,
        "prepare predict": prepare_predict,
        "prepare train": prepare_train,
        "predict": lambda: measure.seconds_of(prepared["predict"]),
        "train": lambda: measure.seconds_of(prepared["train"]),
    }
    measure.answer(words)


def compare(args, num_classes: int) -> list[dict[str, object]]:
    """A row for each framework; one is alive for all of them."""
    command = [sys.executable, __file__, f"--backbone={args.backbone}"]
    command += [f"--image={args.image}", f"--k={args.k}", *["--scan"] * args.scan]
    workers = {
        name: measure.Worker([*command, f"--worker={name},{num_classes}"])
        for name in args.rows.split(",")
    }
    rows = {
        name: {"C": num_classes, "framework": name} | worker.ask("facts")
        for name, worker in workers.items()
    }
    for task in args.tasks.split(","):
        for name, worker in workers.items():
            rows[name] |= worker.ask(f"prepare {task}")
            print(f"C={num_classes} {name}: {WORDS[task]} is ready", flush=True)
        turns = {n: functools.partial(w.ask, task) for n, w in workers.items()}
        times = measure.alternate(turns, args.repetitions)
        for name, seconds in measure.medians(times).items():
            rows[name] |= {f"{WORDS[task]} s": seconds}
            rows[name] |= {f"all of {WORDS[task]}": times[name]}
    for worker in workers.values():
        worker.close()
    return list(rows.values())


def run(args) -> list[dict[str, object]]:
    rows = []
    for num_classes in args.labels.split(","):
        found = compare(args, int(num_classes))
        measure.print_table(
            [{k: v for k, v in row.items() if "all of" not in k} for row in found]
        )
        rows += found
        # As soon as they are there: the whole table takes long.
        measure.write_json(args.json, {"rows": rows, "machine": measure.machine()})
    return rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--labels", default="150,1284,10000", help="C")
    parser.add_argument("--k", type=int, default=100, help="K")
    parser.add_argument("--rows", default=ROWS, help=", ".join(RECIPES))
    parser.add_argument("--tasks", default="predict,train")
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--image", type=int, default=512, help="pixels a side")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scan", action="store_true", help="the backbone's blocks")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    measure.use_repository()
    if args.worker:
        name, num_classes = args.worker.split(",")
        answer(args, name, int(num_classes))
        return
    measure.print_machine(measure.machine())
    run(args)


if __name__ == "__main__":
    main()
