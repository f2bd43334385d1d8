"""Ours against transformers' Mask2Former in PyTorch: same weights, cores and run.

    python benchmarks/regions_against_transformers.py --torch-python=PATH --json=FILE

Mask2Former with Swin-T, 100 queries, C = 150, all labels (the baseline, which is what
transformers has), float32, pictures of ``--side`` pixels. Our random weights become a
folder for ``from_pretrained`` (as ``convert --to=hugging_face`` writes it).

*predict*: from a uint8 picture to a label map in NumPy: ours as `predict` does it, with
theirs the picture is normalised and its processor makes the map
(``post_process_semantic_segmentation``). *train*: a step of one picture with 12
segments, of all ten predictions: losses at 12,544 points, matching, clipped gradients,
AdamW. Both have dropped paths at Swin's rate.

Each side is a process of its own for each task; both stay alive and take turns; a
figure is the median over turns, of wall and of processor time (which says more where
other jobs run). The outputs of both are compared first.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

NUM_CLASSES, NUM_SEGMENTS = 150, 12
TASKS = ("predict", "train")


def make_picture(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random picture, the segment of every pixel, and the classes of segments."""
    random = np.random.default_rng(0)
    numbers = random.permutation(np.arange(64) % NUM_SEGMENTS).reshape(8, 8)
    segments = np.kron(numbers, np.ones((side // 8, side // 8))).astype(np.int32)
    classes = random.choice(NUM_CLASSES, NUM_SEGMENTS, replace=False)
    image = random.integers(0, 256, (side, side, 3), np.uint8)
    return image, segments, classes.astype(np.int32)


def make_config(args):
    from configs import mask2former

    backbone = f"backbone={args.backbone}"
    config = mask2former.get_config(f"dataset=ade20k,{backbone},selection=complete")
    side = (args.side, args.side)
    with config.unlocked():
        config.data.crop_size = config.eval.window = config.eval.stride = side
        config.data.base_size = (0, 0)
        config.data.max_segments = 32
        config.optimizer.update(schedule="constant", warmup_steps=0)
    return config


def write_folder(config, parameters, folder: str) -> None:
    """The weights as transformers reads them."""
    import jax
    from safetensors.numpy import save_file

    from mlseg_jax.pretrained.export import SETTINGS, STATE_DICTS

    arrays = STATE_DICTS["hugging_face"](config, dict(jax.device_get(parameters)))
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    path = pathlib.Path(folder)
    save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    names = [str(i) for i in range(NUM_CLASSES)]
    settings = SETTINGS["hugging_face"](config, names)
    (path / "config.json").write_text(json.dumps(settings))


def ours(args):
    """What a repetition does, and what to compare: ready to be called."""
    import jax

    from mlseg_jax.distributed.host_memory import keep_freed_memory
    from mlseg_jax.distributed.sharding import make_mesh, put_batch
    from mlseg_jax.label_selection import select_complete
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine
    from mlseg_jax.training.state import initialise
    from mlseg_jax.training.step import make_train_step

    if args.task == "train":
        keep_freed_memory()  # as the command does
    config = make_config(args)
    image, segments, classes = make_picture(args.side)
    model = FunctionalModel.build(config, NUM_CLASSES)
    if args.task == "train":
        mesh = make_mesh(config)
        step = make_train_step(config, model, mesh)
        held = [initialise(config, NUM_CLASSES, mesh)]
        padded = np.full(config.data.max_segments, -1, np.int32)
        padded[:NUM_SEGMENTS] = classes
        batch = {"image": image, "masks": segments, "segment_classes": padded}
        batch = put_batch(mesh, {key: x[None] for key, x in batch.items()})

        def train():
            held[0], _ = step(held[0], batch)
            jax.block_until_ready(held[0])

        return train, lambda: []
    make = jax.jit(lambda: initial_parameters(config, NUM_CLASSES, 0)[0])
    parameters = make()
    write_folder(config, parameters, args.folder)
    engine = make_engine(config, model, parameters)
    policy = evaluation_policy(config, NUM_CLASSES)

    def predict():
        (results,) = engine.segment([image], [(policy, None)])
        return results[0].label_maps()[0]

    @jax.jit
    def outputs(parameters, images):
        output = model.bind(parameters)(images, select_complete)
        return output.class_logits[0, 0], output.regions.mask_logits()[0]

    return predict, lambda: summary(*outputs(parameters, image[None]))


def theirs(args):
    import torch
    import transformers

    image, segments, classes = make_picture(args.side)
    name = "Mask2FormerForUniversalSegmentation"
    model = getattr(transformers, name).from_pretrained(args.folder)
    mean = torch.tensor((123.675, 116.28, 103.53))[:, None, None]
    std = torch.tensor((58.395, 57.12, 57.375))[:, None, None]

    def pixels():
        return ((torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std)[None]

    if args.task == "train":
        model.train()
        masks = torch.from_numpy(
            segments[None] == np.arange(NUM_SEGMENTS)[:, None, None]
        )
        targets = dict(
            mask_labels=[masks.float()], class_labels=[torch.from_numpy(classes).long()]
        )
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05)

        def train():
            optimizer.zero_grad()
            model(pixel_values=pixels(), **targets).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()

        return train, lambda: []
    model.eval()
    processor = transformers.Mask2FormerImageProcessor()

    @torch.no_grad()
    def predict():
        found = model(pixel_values=pixels())
        make_maps = processor.post_process_semantic_segmentation
        return make_maps(found, target_sizes=[image.shape[:2]])[0].numpy()

    @torch.no_grad()
    def outputs():
        found = model(pixel_values=pixels())
        return summary(found.class_queries_logits[0], found.masks_queries_logits[0])

    return predict, outputs


def summary(classes, masks) -> list[float]:
    """Numbers in which different outputs differ."""
    classes, masks = (np.asarray(x, np.float64) for x in (classes, masks))
    return [np.abs(classes).mean(), classes.std(), np.abs(masks).mean(), masks.std()]


def wall_and_cpu(function) -> tuple[float, float]:
    """Of one call; processor time tells less of what else runs on the machine."""
    begin = time.process_time()
    return measure.seconds_of(function), time.process_time() - begin


def work(args) -> None:
    measure.use_repository()
    run, outputs = (ours if args.worker == "ours" else theirs)(args)
    run()
    run()
    measure.answer(
        {
            "run": lambda: wall_and_cpu(run),
            "outputs": outputs,
            "peak": measure.peak_rss_bytes,
        }
    )


def compare(task: str, args) -> dict[str, float]:
    """Both sides in turns."""
    sides = {}
    for side in ("ours", "theirs"):  # in this order: theirs reads our weights
        python = args.torch_python if side == "theirs" else sys.executable
        command = [python, __file__, f"--worker={side}", f"--task={task}"]
        command += [f"--side={args.side}", f"--backbone={args.backbone}"]
        sides[side] = measure.Worker([*command, f"--folder={args.folder}"])
    found = [np.asarray(worker.ask("outputs")) for worker in sides.values()]
    turns = {side: lambda w=worker: w.ask("run") for side, worker in sides.items()}
    times = measure.alternate(turns, args.repetitions)
    wall, cpu = (
        measure.medians({side: [each[i] for each in times[side]] for side in sides})
        for i in range(2)
    )
    peaks = {side: worker.ask("peak") for side, worker in sides.items()}
    for worker in sides.values():
        worker.close()
    row = {"task": task, "side": args.side}
    for name, middle in {"s": wall, "CPU s": cpu}.items():
        row |= {f"{side} {name}": middle[side] for side in sides}
        row[f"times as fast ({name})"] = middle["theirs"] / middle["ours"]
    row |= {f"{side} MB": round(peak / 1e6) for side, peak in peaks.items()}
    if task == "predict":
        ours, theirs = found
        row["outputs differ"] = float(np.max(np.abs(ours / theirs - 1)))
    return row | {"times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="has PyTorch")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--side", type=int, default=512, help="pixels, times of 32")
    parser.add_argument("--backbone", default="swin_t", help="a Swin")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    measure.print_machine(measure.machine())
    rows = []
    with tempfile.TemporaryDirectory() as args.folder:
        for task in TASKS:
            rows.append(compare(task, args))
            shown = {k: v for k, v in rows[-1].items() if k != "times"}
            measure.print_table([shown])
    measure.write_json(args.json, {"machine": measure.machine(), "rows": rows})


if __name__ == "__main__":
    main()
