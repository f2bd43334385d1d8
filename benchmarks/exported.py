"""An exported model in ONNX Runtime against XLA, in one run, by the number of labels C.

    python benchmarks/exported.py [--backbone=vit_s16] [--image=512] [--labels=40,1284]

One picture through the whole chain (`segment`: network, selection, label map), random
weights, float32. Both take turns, so that whatever else the machine does is done to
both; the ratio is the median of those of single turns. As many threads as there are
cores to run on. The memory is the peak of a process that has the exported folder's
predictor, without JAX, and one picture; the weights, whose size is last, are in it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

PROGRAM = """
import re, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, predictor
model = predictor.load(sys.argv[1], 1)
noise = np.random.default_rng(0).integers(0, 256, (*model.window, 3), np.uint8)
model(noise)
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def make_functions(backbone: str, side: int, num_classes: int, k: int):
    """The three functions of an untrained Segmenter, and its export.json."""
    import jax

    from configs import segmenter
    from input_pipeline.info import DatasetInfo
    from mlseg_jax.export.description import describe
    from mlseg_jax.export.functions import Functions
    from mlseg_jax.models.build import FunctionalModel, initial_parameters

    config = segmenter.get_config(f"dataset=coco_stuff,backbone={backbone}")
    config.data.num_classes = num_classes
    config.data.crop_size = config.eval.window = config.eval.stride = (side, side)
    config.data.base_size = (0, 0)
    if "image_size" in config.model.backbone:
        config.model.backbone.image_size = (side, side)
    config.selection.k = min(k, num_classes)
    model = FunctionalModel.build(config, num_classes)
    parameters, _ = initial_parameters(config, num_classes, jax.random.key(0))
    functions = Functions.of(config, model, parameters, (side, side))
    info = DatasetInfo("", tuple(map(str, range(num_classes))), (True,) * num_classes)
    return functions, describe(
        config, info, functions, kind="onnx", step=0, arguments={}
    )


def row(args, num_classes: int) -> dict:
    from mlseg_jax.export import artifacts, parity, predictor

    functions, about = make_functions(args.backbone, args.image, num_classes, args.k)
    side, threads = args.image, len(os.sched_getaffinity(0))
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    inputs = parity.segment_inputs(functions, noise)
    with tempfile.TemporaryDirectory() as folder:
        folder, symbol = pathlib.Path(folder), artifacts.any_batch()
        calls = artifacts.arguments(functions, symbol)
        artifacts.write_onnx_files(folder, functions, calls, args.opset, symbol)
        artifacts.write_predictor(folder)
        (folder / "export.json").write_text(json.dumps(about))
        ours = parity.calls_of(functions)
        theirs = predictor.Model(folder, threads, about).run
        times = in_turns([ours, theirs], inputs, args.repetitions)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        peak = subprocess.check_output([sys.executable, "-c", PROGRAM, str(folder)])
        return {
            "C": num_classes,
            "K": functions.num_ranks,
            "XLA ms": round(min(times[0]), 1),
            "ONNX Runtime ms": round(min(times[1]), 1),
            "ratio": round(ratio, 2),
            "predictor MB": round(int(peak) * 1024 / 1e6),
            "weights MB": round((folder / "weights.bin").stat().st_size / 1e6, 1),
        }


def in_turns(calls, inputs: dict, repetitions: int) -> list[list[float]]:
    """Milliseconds of each call, each turn."""
    times = [[] for _ in calls]
    for turn in range(repetitions + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call("segment", inputs)
            if turn:  # the first compiles
                taken.append(1000 * (time.perf_counter() - start))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_s16")
    parser.add_argument("--image", type=int, default=512)
    parser.add_argument("--labels", default="40,1284,10000")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    for num_classes in map(int, args.labels.split(",")):
        print(json.dumps(row(args, num_classes)), flush=True)


if __name__ == "__main__":
    main()
