"""What a picture costs where only some of the classes are allowed.

    python benchmarks/subset.py --json=FILE [--labels=1284]

ViT-B/16, one picture of 512 x 512, K = 100, random weights. All classes, then the first
100, 20 and 5 of them; figures are medians over turns. Not more labels are selected than
are allowed, so the decoder and the pixels get cheaper; the multi-label head looks at
all classes either way, as it was trained to.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402


def run(args) -> dict[str, object]:
    import jax
    from label_count import make_config

    from input_pipeline.info import DatasetInfo
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.prediction.segmenter import Segmenter
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine

    config = make_config(args, args.labels, 100, "pooled")
    names = tuple(f"class {i}" for i in range(args.labels))
    model = FunctionalModel.build(config, args.labels)
    make = jax.jit(lambda: initial_parameters(config, args.labels, 0)[0])
    segmenter = Segmenter(
        make_engine(config, model, make()),
        DatasetInfo("random", names, (False,) * args.labels),
        evaluation_policy(config, args.labels),
    )
    shape = (args.image, args.image, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    turns = {"all": lambda: measure.seconds_of(lambda: segmenter(image))}
    for count in (100, 20, 5):
        turns[str(count)] = lambda allowed=names[:count]: measure.seconds_of(
            lambda: segmenter(image, allowed=allowed)
        )
    measure.alternate(turns, 1)  # Compiles.
    return measure.medians(measure.alternate(turns, args.repetitions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--labels", type=int, default=1284, help="C")
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--image", type=int, default=512, help="pixels a side")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.set_defaults(apart=False, mlp_ratio=4)  # As `make_config` wants them.
    args = parser.parse_args()
    measure.use_repository()
    facts = measure.machine()
    measure.print_machine(facts)
    seconds = run(args)
    rows = [{"allowed": key, "seconds": value} for key, value in seconds.items()]
    measure.print_table(rows)
    measure.write_json(args.json, {"seconds": seconds, "machine": facts})


if __name__ == "__main__":
    main()
