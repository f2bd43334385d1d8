"""What one image costs by the number of labels C and of selected labels K.

    python benchmarks/label_count.py --json=FILE [--analyse-only] [--labels=150,1284]

Batch 1 (``--batch`` for a training step), float32. Each row is a process of its own,
so its peak of resident memory (RSS) is of this row alone; compilation is part of it.
Beside it stands what XLA's `memory_analysis()` says is needed beyond the parameters
(and the optimiser state, when training):

    arguments (without parameters and state) + outputs - aliased + temporaries

The aliased bytes are those of the donated state, so that the state counts nowhere and
gradients do. A prediction is three programs one after the other (encode, classify, one
tile of pixels): the largest counts; what one hands to the next is an argument there.

``pooled`` is the head of the paper for C < 500 (8 x 8 image tokens beside C class
tokens), ``unpooled`` the one for more (all of them). The judged ratios are those of
the pooled head at K = 100. Last comes the cost of `lax.top_k` among 10,000 scores.

``--heads=queries`` is Mask2Former, whose head sees its queries; add
``--backbone=swin_t``. A prediction there is panoptic, a training step has 12 segments;
the bytes are those of the network, for what is made of regions never knows C.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

POOLS = {"pooled": 8, "unpooled": 0, "queries": 0}
MB = 1e6


def make_config(args, num_classes: int, k: int, head: str):
    from configs import mask2former, segmenter

    arg = f"dataset=coco_stuff,backbone={args.backbone}"
    if head == "queries":
        config = mask2former.get_config(f"{arg},task=panoptic")
        config.data.augmentation = "crop"
    else:
        config = segmenter.get_config(arg)
    side = (args.image, args.image)
    config.data.num_classes = num_classes
    config.data.crop_size = side
    if "image_size" in config.model.backbone:
        config.model.backbone.image_size = side
    config.eval.window = config.eval.stride = side
    config.data.base_size = (0, 0)
    config.model.multilabel_head.downsample = POOLS[head]
    config.model.multilabel_head.classes_apart = args.apart
    config.model.multilabel_head.mlp_ratio = args.mlp_ratio
    config.selection.k = k
    config.train.batch_size = args.batch
    return config


def nbytes(tree) -> int:
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def beyond(compiled, arguments) -> int:
    """Bytes besides parameters and state; ``arguments`` are the other arguments."""
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return nbytes(arguments) + made + memory.temp_size_in_bytes


def predict_programs(engine, policy, image: np.ndarray):
    """The programs of a prediction, lowered, with their arguments but the weights."""
    import jax

    from mlseg_jax.inference.rank_space import Segmented, tile_labels
    from mlseg_jax.inference.views import make_views

    (view,) = make_views(image, engine.settings, engine.grid_length)
    parameters = engine.parameters
    windows = np.stack(list(view.windows()))
    lowered = engine.predict.lower(parameters, windows, None, None, None, policy)
    yield "network", lowered, windows
    if engine.num_queries:
        return
    _, selection, logits = lowered.out_info
    selection = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), selection)
    grids = (jax.ShapeDtypeStruct(logits.shape, logits.dtype),)
    rows, columns = (view.rows.matrix,), (view.columns.matrix,)
    segmented = Segmented(image.shape[:2], grids, rows, columns, selection, None, 1)
    _, _, pieces = next(segmented.tiles())
    arguments = (pieces, selection)
    yield "tile", tile_labels.lower(*arguments), arguments


def prediction_bytes(config, num_classes: int) -> dict[str, int]:
    """What each program of a prediction needs, compiled and not run."""
    from mlseg_jax.models.build import FunctionalModel
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine

    model = FunctionalModel.build(config, num_classes)
    policy = evaluation_policy(config, num_classes)
    engine = make_engine(config, model, model.shapes)
    return {
        name: beyond(lowered.compile(), arguments)
        for name, lowered, arguments in predict_programs(engine, policy, noise(config))
    }


def noise(config) -> np.ndarray:
    """A picture of the size of crops."""
    shape = (*config.data.crop_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def prepare_prediction(config, num_classes: int):
    """A function that predicts one picture of noise, with random weights."""
    import jax

    from input_pipeline.info import DatasetInfo
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine
    from mlseg_jax.tasks.table import find_task

    model = FunctionalModel.build(config, num_classes)
    find_segments = find_task(config).find_segments
    info = DatasetInfo("", tuple(map(str, range(num_classes))), (True,) * num_classes)
    policy = evaluation_policy(config, num_classes)
    image = noise(config)
    make = jax.jit(lambda: initial_parameters(config, num_classes, 0)[0])
    engine = make_engine(config, model, make())

    def predict():
        picture = engine.segment([image], [(policy, None)])[0][0]
        if find_segments is None:
            picture.label_maps()
        else:
            find_segments(picture, config.eval, info)

    return predict


def prepare_step(config, num_classes: int, *, analyse_only: bool = False):
    """A training step of crops of noise.

    Returns:
      Bytes, and a function that takes a step, or None.
    """
    import jax

    from mlseg_jax.distributed.sharding import make_mesh, put_batch
    from mlseg_jax.models.build import FunctionalModel
    from mlseg_jax.training.state import abstract_state, initialise
    from mlseg_jax.training.step import make_train_step

    mesh = make_mesh(config)
    model = FunctionalModel.build(config, num_classes)
    batch = measure.noise_batch(config, config.train.batch_size, num_classes)
    batch = put_batch(mesh, batch)
    lowered = make_train_step(config, model, mesh).lower(
        abstract_state(config, num_classes, mesh), batch
    )
    step = lowered.compile()
    needed = beyond(step, batch)
    if analyse_only:
        return needed, None
    held = [initialise(config, num_classes, mesh)]

    def train():
        held[0], _ = step(held[0], batch)
        jax.block_until_ready(held[0])

    return needed, train


def measured_row(args, task: str, config, num_classes: int) -> dict:
    run = None
    if task == "predict":
        parts = prediction_bytes(config, num_classes)
        row = {"bytes": max(parts.values()), "parts": parts}
        if not args.analyse_only:
            run = prepare_prediction(config, num_classes)
    else:
        needed, run = prepare_step(config, num_classes, analyse_only=args.analyse_only)
        row = {"bytes": needed}
    return row if run is None else row | run_row(run, args.repetitions)


def run_row(function, repetitions: int) -> dict:
    function()
    times = [measure.seconds_of(function) for _ in range(repetitions)]
    seconds = statistics.median(times)
    return {"seconds": seconds, "peak_rss_bytes": measure.peak_rss_bytes()}


def rows_to_make(args) -> list[tuple[str, str, int, int]]:
    """(task, head, C, K); the unpooled head with the largest K alone."""
    labels = [int(c) for c in args.labels.split(",")]
    ranks = [int(k) for k in args.ranks.split(",")]
    return [
        (task, head, num_classes, k)
        for head in args.heads.split(",")
        for task in args.tasks.split(",")
        for k in (ranks if head == "pooled" else [max(ranks)])
        for num_classes in labels
    ]


def make_row(args, task: str, head: str, num_classes: int, k: int) -> dict:
    """Runs this script for one row; its last line is the answer."""
    command = [sys.executable, __file__, f"--row={task},{head},{num_classes},{k}"]
    command += [f"--backbone={args.backbone}", f"--image={args.image}"]
    command += [f"--repetitions={args.repetitions}"]
    command += [f"--mlp-ratio={args.mlp_ratio}", f"--batch={args.batch}"]
    command += ["--analyse-only"] * args.analyse_only + ["--apart"] * args.apart
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: the row C={num_classes}, K={k} of {task} ({head}) failed.")
    row = json.loads(done.stdout.splitlines()[-1])
    return {"task": task, "head": head, "C": num_classes, "K": k, **row}


def ratios(rows: list[dict]) -> dict[str, float]:
    """Memory beyond parameters and state against C = 150, at the largest K."""
    k = max(row["K"] for row in rows)
    found = {(r["task"], r["head"], r["C"]): r["bytes"] for r in rows if r["K"] == k}
    result = {}
    for (task, head, num_classes), value in found.items():
        base = found.get((task, head, 150))
        if base and num_classes != 150:
            key = f"{task}_memory_{num_classes}_over_150"
            result[key if head == "pooled" else f"{key}_{head}"] = value / base
    return result


def show(row: dict) -> None:
    """A line as soon as it is there: the whole table takes long."""
    shown = {key: row[key] for key in ("task", "head", "C", "K")}
    shown["XLA MB"] = round(row["bytes"] / MB, 1)
    if "seconds" in row:
        shown["seconds"] = round(row["seconds"], 3)
        shown["RSS MB"] = round(row["peak_rss_bytes"] / MB)
    if "parts" in row:
        shown |= {key: round(value / MB, 1) for key, value in row["parts"].items()}
    print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--labels", default="150,847,1284,10000", help="C")
    parser.add_argument("--ranks", default="25,50,100", help="K")
    parser.add_argument("--heads", default="pooled,unpooled")
    parser.add_argument("--tasks", default="predict,train")
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--image", type=int, default=512, help="pixels a side")
    parser.add_argument("--batch", type=int, default=1, help="of a training step")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--analyse-only", action="store_true", help="compile, do not run"
    )
    parser.add_argument(
        "--apart", action="store_true", help="classes do not see one another"
    )
    parser.add_argument("--mlp-ratio", type=int, default=4, help="of the label block")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    measure.use_repository()
    if args.row:
        task, head, num_classes, k = args.row.split(",")
        config = make_config(args, int(num_classes), int(k), head)
        print(json.dumps(measured_row(args, task, config, int(num_classes))))
        return
    measure.print_machine(measure.machine())
    rows = []
    for what in rows_to_make(args):
        rows.append(make_row(args, *what))
        show(rows[-1])
    result = ratios(rows)
    if not args.analyse_only:
        from top_k import top_k_row

        result["top_k"] = [top_k_row(10_000, 100, batch) for batch in (1, 8)]
        measure.print_table(result["top_k"])
    print("\n".join(f"{k} {v:.3f}" for k, v in result.items() if k != "top_k"))
    measure.write_json(args.json, result | {"rows": rows, "machine": measure.machine()})


if __name__ == "__main__":
    main()
