"""Panoptic quality of a classifier of pixels: what connected components reach.

    python benchmarks/connected_components.py --workdir=runs/segmenter \
        --split=val --least-areas=0,20,40 --json=FILE

The opponent of regions (docs/results.md): the label map of any run of `semantic` with
a decoder of pixels is cut up into segments. A class of stuff is one segment; of a class
of things each piece that hangs together (8 neighbours) is one. Pieces of fewer pixels
than ``--least-areas`` are void, for speckles would count as wrong segments; choose this
on another split than the one that is reported. Two touching signs of one class are one
piece: that is what the method cannot do, and with ``--truth`` it is all that it can do
wrong, for the true label map is cut up. The quality is that of `evaluate`.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.open import open_dataset  # noqa: E402
from input_pipeline.pipeline import evaluation_examples  # noqa: E402
from mlseg_jax.distributed.sharding import own_mesh  # noqa: E402
from mlseg_jax.metrics.panoptic_quality import (  # noqa: E402
    PanopticQuality,
    TrueSegments,
)
from mlseg_jax.runs.workdir import load_config, load_parameters  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.tasks.evaluation import groups_by_shape  # noqa: E402


def connected_segments(
    label_map: np.ndarray, is_thing: np.ndarray, least_area: int = 0
) -> tuple[np.ndarray, dict[int, int]]:
    """Segments of a label map: ids int32 [H W], 0 for void, and the class of each."""
    segment_map = np.zeros(label_map.shape, np.int32)
    classes = {}
    for class_id in np.unique(label_map[label_map >= 0]).tolist():
        pieces = (label_map == class_id).astype(np.uint8)
        if is_thing[class_id]:
            _, pieces = cv2.connectedComponents(pieces, connectivity=8)
        areas = np.bincount(pieces.ravel())
        for piece in range(1, len(areas)):
            if areas[piece] >= max(least_area, 1):
                classes[len(classes) + 1] = class_id
                segment_map[pieces == piece] = len(classes)
    return segment_map, classes


def true_label_maps(group: Sequence[dict]) -> list[np.ndarray]:
    return [example["label_map"] for example in group]


def predictor(workdir: str, config, source):
    """The label maps of a group of examples, by the run's latest weights."""
    config.mesh.update(data=-1, fsdp=1)
    model, parameters, _ = load_parameters(workdir, config, "latest")
    policy = evaluation_policy(config, source.info.num_classes)
    engine = make_engine(config, model, parameters, own_mesh(config))

    def predict(group: Sequence[dict]) -> list[np.ndarray]:
        images = [example["image"] for example in group]
        (results,) = engine.segment(images, [(policy, None)])
        return [m for part in results for m in part.label_maps()]

    return predict


def qualities(
    source, batch_size: int, look: Callable, find: Callable, choices: Iterable
) -> list[dict]:
    """A row of panoptic qualities for each of ``choices``, all of one pass.

    ``look`` makes something of each of a list of examples, of which ``find`` makes
    segments, given a choice: ids int [H W], 0 for void, and the class of each.
    """
    is_thing = np.asarray(source.info.is_thing, bool)
    states = {choice: PanopticQuality.empty(is_thing) for choice in choices}
    examples = evaluation_examples(source, process_index=0, process_count=1)
    for group in groups_by_shape(examples, batch_size):
        for example, seen in zip(group, look(group), strict=True):
            truth = TrueSegments.from_maps(
                example["label_map"], example["instance_map"], is_thing
            )
            for choice, state in states.items():
                states[choice], _ = state.update(truth, *find(seen, choice))
    return [state.compute() for state in states.values()]


def evaluate(
    workdir: str | pathlib.Path,
    split: str,
    num_examples: int,
    least_areas: Sequence[int],
    of_truth: bool = False,
) -> list[dict]:
    """A row for each least area."""
    config = load_config(workdir)
    config.data.update(eval_split=split, eval_examples=num_examples)
    config.data.segments = "panoptic"  # what the truth is; the model finds pixels
    source = open_dataset(config.data, train=False)
    is_thing = np.asarray(source.info.is_thing, bool)
    rows = qualities(
        source,
        config.eval.batch_size,
        true_label_maps if of_truth else predictor(workdir, config, source),
        lambda label_map, area: connected_segments(label_map, is_thing, area),
        least_areas,
    )
    return [
        {"least area": area} | row for area, row in zip(least_areas, rows, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--least-areas", default="0,20,40,80", help="pixels")
    parser.add_argument("--truth", action="store_true", help="its label maps")
    parser.add_argument("--json")
    flags = parser.parse_args()
    areas = [int(area) for area in flags.least_areas.split(",")]
    rows = evaluate(flags.workdir, flags.split, flags.examples, areas, flags.truth)
    measure.print_table(rows)
    measure.write_json(flags.json, {"rows": rows} | vars(flags))


if __name__ == "__main__":
    main()
