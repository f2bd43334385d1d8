"""What would better labels give? One trained model under many selections.

    python benchmarks/selection_levers.py --workdir=runs/mlseg --split=val --json=FILE

Every picture is encoded once; then pixels are classified among the labels that each
lever selects, with the same weights. Levers (docs/selection_study.md): the number K;
labels that are mixed with the truth, or disturbed, by degrees; thresholds of each class
that half of the pictures chose, for the other half; a second pass among the labels that
won enough pixels in the first; and the log of the labels' probabilities as a prior of
every rank. A row has the labels that were selected on average, mAP of the scores, the
share of pixels whose label was selected, and mIoU. For models that classify pixels and
pictures of one size.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.open import open_dataset  # noqa: E402
from mlseg_jax.label_selection import (  # noqa: E402
    Selection,
    SelectionPolicy,
    ranks_to_labels,
    select_top_k,
)
from mlseg_jax.metrics.average_precision import LabelScores  # noqa: E402
from mlseg_jax.metrics.mean_iou import MeanIoU  # noqa: E402
from mlseg_jax.models.interfaces import LabelPrediction  # noqa: E402
from mlseg_jax.runs.workdir import load_config, load_parameters  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.typing import Array, Bool, Float, Int  # noqa: E402

GIVEN = SelectionPolicy("given", 0)
AREAS = (0.0, 0.0025, 0.005, 0.01, 0.02)
"""Shares of a picture's pixels that a label must win to be in the second pass."""


class Levers:
    """A model, and pictures that have gone through all but its classifier."""

    def __init__(self, workdir: str, split: str, num_examples: int, batch: int):
        config = load_config(workdir)
        config.mesh.update(data=-1, fsdp=1)
        model, parameters, _ = load_parameters(workdir, config, "latest")
        config.data.update(eval_split=split, eval_examples=num_examples)
        source = open_dataset(config.data, train=False)
        self.num_classes = source.info.num_classes
        self.k = evaluation_policy(config, self.num_classes).k
        self.engine = make_engine(config, model, parameters)
        if len(source) % batch:
            sys.exit(f"--batch={batch} does not divide {len(source)} examples.")
        examples = [source[i] for i in range(len(source))]
        self.label_maps = np.stack([e["label_map"] for e in examples])
        images = np.stack([e["image"] for e in examples])
        self.encoded = [
            self.engine.encode(parameters, images[i : i + batch], None, None, None)
            for i in range(0, len(images), batch)
        ]
        self.batch = batch
        self.scores = np.concatenate([np.asarray(e.scores) for e in self.encoded])
        known = self.label_maps.reshape(len(images), -1)
        self.present = np.zeros(self.scores.shape, bool)
        for row, labels in zip(self.present, known, strict=True):
            row[np.unique(labels[labels >= 0])] = True

    def row(
        self,
        lever: str,
        selection: Selection,
        *,
        scores: Float[np.ndarray, "N C"] | None = None,
        prior: float = 0.0,
        of: slice = slice(None),
        **more: float,
    ) -> dict[str, float | str]:
        """Scores of a selection of all pictures, among those ``of``."""
        scores = self.scores if scores is None else scores
        maps = np.concatenate(list(self.predictions(selection, prior)))[of]
        selected = self._selected(selection)[of]
        truth, present = self.label_maps[of], self.present[of]
        rows = np.arange(len(truth))[:, None, None]
        state = MeanIoU.from_maps(
            maps,
            truth,
            selected[rows, np.maximum(truth, 0)],
            self.num_classes,
            present[rows, maps],
        ).to_host()
        labels = LabelScores.from_batch(scores[of], present, np.ones(len(truth), bool))
        known = truth >= 0
        return {
            "lever": lever,
            **more,
            "labels_selected": float(selected.sum(axis=1).mean()),
            "mAP": float(np.nanmean(labels.per_class_average_precision())),
            "pixel_recall": float(selected[rows, np.maximum(truth, 0)][known].mean()),
            # Of the classes that are there: of the same ones whatever is predicted.
            "mIoU": float(state.per_class_iou()[state.labelled > 0].mean()),
            "wrong_absent": float(state.wrong_absent / max(1, np.sum(wrong(state)))),
        }

    def predictions(
        self, selection: Selection, prior: float = 0.0
    ) -> Iterator[Int[np.ndarray, "B H W"]]:
        """Label maps, batch by batch."""
        size = self.label_maps.shape[1:]
        for i, labels in enumerate(self.encoded):
            part = slice(i * self.batch, (i + 1) * self.batch)
            given = jax.tree.map(lambda x, part=part: x[part], selection)
            chosen, logits = self.engine.classify(
                self.engine.parameters, labels, given, GIVEN
            )
            yield np.asarray(_label_maps(labels, chosen, logits, prior, size))

    def _selected(self, selection: Selection) -> Bool[np.ndarray, "N C"]:
        selected = np.zeros(self.scores.shape, bool)
        valid = selection.valid
        for i, ids in enumerate(selection.class_ids):
            selected[i, ids if valid is None else ids[valid[i]]] = True
        return selected


@functools.partial(jax.jit, static_argnames=("prior", "size"))
def _label_maps(
    labels: LabelPrediction,
    selection: Selection,
    logits: Float[Array, "B h w K"],
    prior: float,
    size: tuple[int, int],
) -> Int[Array, "B H W"]:
    scores = jnp.take_along_axis(labels.scores, selection.class_ids, axis=1)
    logits = logits + prior * jax.nn.log_sigmoid(scores)[:, None, None]
    shape = (len(logits), *size, logits.shape[-1])
    ranks = jnp.argmax(jax.image.resize(logits, shape, "bilinear"), axis=-1)
    return ranks_to_labels(ranks, selection)


def wrong(state: MeanIoU) -> int:
    return int(state.labelled.sum() - state.intersection.sum())


def among(
    scores: Float[np.ndarray, "N C"], allowed: Bool[np.ndarray, "N C"], k: int
) -> Selection:
    """The best ``k`` of the allowed labels; the best of all where none is allowed."""
    best = scores == scores.max(axis=1, keepdims=True)
    allowed = np.where(allowed.any(axis=1, keepdims=True), allowed, best)
    shifted = np.where(allowed, scores, -np.inf)
    ids = np.argsort(-shifted, axis=1, kind="stable")[:, :k]
    return Selection(ids, np.take_along_axis(allowed, ids, axis=1), scores.shape[1])


def best_thresholds(
    scores: Float[np.ndarray, "N C"], present: Bool[np.ndarray, "N C"]
) -> Float[np.ndarray, "C"]:
    """Of each class the score above which its F1 is highest."""
    thresholds = np.full(scores.shape[1], np.inf)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c])
        hits = np.cumsum(present[order, c])
        if not hits[-1]:
            continue
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        thresholds[c] = scores[order[np.argmax(f1)], c]
    return thresholds


def top_k(scores: Float[np.ndarray, "N C"], k: int) -> Selection:
    return jax.device_get(select_top_k(jnp.asarray(scores), k))


def count_rows(levers: Levers, counts: list[int]) -> Iterator[dict]:
    scores = levers.scores
    for count in sorted({*counts, levers.k, scores.shape[1]}):
        if count <= scores.shape[1]:
            yield levers.row("K", top_k(scores, count), value=count)


def rows(levers: Levers, counts: list[int]) -> Iterator[dict]:
    scores, present, k = levers.scores, levers.present, levers.k
    everything = np.ones(scores.shape, bool)
    top = functools.partial(top_k, k=k)
    yield from count_rows(levers, counts)
    yield levers.row("truth alone", among(scores, present, k))
    deviation = float(scores.std())
    for share in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        mixed = scores + share * deviation * present
        yield levers.row("truth added", top(mixed), scores=mixed, value=share)
        few = among(mixed, everything, 15)
        yield levers.row("truth added, K = 15", few, scores=mixed, value=share)
    noise = np.random.default_rng(0).normal(size=scores.shape) * deviation
    for share in (0.25, 0.5, 1.0):
        mixed = scores + share * noise
        yield levers.row("noise added", top(mixed), scores=mixed, value=share)
    half = len(scores) // 2
    for share in (0.0, 0.2, 0.4, 0.8):
        mixed = scores + share * deviation * present
        seen = {"scores": mixed, "of": slice(half, None), "truth": share}
        yield levers.row("K, second half", top(mixed), value=k, **seen)
        best = best_thresholds(mixed[:half], present[:half])
        for lower in (0.0, 0.5, 1.0, 2.0):
            chosen = among(mixed, mixed >= best - lower, k)
            yield levers.row("thresholds of classes", chosen, value=lower, **seen)
    for weight in (0.1, 0.3, 1.0):
        yield levers.row("prior", top(scores), prior=weight, value=weight)
    first = np.concatenate(list(levers.predictions(top(scores))))
    areas = np.stack([np.bincount(m.ravel(), minlength=scores.shape[1]) for m in first])
    pixels = first[0].size
    for share in AREAS:
        chosen = among(scores, areas > share * pixels, k)
        yield levers.row("second pass", chosen, value=share)
        by_area = among(np.log1p(areas), areas > share * pixels, k)
        yield levers.row("second pass, by area", by_area, value=share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--counts", default="5,10,20,40,80", help="K")
    parser.add_argument("--counts-only", action="store_true", help="no other lever")
    parser.add_argument("--json")
    args = parser.parse_args()
    levers = Levers(args.workdir, args.split, args.examples, args.batch)
    counts = [int(count) for count in args.counts.split(",")]
    found = []
    for row in (count_rows if args.counts_only else rows)(levers, counts):
        found.append(row)
        shown = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()]
        print("| " + " | ".join(shown) + " |", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
