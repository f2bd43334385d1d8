"""What labels of a model's own making give: docs/autolabel.md, tried on SignScenes.

    python benchmarks/autolabel.py --folder=runs/autolabel --json=FILE [--seed=1]

Of ``--scenes`` training scenes a twentieth keeps its masks. A teacher is trained on
these; the page's script, as it stands there, labels the others; true scenes are copied
until they are as many; a student is trained on both. The control is the teacher trained
on with true masks alone, for as many steps from the same weights. All are scored on the
same validation scenes. As the truth of the others is known here, it is also said how
much of it the teacher was sure of, and how often it was right. A call that was stopped
goes on where it was.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

SCORES = ("mIoU", "mAP", "image_recall_at_k", "pixel_accuracy")


def page_script() -> str:
    """The script of docs/autolabel.md."""
    page = (measure.ROOT / "docs/autolabel.md").read_text()
    blocks = re.findall(r"(?:^ {7}.*\n|^\n)+", page, re.MULTILINE)
    (block,) = (x for x in blocks if "import mlseg_jax" in x)
    return textwrap.dedent(block)


def write_scenes(folder: pathlib.Path, args) -> None:
    """``labelled`` with its masks, and pictures alone in ``unlabelled``."""
    from PIL import Image

    from input_pipeline.datasets.sign_scenes import SignScenes
    from input_pipeline.files.images import write_label_map

    size = {"num_classes": args.classes, "image_size": args.side, "seed": args.seed}
    labelled, unlabelled = folder / "labelled", folder / "unlabelled"
    unlabelled.mkdir(parents=True)
    counts = {"train": args.scenes, "val": args.validation}
    for split, count in counts.items():
        source = SignScenes(split=split, num_examples=count, **size)
        for kind in ("images", "masks"):
            (labelled / kind / split).mkdir(parents=True)
        for i in range(count):
            scene, name = source[i], f"{i:05}"
            has_mask = split == "val" or i < round(args.share * count)
            images = labelled / "images" / split if has_mask else unlabelled
            Image.fromarray(scene["image"]).save(images / f"{name}.jpg", quality=95)
            if has_mask:
                path = labelled / "masks" / split / f"{name}.png"
                write_label_map(path, scene["label_map"], args.classes)
    names = "\n".join(source.info.class_names)
    (labelled / "classes.txt").write_text(f"{names}\n")


def train(folder: pathlib.Path, args, run: str, data: str, **more: object) -> dict:
    """A run of the demonstration's size on a folder; its scores."""
    side = (args.side, args.side)
    values = {
        "data.path": folder / data,
        "data.crop_size": side, "data.base_size": (0, 0), "data.scale_range": (1, 1),
        "data.flip_rate": 0.0, "data.photometric": False, "data.cache": True,
        "data.max_class_share": 1.0, "data.num_threads": 1,
        "selection.k": min(10, args.classes),
        "model.backbone.image_size": side, "model.backbone.drop_path_rate": 0.0,
        "model.decoder.dropout_rate": 0.0,
        "optimizer.name": "adamw", "optimizer.schedule": "cosine",
        "optimizer.learning_rate": 1.5e-3, "optimizer.end_learning_rate": 1e-5,
        "optimizer.warmup_steps": min(100, args.steps), "optimizer.clip_norm": 1.0,
        "optimizer.weight_decay": 0.02, "optimizer.learning_rate_factors": (),
        "train.steps": args.steps, "train.batch_size": 16,
        "train.eval_every": args.steps, "train.checkpoint_every": 200,
        "eval.batch_size": 20, "eval.window": side, "eval.stride": side,
        "seed": args.seed,
    }  # fmt: skip
    command = [sys.executable, str(measure.ROOT / "main.py"), "train"]
    command += ["--config=configs/segmenter.py:dataset=folder,backbone=vit_demo"]
    command += [f"--workdir={folder / run}"]
    command += [f"--config.{key}={value}" for key, value in (values | more).items()]
    subprocess.run(command, check=True, cwd=folder)
    metrics = json.loads((folder / run / "metrics.json").read_text())
    return {key: metrics[key] for key in SCORES}


def label_others(folder: pathlib.Path) -> None:
    """The page's script, and copies of true scenes until they are half of all."""
    environment = os.environ | {"PYTHONPATH": str(measure.ROOT)}
    command = [sys.executable, "-c", page_script()]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    images = sorted((folder / "mixed/images/train").iterdir())
    made = [path for path in images if path.name.startswith("auto_")]
    true = [path for path in images if not path.name.startswith("auto_")]
    for copy in range(1, len(made) // len(true)):
        for image in true:
            mask = folder / "mixed/masks/train" / f"{image.stem}.png"
            for path in (image, mask):
                shutil.copy(path, path.with_name(f"copy{copy}_{path.name}"))


def quality(folder: pathlib.Path, args) -> dict[str, float]:
    """How much of the unlabelled scenes got a label, and how much of that is right."""
    from PIL import Image

    from input_pipeline.datasets.sign_scenes import SignScenes

    source = SignScenes(
        split="train",
        num_examples=args.scenes,
        num_classes=args.classes,
        image_size=args.side,
        seed=args.seed,
    )
    made = sorted((folder / "mixed/masks/train").glob("auto_*.png"))
    sure = right = 0
    for path in made:
        found = np.asarray(Image.open(path))
        true = source[int(path.stem.removeprefix("auto_"))]["label_map"]
        sure += (found < args.classes).sum()
        right += (found == true).sum()
    pixels = args.side**2 * len(list((folder / "unlabelled").iterdir()))
    return {
        "scenes labelled": len(made),
        "share of pixels labelled": float(sure / pixels),
        "of these right": float(right / max(sure, 1)),
    }


def claim(folder: pathlib.Path, arguments: dict[str, object]) -> None:
    """Only an empty folder is begun in, and only the same trial goes on in it."""
    told = folder / "arguments.json"
    if told.exists() and json.loads(told.read_text()) != arguments:
        sys.exit(f"{folder} is of other arguments ({told}); name another --folder.")
    if not told.exists():
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f"{folder} is not empty; name a new --folder.")
        folder.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(arguments))


def run(args) -> dict[str, dict]:
    folder = pathlib.Path(args.folder).resolve()
    claim(folder, {k: v for k, v in vars(args).items() if k not in ("folder", "json")})
    if not (folder / "labelled/classes.txt").exists():
        for part in ("labelled", "unlabelled"):
            shutil.rmtree(folder / part, ignore_errors=True)
        write_scenes(folder, args)
    result = {"teacher": train(folder, args, "runs/teacher", "labelled")}
    if not (folder / "labels.json").exists():
        shutil.rmtree(folder / "mixed", ignore_errors=True)
        label_others(folder)
        (folder / "labels.json").write_text(json.dumps(quality(folder, args)))
    result["its labels"] = json.loads((folder / "labels.json").read_text())
    init = {"init": folder / "runs/teacher"}
    result["control"] = train(folder, args, "runs/control", "labelled", **init)
    result["student"] = train(folder, args, "runs/student", "mixed", **init)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="for data and runs")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.05, help="that keeps masks")
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--side", type=int, default=96, help="pixels")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    measure.use_repository()
    facts = measure.machine()
    measure.print_machine(facts)
    result = run(args)
    for name, scores in result.items():
        shown = (f"{key} {value:.4g}" for key, value in scores.items())
        print(f"{name:12}", ", ".join(shown))
    measure.write_json(args.json, result | {"machine": facts})


if __name__ == "__main__":
    main()
