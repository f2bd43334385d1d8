"""configs/own_data.py against U-Net and DeepLabV3+ of segmentation-models-pytorch.

    python benchmarks/own_data.py --against=smp --data=FOLDER --minutes=2,5,10 \
        --python=TORCH_VENV/bin/python --output=own_data.json

All learn from nothing, on the same pictures and for the same wall minutes on one core
(``--core``), in turns; the CPU seconds of both are in the rows, and are equal where
nothing else wants that core. Ours is the command a user types. Theirs have ResNet-18
(``encoder_weights=None``), Adam, the crops, sizes and augmentation that ours has chosen
for those minutes, and the best of three learning rates by a validation part of the
training pictures, looked for at each budget; the search is not counted. All are scored
at the pictures' full size, by our mIoU, on the test split, at the end of each budget:
each is a training of its own, with a schedule that fits it.

``--python`` is one in which torch and segmentation-models-pytorch are installed (pip
install segmentation-models-pytorch, or --no-deps beside torch and timm). Crops come to
it through files that this process writes.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

THEIRS = ("Unet", "DeepLabV3Plus")
RATES = (3e-4, 1e-3, 3e-3)
SEARCH = 0.25
"""Of a budget, that each learning rate is tried for."""

NUM_CROPS = 4000
"""Augmented crops that are made for them; they go through these again and again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", default="smp", choices=["smp", "nothing"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", default="10", help="with commas")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--train-split", default="train[:90%]")
    parser.add_argument("--validation-split", default="train[90%:]")
    parser.add_argument("--test-split", default="val")
    parser.add_argument("--models", default=",".join(("ours", *THEIRS)))
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--output", default="own_data.json")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})  # Children inherit it.
    models = args.models.split(",")
    if args.against == "nothing":
        models = ["ours"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rates = {}
        for minutes in map(float, args.minutes.split(",")):
            for seed in map(int, args.seeds.split(",")):
                if models != ["ours"]:
                    write_arrays(args, minutes, seed, folder)
                for name in models:  # in turns
                    row = {"model": name, "minutes": minutes, "seed": seed}
                    if name == "ours":
                        row |= ours(args, minutes, seed, folder)
                    else:
                        key = name, minutes
                        if key not in rates:
                            rates[key] = best_rate(args, name, minutes, folder)
                        row |= theirs(args, name, minutes, seed, rates[key], folder)
                    rows.append(row)
                    pathlib.Path(args.output).write_text(json.dumps(rows, indent=2))
                    print(json.dumps(row), flush=True)
    print(table(rows))


def ours(args, minutes: float, seed: int, folder: pathlib.Path) -> dict:
    """The command that a user types; time and CPU seconds of all of it."""
    workdir = folder / f"ours_{minutes:g}_{seed}"
    begin, cpu = time.perf_counter(), children_seconds()
    subprocess.run(
        [
            *(sys.executable, ROOT / "main.py", "train", f"--workdir={workdir}"),
            *("--config=configs/own_data.py", f"--config.data.path={args.data}"),
            *(f"--minutes={minutes:g}", f"--config.seed={seed}"),
            f"--config.data.eval_split={args.test_split}",
            f"--config.data.train_split={args.train_split}",
            f"--config.data.validation_split={args.validation_split}",
        ],
        check=True,
        cwd=ROOT,
    )
    metrics = json.loads((workdir / "metrics.json").read_text())
    return {
        "mIoU": metrics["mIoU"],
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": children_seconds() - cpu,
    }


def best_rate(args, name: str, minutes: float, folder: pathlib.Path) -> float:
    rates = list(map(float, args.rates.split(",")))
    if len(rates) == 1:
        return rates[0]
    scores = {
        rate: run_torch(args, name, SEARCH * minutes, 0, rate, folder, "validation")
        for rate in rates
    }
    print(name, {rate: score["mIoU"] for rate, score in scores.items()}, flush=True)
    return max(scores, key=lambda rate: scores[rate]["mIoU"])


def theirs(args, name, minutes, seed, rate, folder) -> dict:
    score = run_torch(args, name, minutes, seed, rate, folder, "test")
    return score | {"learning_rate": rate}


def run_torch(args, name, minutes, seed, rate, folder, split) -> dict:
    until = time.monotonic() + 60 * minutes
    begin, cpu = time.perf_counter(), children_seconds()
    subprocess.run(
        [
            *(args.python, ROOT / "benchmarks" / "own_data_torch.py"),
            *(str(folder), name, str(until), str(seed), str(rate), split),
        ],
        check=True,
    )
    confusion = np.load(folder / "confusion.npy")
    return {
        "mIoU": mean_iou(confusion),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": children_seconds() - cpu,
    }


def mean_iou(confusion: np.ndarray) -> float:
    """Of [C C] pixels by truth and prediction; classes that are in neither are left
    out, as in our `metrics.mean_iou`.
    """
    both = np.diag(confusion).astype(float)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return float(np.mean(both[either > 0] / either[either > 0]))


def write_arrays(args, minutes: float, seed: int, folder: pathlib.Path) -> None:
    """Crops as our pipeline makes them in so many minutes, and whole pictures of
    validation and test, resized as ours looks at them; labels at full size.
    """
    from configs import own_data
    from input_pipeline.augmentation.augment import make_augment
    from input_pipeline.augmentation.transforms import resize_for_test
    from input_pipeline.datasets.open import open_dataset
    from input_pipeline.pipeline import train_batches
    from mlseg_jax.fitting.choices import Choices
    from mlseg_jax.fitting.facts import look_at_data, look_at_machine
    from mlseg_jax.fitting.rules import choose

    config = own_data.get_config().unlock()
    config.data.update(path=args.data, train_split=args.train_split)
    choices = Choices(config, frozenset())
    found = look_at_data(config, 60.0)
    choose(choices, found, look_at_machine(str(folder)), 60 * minutes, 1e11)
    data = choices.config.data
    source = open_dataset(data, train=True)
    batches = train_batches(
        source,
        seed=seed,
        batch_size=NUM_CROPS,
        augment=make_augment(data, None, source.info),
        prefetch=2,
    )
    batch = next(batches)
    batches.close()
    mean, std = np.array(data.pixel_mean), np.array(data.pixel_std)
    np.savez(folder / "crops.npz", image=batch["image"], label=batch["label_map"])
    np.savez(folder / "facts.npz", mean=mean, std=std, classes=found.num_classes)
    for name, split in (
        ("validation", args.validation_split),
        ("test", args.test_split),
    ):
        data.eval_split = split
        pictures = open_dataset(data, train=False)
        examples = [pictures[i] for i in range(len(pictures))]
        images = [e["image"] for e in examples]
        if max(data.base_size) > 0:
            images = [resize_for_test(each, tuple(data.base_size)) for each in images]
        arrays = {f"image_{i}": each for i, each in enumerate(images)}
        arrays |= {f"label_{i}": e["label_map"] for i, e in enumerate(examples)}
        np.savez(folder / f"{name}.npz", **arrays)


def children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def table(rows: list[dict]) -> str:
    """Mean mIoU in percent by model and budget."""
    budgets = sorted({row["minutes"] for row in rows})
    lines = ["| | " + " | ".join(f"{m:g} min" for m in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for minutes in budgets:
            of_cell = [
                row["mIoU"]
                for row in rows
                if (row["model"], row["minutes"]) == (model, minutes)
            ]
            cells.append(f"{100 * np.mean(of_cell):.1f}" if of_cell else "")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
