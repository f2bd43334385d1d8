"""Pictures too large for one pass, a band of their rows at a time.

A band needs only the windows that reach into it, and of the labels only those that
these have selected: at a pixel, labels of other windows are filled with -100 and never
win. So the memory is that of a few rows of windows, whatever the picture's size.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.inference.assemble import stitch, take_ranks, unite
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.views import View, make_views
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.typing import Bool

MAX_PIXELS = 2**24
"""Larger pictures are segmented in bands."""

BAND_HEIGHT = 1024
"""Rows of pixels of a band."""


def needs_bands(engine: Engine, size: tuple[int, int]) -> bool:
    """Whether a picture of this height and width is large, and seen in windows.

    Masks of regions are made a tile at a time anyway.
    """
    large = size[0] * size[1] > MAX_PIXELS and engine.settings.mode == "slide"
    return large and not engine.num_queries


def segment_in_bands(
    engine: Engine,
    image: np.ndarray,
    policy: SelectionPolicy,
    given: Selection | None = None,
    allowed: Bool[np.ndarray, "C"] | None = None,
) -> Iterator[tuple[slice, Segmented]]:
    """As `Engine.segment` of one picture uint8 ``[H W 3]``: rows, and what is in them.

    Scores are those of the band's windows; ``given`` has one row.
    """
    views = make_views(image, engine.settings, engine.grid_length, engine.any_canvas)
    shared = engine.settings.selection_scope != "per_window"
    if shared and policy.name == "top_k":
        scores = _best_scores(engine, views, allowed)
        given = jax.device_get(policy.select()(jnp.asarray(scores[None])))
        policy = SelectionPolicy("given", policy.k)
    columns = tuple(view.columns.matrix for view in views)  # the same in all bands
    kept = [{} for _ in views]
    for start in range(0, len(image), BAND_HEIGHT):
        rows = slice(start, min(start + BAND_HEIGHT, len(image)))
        needed = [view.rows.reaching(rows) for view in views]
        missing = [
            (number, row)
            for number, rows_of in enumerate(needed)
            for row in rows_of
            if row not in kept[number]
        ]
        results = _run(engine, views, missing, policy, given, allowed)
        for number, row in missing:
            count = len(views[number].columns.starts)
            kept[number][row] = [next(results) for _ in range(count)]
        # Windows that reach into the next band are not run again.
        kept = [
            {row: done[row] for row in rows_of}
            for done, rows_of in zip(kept, needed, strict=True)
        ]
        yield rows, _assemble(engine, views, kept, rows, columns)


def _run(
    engine: Engine,
    views: Sequence[View],
    rows: Sequence[tuple[int, int]],
    policy: SelectionPolicy,
    given: Selection | None,
    allowed,
) -> Iterator[tuple]:
    """Per window of some rows of windows: logits, class ids, valid, scores."""
    windows = [
        (window, views[number].window_size)
        for number, row in rows
        for window in views[number].windows((row,))
    ]
    for batch, count in engine.batches(windows):
        if given is None:
            found = engine.predict(engine.parameters, *batch, allowed, policy)
            scores, selection, logits = jax.device_get(found)
        else:
            labels = engine.encode(engine.parameters, *batch, allowed)
            many = np.zeros(len(labels.scores), np.int32)
            same = jax.tree.map(lambda x, many=many: np.asarray(x)[many], given)
            found = engine.classify(engine.parameters, labels, same, policy)
            (selection, logits), scores = jax.device_get((found, labels.scores))
        valid = selection.valid
        if valid is None:
            valid = np.ones(selection.class_ids.shape, bool)
        yield from zip(
            *(x[:count] for x in (logits, selection.class_ids, valid, scores)),
            strict=True,
        )


def _best_scores(engine: Engine, views: Sequence[View], allowed) -> np.ndarray:
    """The highest scores [C] of all windows."""
    best = np.full(engine.num_classes, -np.inf, np.float32)
    for view in views:
        for row in range(len(view.rows.starts)):
            windows = [(window, view.window_size) for window in view.windows((row,))]
            for batch, count in engine.batches(windows):
                scores = engine.encode(engine.parameters, *batch, allowed).scores
                best = np.maximum(best, np.asarray(scores)[:count].max(axis=0))
    return best


def _assemble(
    engine: Engine,
    views: Sequence[View],
    kept: list[dict],
    rows: slice,
    columns: tuple[np.ndarray, ...],
) -> Segmented:
    """The union of the windows' labels, and their grids side by side."""
    windows = [window for done in kept for row in sorted(done) for window in done[row]]
    logits, class_ids, valid, scores = zip(*windows, strict=True)
    union, real, ranks = unite(np.stack(class_ids), np.stack(valid), engine.num_classes)
    grids = [take_ranks(grid, rank) for grid, rank in zip(logits, ranks, strict=True)]
    shapes = [
        (len(done), len(view.columns.starts))
        for done, view in zip(kept, views, strict=True)
    ]
    return Segmented(
        (rows.stop - rows.start, len(columns[0])),
        tuple(stitch(grids, shapes)),
        tuple(view.rows.part(rows) for view in views),
        columns,
        Selection(union[None], real[None], engine.num_classes),
        np.max(scores, axis=0)[None],
        1,
    )
