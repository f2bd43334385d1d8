"""Where things get lost, in a run of regions or of pixels: mask, name or merging.

    python benchmarks/lost_things.py --workdir=runs/panoptic --examples=60 \
        --object-threshold=0.03 --overlap-threshold=0.5

`evaluate` says which segments were not found, not why. Here, of the true things:
`mask`, the share with a mask of an IoU above 0.5, whatever its name; `name`, the share
of those whose name is right; `found`, the share with a segment of their class and such
an IoU in the end.

Of regions a mask is a query's, and the name that of the best one; of pixels (cut up as
in `connected_components.py`) a mask is a piece, and `name` is of all things: whether
most of a thing's pixels are named right. Things that share a connected component with
others of their class, which pixels cannot tell apart, have a row of their own, and so
have those of the commoner and of the rarer half of the classes of things. The
thresholds are the run's unless they are given.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import connected_components  # noqa: E402
import measure  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.open import open_dataset  # noqa: E402
from mlseg_jax.distributed.sharding import own_mesh  # noqa: E402
from mlseg_jax.inference.mask_tiles import mask_tiles, upsampled_masks  # noqa: E402
from mlseg_jax.inference.regions import SegmentedRegions  # noqa: E402
from mlseg_jax.runs.workdir import load_config, load_parameters  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.tasks.panoptic import find_segments  # noqa: E402

LEAST_IOU = 0.5

THRESHOLDS = ("object_threshold", "overlap_threshold")

SHARES = 1.2
"""A component this many times as large as a thing holds others, too."""


def ious(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of masks bool [N H W] with one true mask."""
    both = (masks & truth).sum(axis=(1, 2))
    return both / np.maximum((masks | truth).sum(axis=(1, 2)), 1)


def fate(
    masks: np.ndarray, names: np.ndarray, found: np.ndarray, found_names: np.ndarray,
    truth: np.ndarray, class_id: int,
) -> tuple[bool, bool, bool]:  # fmt: skip
    """Whether a thing has a mask, the best mask's name is its own, and it is found.

    ``masks`` [N H W] with ``names`` [N] are all there are, ``found`` what is left.
    """
    overlap = ious(masks, truth)
    best = int(overlap.argmax()) if len(overlap) else -1
    has_mask = best >= 0 and overlap[best] > LEAST_IOU
    is_found = (ious(found, truth) > LEAST_IOU) & (found_names == class_id)
    return has_mask, has_mask and names[best] == class_id, bool(is_found.any())


def region_masks(picture: SegmentedRegions) -> tuple[np.ndarray, np.ndarray]:
    """Masks of all queries and the name of each."""
    window = picture.only_window()
    masks = window.masks.on_device()
    (piece,) = mask_tiles(window.rows, window.columns, picture.size)
    rows, columns, tile = piece
    logits = np.asarray(upsampled_masks(masks, tile))[:, rows, columns]
    names = picture.class_ids[window.probabilities()[:, :-1].argmax(axis=1)]
    return logits >= 0, names


def region_looker(workdir: str, config, info) -> Callable:
    model, parameters, _ = load_parameters(workdir, config, "latest")
    policy = evaluation_policy(config, info.num_classes)
    engine = make_engine(config, model, parameters, own_mesh(config))

    def look(example):
        ((picture,),) = engine.segment([example["image"]], [(policy, None)])
        segments = find_segments(picture, config.eval, info).segments
        found = np.array([s.mask for s in segments]).reshape(-1, *picture.size)
        names = np.array([s.class_id for s in segments], int)
        return (*region_masks(picture), found, names), None

    return look


def pixel_looker(workdir: str, config, source, least_area: int) -> Callable:
    is_thing = np.asarray(source.info.is_thing, bool)
    predict = connected_components.predictor(workdir, config, source)

    def look(example):
        (label_map,) = predict([example])
        pieces, classes = connected_components.connected_segments(
            label_map, is_thing, least_area
        )
        masks = pieces == np.array([*classes], int)[:, None, None]
        names = np.array([*classes.values()], int)
        return (masks, names, masks, names), label_map

    return look


def evaluate(
    workdir: str, split: str, examples: int, least_area: int, thresholds: dict
) -> list[dict]:
    """Rows of `summary`.

    ``thresholds``: values of ``eval`` to take in place of the run's.
    """
    config = load_config(workdir)
    config.eval.update(thresholds)
    is_pixels = config.task == "semantic"
    config.data.update(eval_split=split, eval_examples=examples, segments="panoptic")
    config.mesh.update(data=-1, fsdp=1)
    source = open_dataset(config.data, train=False)
    is_thing = np.asarray(source.info.is_thing, bool)
    if is_pixels:
        look = pixel_looker(workdir, config, source, least_area)
    else:
        look = region_looker(workdir, config, source.info)
    rows, class_ids = [], []
    for i in range(len(source)):
        example = source[i]
        seen, label_map = look(example)
        whole, _ = connected_components.connected_segments(
            example["label_map"], is_thing
        )
        for entry in example["segments"]:
            truth = example["segment_map"] == entry.segment_id
            if entry.is_crowd or not is_thing[entry.class_id] or not truth.any():
                continue
            component = np.bincount(whole[truth]).argmax()
            shares = (whole == component).sum() > SHARES * truth.sum()
            mask, name, found = fate(*seen, truth, entry.class_id)
            if is_pixels:
                name = np.bincount(label_map[truth]).argmax() == entry.class_id
            rows.append((shares, mask, name, found))
            class_ids.append(entry.class_id)
    is_rare = rarer_half(np.array(class_ids, int), is_thing)
    return summary(np.array(rows, bool).reshape(-1, 4), is_rare, is_pixels)


def rarer_half(class_ids: np.ndarray, is_thing: np.ndarray) -> np.ndarray:
    """Of things of classes int [n], bool [n]: whether theirs is in the rarer half."""
    counts = np.bincount(class_ids, minlength=len(is_thing))
    things = np.flatnonzero(is_thing)
    common = things[np.argsort(-counts[things], kind="stable")][: len(things) // 2]
    return ~np.isin(class_ids, common)


def summary(rows: np.ndarray, is_rare: np.ndarray, is_pixels: bool) -> list[dict]:
    """Shares in % of all things (bool [n 4]: shares a component, and `fate`), and by
    whether they share a component and are of a rare class (bool [n]).
    """
    shares = rows[:, 0]
    groups = {
        "alone": ~shares,
        "sharing a component": shares,
        "common classes": ~is_rare,
        "rare classes": is_rare,
        "all": shares | True,
    }
    lines = []
    for name, chosen in groups.items():
        mask, named, found = rows[chosen, 1:].T
        of = len(mask) if is_pixels else mask.sum()
        lines.append(
            {
                "things": name,
                "count": len(mask),
                "mask %": 100 * mask.sum() / max(len(mask), 1),
                "name %": 100 * named.sum() / max(of, 1),
                "found %": 100 * found.sum() / max(len(mask), 1),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument(
        "--least-area", type=int, default=0, help="of pieces, in pixels"
    )
    for name in THRESHOLDS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    parser.add_argument("--json")
    flags = parser.parse_args()
    given = {name: getattr(flags, name) for name in THRESHOLDS}
    rows = evaluate(
        flags.workdir,
        flags.split,
        flags.examples,
        flags.least_area,
        {name: value for name, value in given.items() if value is not None},
    )
    measure.print_table(rows)
    measure.write_json(flags.json, {"rows": rows} | vars(flags))


if __name__ == "__main__":
    main()
