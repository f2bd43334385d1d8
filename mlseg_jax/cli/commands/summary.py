"""``summary``: parameters and multiply-accumulates of a configuration."""

import json
import math

from clu import parameter_overview

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.cli.flags import required
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.models.macs import Macs


def run(flags) -> None:
    config = required(flags, "config")
    num_classes = config.data.num_classes
    if num_classes == 0:
        num_classes = open_dataset(config.data, train=True).info.num_classes
    model = FunctionalModel.build(config, num_classes)
    shapes = model.learned
    sizes = {path: math.prod(shape.shape) for path, shape in shapes.items()}
    parts = {}
    for path, size in sizes.items():
        part = path.split("/", 1)[0]
        parts[part] = parts.get(part, 0) + size
    macs = count_macs(config, model)
    total = sum(macs.values(), Macs())
    if flags.json:
        print(
            json.dumps(
                {
                    "parameters": sum(sizes.values()),
                    "macs": total.exact,
                    "paper_macs": total.paper,
                    "parameters_by_part": parts,
                    "macs_by_part": {k: part.exact for k, part in macs.items()},
                    "paper_macs_by_part": {k: part.paper for k, part in macs.items()},
                    "num_classes": num_classes,
                    "input": list(config.data.crop_size),
                }
            )
        )
        return
    print(parameter_overview.get_parameter_overview(shapes, include_stats=False))
    head = "part", "parameters", "multiply-accumulates", "as in the paper"
    print("{:20}{:>16}{:>24}{:>20}".format(*head))
    rows = [(k, parts.get(k, 0), macs.get(k, Macs())) for k in parts | macs]
    for part, size, count in [*rows, ("total", sum(sizes.values()), total)]:
        print(f"{part:20}{size:16,}{count.exact:24,}{count.paper:20,}")
    height, width = config.data.crop_size
    print(f"C = {num_classes} classes, one picture of {height}x{width}")
