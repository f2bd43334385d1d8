"""Ours against the release's way in plain PyTorch, on the same cores in the same run.

    python benchmarks/against_pytorch.py --torch-python=PATH --json=FILE

ViT-B/16, 512 x 512, float32, batch 1, random weights; two sizes: C = 171, K = 50 with 8
pooled tokens a side (COCO-Stuff) and C = 1284, K = 100 without pooling (COCO+LVIS).

*predict*: from a uint8 picture to a label map in NumPy. Theirs is the release's way
(method.md 12.3): it normalises, runs the network, scatters to C channels filled with
-100, upsamples them to the window, adds windows up and divides by their counts, resizes
to the size of the picture, softmax, argmax (`pytorch_reference.py`). With
``--one-resize`` it goes from the network's grid to the pixels at once, which a window
of the size of the picture would allow and the release does not do.
*train*: one step with the same losses, dropout and drop path 0.1, SGD with momentum.

Each side lives in a process of its own for each task. Both stay alive and take turns,
so that noise hits both; a figure is the median over turns. Memory is the peak of
resident memory of the process, libraries and compilation included. The matrix product
that FLOP/s are compared with runs in the same turns on both sides; the faster counts.

Each side runs as its user would run it: our training keeps freed memory, as the command
``train`` does (`host_memory`). With ``--same-malloc`` PyTorch's training does too.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402
from pytorch_sides import our_config  # noqa: E402

KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**60),
}
"""What `mlseg_jax.distributed.host_memory` sets, for another process."""

SIDES = pathlib.Path(__file__).with_name("pytorch_sides.py")


def make_worker(side: str, task: str, num_classes: int, args) -> measure.Worker:
    """One side in its own process."""
    python = args.torch_python if side == "theirs" else sys.executable
    command = [python, str(SIDES), f"--worker={side}", f"--task={task}"]
    command += [f"--labels={num_classes}", f"--side={args.side}"]
    command += [f"--backbone={args.backbone}"]
    command += ["--one-resize"] * args.one_resize
    keeps = side == "theirs" and task == "train" and args.same_malloc
    return measure.Worker(command, KEEP_FREED_MEMORY if keeps else None)


def compare(task: str, num_classes: int, args) -> dict[str, float]:
    """Both sides in turns; the peaks are read before the first matrix product."""
    sides = {
        side: make_worker(side, task, num_classes, args) for side in ("ours", "theirs")
    }
    runs = {side: lambda w=worker: w.ask("run") for side, worker in sides.items()}
    for run in runs.values():
        run()
    peaks = {f"{side}_peak_bytes": w.ask("peak") for side, w in sides.items()}
    turns = dict(runs)
    for side, worker in sides.items():
        turns[f"{side}_matmul"] = lambda w=worker: w.ask("matmul")
        worker.ask("matmul")
    times = measure.alternate(turns, args.repetitions)
    for worker in sides.values():
        worker.close()
    middle = measure.medians(times)
    fastest = min(middle["ours_matmul"], middle["theirs_matmul"])
    return {
        "task": task,
        "C": num_classes,
        **{f"{side}_seconds": middle[side] for side in sides},
        "speedup": middle["theirs"] / middle["ours"],
        **peaks,
        "matmul_gflops": measure.matmul_gflops(fastest),
        "times": times,
    }


def summarise(parts: list[dict], args) -> dict[str, object]:
    """The keys that the issue asks for, and the raw figures."""
    from mlseg_jax.models.build import FunctionalModel
    from mlseg_jax.models.flops import count_macs

    result = {"matmul_gflops": max(part["matmul_gflops"] for part in parts)}
    for part in parts:
        task, num_classes = part["task"], part["C"]
        config = our_config(num_classes, args)
        counts = count_macs(config, FunctionalModel.build(config, num_classes))
        macs = sum(count.exact for count in counts.values())
        flops = 2 * macs * (3 if task == "train" else 1)
        part["gflops"] = flops / part["ours_seconds"] / 1e9
        part["flops_share"] = part["gflops"] / part["matmul_gflops"]
        ratio = part["ours_peak_bytes"] / part["theirs_peak_bytes"]
        result[f"{task}_speedup_{num_classes}"] = part["speedup"]
        result[f"{task}_memory_ratio_{num_classes}"] = ratio
        result[f"{task}_flops_share_{num_classes}"] = part["flops_share"]
        # The share that is judged: the smaller of the sizes that were run.
        shares = (result.get(f"{task}_flops_share", 2.0), part["flops_share"])
        result[f"{task}_flops_share"] = min(shares)
    return {
        **result,
        "same_malloc": args.same_malloc,
        "parts": parts,
        "machine": measure.machine(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="has PyTorch")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--labels", default="171,1284", help="sizes C, of these two")
    parser.add_argument("--tasks", default="predict,train")
    parser.add_argument(
        "--one-resize", action="store_true", help="spare the release its second resize"
    )
    parser.add_argument(
        "--same-malloc", action="store_true", help="PyTorch keeps freed memory too"
    )
    parser.add_argument("--side", type=int, default=512, help="pixels; for a trial")
    parser.add_argument(
        "--backbone", choices=["vit_b16", "vit_ti16"], default="vit_b16"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    measure.use_repository()
    measure.print_machine(measure.machine())
    parts = []
    for num_classes in args.labels.split(","):
        for task in args.tasks.split(","):
            parts.append(compare(task, int(num_classes), args))
            print(
                f"{task} C={num_classes}: {parts[-1]['speedup']:.2f} times", flush=True
            )
    result = summarise(parts, args)
    hidden = ("times",)
    rows = [{k: v for k, v in part.items() if k not in hidden} for part in parts]
    for row in rows:
        for side in ("ours", "theirs"):
            row[f"{side}_peak_MB"] = round(row.pop(f"{side}_peak_bytes") / 1e6)
    measure.print_table(rows)
    measure.write_json(args.json, result)


if __name__ == "__main__":
    main()
