"""Six scales, each mirrored as well, in sliding windows: one picture at C = 1,284.

    python benchmarks/multi_scale.py --json=FILE [--labels=1284] [--height=480] ...

ViT-B/16, windows of 512 x 512 with a stride of 512, the shorter side at 256 to 896
pixels, random weights, one picture of 640 x 480. The release leaves this out "because
of memory": it would hold the C-wide logits of a view and the sum of the probabilities,
which are printed beside the peak of resident memory of this whole process.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def make_config(args):
    from configs import segmenter

    arg = f"dataset=coco_lvis,backbone={args.backbone}"
    config = segmenter.get_config(arg)
    side = (args.window, args.window)
    config.data.crop_size = config.model.backbone.image_size = side
    config.data.base_size = (4 * args.window, args.window)
    config.eval.window = config.eval.stride = side
    config.eval.mode, config.eval.flip, config.eval.scales = "slide", True, SCALES
    return config


def run(args) -> dict[str, object]:
    import jax

    from mlseg_jax.inference.views import make_views
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine

    config = make_config(args)
    model = FunctionalModel.build(config, args.labels)
    parameters, _ = jax.jit(lambda: initial_parameters(config, args.labels, 0))()
    engine = make_engine(config, model, parameters)
    policy = evaluation_policy(config, args.labels)
    shape = (args.height, args.width, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    views = make_views(image, engine.settings, engine.grid_length)
    found = {}

    def predict():
        ((segmented,),) = engine.segment([image], [(policy, None)])
        found["labels"] = int(segmented.selection.valid.sum())
        found["map"] = segmented.label_maps()

    first = measure.seconds_of(predict)
    seconds = measure.seconds_of(predict)
    largest = max(view.image.shape[0] * view.image.shape[1] for view in views)
    return {
        "C": args.labels,
        "K": policy.k,
        "views": len(views),
        "windows": sum(view.num_windows for view in views),
        "labels_of_all_windows": found["labels"],
        "first_seconds": first,
        "seconds": seconds,
        "peak_rss_bytes": measure.peak_rss_bytes(),
        "c_wide_logits_bytes": 4 * args.labels * largest,
        "c_wide_sum_bytes": 4 * args.labels * args.height * args.width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--labels", type=int, default=1284, help="C")
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    args = parser.parse_args()
    measure.use_repository()
    facts = measure.machine()
    measure.print_machine(facts)
    result = run(args)
    measure.print_table([{"figure": k, "value": v} for k, v in result.items()])
    measure.write_json(args.json, {**result, "machine": facts})


if __name__ == "__main__":
    main()
