"""Two pictures with panoptic files, learned by heart: train, evaluate, predict.

    python benchmarks/two_pictures.py --data=data/camvid_small --output=runs/two

Whether a model of regions can be trained at all shows where it has to learn almost
nothing. The first pictures of a ``folder`` data set become files as COCO's panoptic
ones: a class of ``--things`` is cut up into pieces that hang together, any other is one
segment, and pieces under ``--least-area`` are void. Then three commands, as one types
them: `train` with Mask2Former's recipe and a tiny ResNet, `evaluate` on the same
pictures, and `predict`. What predict wrote is read with Pillow and JSON and scored by
the loops below, which know nothing of ours; both qualities are printed.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import connected_components  # noqa: E402
import measure  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.folder import Folder  # noqa: E402

RECIPE = (
    "configs/mask2former.py:dataset=sign_scenes,task=panoptic,backbone=resnet_demo,"
    "pixel_decoder=fpn"
)
"""Of small pictures; the data set is another below."""

SETTINGS = {
    "data.name": "coco_panoptic_json",
    "data.num_classes": 0,
    "data.eval_split": "train",
    "data.train_examples": 0,
    "data.eval_examples": 0,
    "data.base_size": (0, 0),
    "data.rand_augment": False,
    "data.cutout": 0.0,
    "train.eval_every": 10**6,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 20,
}


def make_files(
    source, count: int, things: Sequence[str], size: tuple[int, int], least_area: int,
    output: pathlib.Path,
) -> int:  # fmt: skip
    """Writes pictures, PNG of segments and their JSON; returns how many segments.

    Args:
      source: pictures with label maps.
      count: how many of them.
      things: names of classes.
      size: height and width to bring them to.
      least_area: pieces of fewer pixels are void.
      output: folder.
    """
    names = source.info.class_names
    if unknown := sorted(set(things) - set(names)):
        sys.exit(
            f"There is no class {unknown[0]!r} in {source.info.name}; see --things."
        )
    is_thing = np.isin(names, things)
    content = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": i + 1, "name": name, "isthing": int(is_thing[i])}
            for i, name in enumerate(names)
        ],
    }
    pictures, pngs = output / "images/train", output / "annotations/panoptic_train"
    for folder in (pictures, pngs):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        example, (height, width) = source[number - 1], size
        image = Image.fromarray(example["image"]).resize((width, height))
        image.save(pictures / f"{number}.png")
        label_map = cv2.resize(
            example["label_map"].astype(np.int16), (width, height),
            interpolation=cv2.INTER_NEAREST,
        )  # fmt: skip
        ids, classes = connected_components.connected_segments(
            label_map, is_thing, least_area
        )
        rgb = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(pngs / f"{number}.png")
        segments = [
            {"id": i, "category_id": c + 1, "iscrowd": 0, "area": int((ids == i).sum())}
            for i, c in classes.items()
        ]
        name = f"{number}.png"
        content["images"].append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
        content["annotations"].append(
            {"image_id": number, "file_name": name, "segments_info": segments}
        )
    (output / "annotations/panoptic_train.json").write_text(json.dumps(content))
    return sum(len(a["segments_info"]) for a in content["annotations"])


def read_panoptic(
    json_path: pathlib.Path, png_dir: pathlib.Path
) -> dict[int, tuple[np.ndarray, dict[int, int]]]:
    """By image id segment ids [H W] and each segment's category, as COCO defines it."""
    pictures = {}
    for entry in json.loads(json_path.read_text())["annotations"]:
        with Image.open(png_dir / entry["file_name"]) as picture:
            rgb = np.asarray(picture.convert("RGB")).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        categories = {s["id"]: s["category_id"] for s in entry["segments_info"]}
        pictures[entry["image_id"]] = ids, categories
    return pictures


def panoptic_quality(true: dict, found: dict) -> float:
    """PQ in plain loops; both are pictures of `read_panoptic` by image id."""
    sums = {}  # category: IoU, matched, wrong
    for number, (true_ids, true_categories) in true.items():
        ids, categories = found[number]
        left = dict(categories)
        for i, category in true_categories.items():
            row, matched = sums.setdefault(category, [0.0, 0, 0]), False
            for j in [j for j, other in categories.items() if other == category]:
                both = ((true_ids == i) & (ids == j)).sum()
                either = ((true_ids == i) | (ids == j) & (true_ids > 0)).sum()
                if both / either > 0.5:
                    row[0], row[1], matched = row[0] + both / either, row[1] + 1, True
                    del left[j]
            row[2] += not matched
        for j, category in left.items():
            if (true_ids[ids == j] == 0).mean() <= 0.5:  # else it lies on void
                sums.setdefault(category, [0.0, 0, 0])[2] += 1
    known = [row for row in sums.values() if row[1] + row[2]]
    return float(np.mean([iou / (hits + wrong / 2) for iou, hits, wrong in known]))


def commands(
    output: pathlib.Path, size: tuple[int, int], count: int, steps: int, k: int
) -> list[list[str]]:
    """`train`, `evaluate` and `predict`, as one types them."""
    program = [sys.executable, str(measure.ROOT / "main.py")]
    workdir, data = f"--workdir={output / 'run'}", output / "data"
    settings = SETTINGS | {
        "data.path": str(data),
        "data.crop_size": size,
        "selection.k": k,
        "train.batch_size": count,
        "train.steps": steps,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    pictures, made = f"--images={data / 'images/train'}", f"--output={output / 'found'}"
    return [
        [*program, "train", f"--config={measure.ROOT / RECIPE}", workdir, *flags],
        [*program, "evaluate", workdir],
        [*program, "predict", workdir, pictures, made],
    ]


def run(command: Sequence[str]) -> float:
    """Processor seconds of a command, which must succeed."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run(command, check=True)
    return spent() - before


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--things", default="car,pedestrian,bicyclist")
    parser.add_argument("--size", default="160x128", help="width x height")
    parser.add_argument("--least-area", type=int, default=20, help="pixels")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json")
    args = parser.parse_args(arguments)
    width, height = map(int, args.size.split("x"))
    args.size = height, width
    return args


def main() -> None:
    args = parse_arguments()
    if args.output.exists() and any(args.output.iterdir()):
        sys.exit(f"{args.output} is not empty; give another --output.")
    source = Folder(args.data, args.split)
    data, things = args.output / "data", args.things.split(",")
    segments = make_files(
        source, args.pictures, things, args.size, args.least_area, data
    )
    k = source.info.num_classes
    seconds = [
        run(command)
        for command in commands(args.output, args.size, args.pictures, args.steps, k)
    ]
    metrics = json.loads((args.output / "run/metrics.json").read_text())
    annotations, made = data / "annotations", args.output / "found"
    true = read_panoptic(
        annotations / "panoptic_train.json", annotations / "panoptic_train"
    )
    found = read_panoptic(made / "panoptic.json", made / "panoptic")
    row = {
        "pictures": args.pictures,
        "segments": segments,
        "steps": args.steps,
        "PQ % of evaluate": 100 * metrics["PQ"],
        "RQ %": 100 * metrics["RQ"],
        "PQ % of predict's files": 100 * panoptic_quality(true, found),
        "train CPU s": seconds[0],
        "evaluate CPU s": seconds[1],
        "predict CPU s": seconds[2],
    }
    measure.print_machine(measure.machine())
    measure.print_table([row])
    measure.write_json(args.json, row)


if __name__ == "__main__":
    main()
