"""Golden files of MLSeg's Mask2Former (RankSeg) on pictures and clips, in training.

Run with a Python that has torch, transformers 5 and scipy (none is a requirement of the
project):

    python tests/parity/make_golden_region_mlseg.py

The model is that of ``golden_region_mlseg.py``. What its backbone would make are random
maps, for backbones have files of their own. The selection, matching and losses are
here, after masks.md 2.3, 2.4 and 6.1 and method.md 11.1 and 11.2.

``region_mlseg.npz`` has the weights of all files, under the names of the authors' state
dicts, those that depend on K behind its number. Another file has what K does not change
once, and logits, losses and gradients by K. Gradients are one vector: all parameters in
the order of the weights.

Neither 4 nor 32 divides the sides of pictures. Points are not drawn but are those of
the file, [prediction, example, stream, point]: stream 0 for the matching, 1 + m T + t
for segment m in frame t. Segments without a pixel are not there.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from golden_files import GAP, gradients, normal, ref, write
from golden_region_mlseg import (
    CLASSES,
    DIMS,
    KEPT,
    LAYERS,
    QUERIES,
    make_model,
    official,
)
from make_golden_region_models import LEAST
from scipy.optimize import linear_sum_assignment

SIZE = 37, 42
GRIDS = (10, 11), (5, 6), (3, 3), (2, 2)
POINTS, CANDIDATES, UNCERTAIN = 24, 72, 18
MOST = 6  # rows in the tables of segments
CASES = {
    # Frames of a clip, segments of each example (one has more than queries), every K.
    "pictures": (0, (4, 1, 6), (KEPT, CLASSES)),
    "clips_2": (2, (6, 3), (KEPT, CLASSES)),
    "clips_5": (5, (4,), (CLASSES,)),
}


# ---------------------------------------------------------------------------- inputs


def make_inputs(rng, num_frames, counts):
    """Maps of the backbone [B*T D h w] and of segments [B T H W], some of which frames
    lack, their classes, and points.
    """
    batch, frames = len(counts), max(num_frames, 1)
    segments = np.full((batch, frames, *SIZE), -1)
    classes = np.full((batch, MOST), -1)
    rows, columns = (np.arange(n) * m // n for n, m in zip(SIZE, (4, 5), strict=True))
    for example, count in enumerate(counts):
        classes[example, :count] = rng.integers(0, CLASSES, count)
        for frame in range(frames):
            here = rng.permutation(count)[: max(1, count - (num_frames > 0))]
            coarse = rng.choice([-1, *here], (4, 5))
            segments[example, frame] = coarse[rows][:, columns]
    shape = LAYERS + 1, batch, 1 + MOST * frames, CANDIDATES + POINTS - UNCERTAIN, 2
    points = (rng.integers(0, 256, shape) + 0.5) / 256
    maps = {
        f"map{level}": normal(rng, batch * frames, dim, *grid)
        for level, (dim, grid) in enumerate(zip(DIMS, GRIDS, strict=True))
    }
    return maps | dict(segments=segments, classes=classes, points=points)


def targets_of(segments, classes, indices):
    """Numbers, ranks and masks [m T H W] of the segments that are there and whose class
    was selected; the classes that are there [B C].
    """
    presence = torch.zeros(len(segments), CLASSES, dtype=torch.float64)
    targets = []
    for example, selected in enumerate(indices.tolist()):
        own = [m for m in range(MOST) if (segments[example] == m).any()]
        presence[example, classes[example, own]] = 1
        own = [m for m in own if classes[example, m] in selected]
        ranks = torch.tensor([selected.index(classes[example, m]) for m in own])
        masks = segments[example] == np.asarray(own, int)[:, None, None, None]
        targets.append((own, ranks, torch.from_numpy(masks)))
    return targets, presence


# ---------------------------------------------------------------------------- losses


def sample(maps, points):
    """[G h w] at points [P 2] of the unit square, 0 outside: [G P]."""
    grid = (2 * points - 1)[None, None].expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]


def in_all_frames(masks, points):
    """[G T h w] at the same points of every frame: [G T*P]."""
    return torch.cat([sample(each, points) for each in masks.unbind(1)], dim=1)


def match(logits, masks, ranks, shapes, points):
    """Queries and their targets, by place in ``ranks``."""
    found, wanted = in_all_frames(masks, points), in_all_frames(shapes, points)
    there, elsewhere = F.softplus(-found), F.softplus(found)
    entropy = (there @ wanted.T + elsewhere @ (1 - wanted).T) / found.shape[1]
    found = found.sigmoid()
    both = found.sum(1)[:, None] + wanted.sum(1)[None]
    dice = 1 - (2 * found @ wanted.T + 1) / (both + 1)
    cost = -2 * logits.softmax(-1)[:, ranks] + 5 * entropy + 5 * dice
    return linear_sum_assignment(cost.numpy())


def compare(mask, shape, points, nearest):
    """Cross-entropy and dice of a mask [h w] where it is least certain."""
    candidates, fresh = points[:CANDIDATES], points[CANDIDATES:]
    with torch.no_grad():
        certainty = sample(mask[None], candidates)[0].abs()
        ordered, order = certainty.sort()
        nearest.append((ordered[UNCERTAIN] - ordered[UNCERTAIN - 1]).item())
        points = torch.cat([candidates[order[:UNCERTAIN]], fresh])
        label = sample(shape[None], points)[0]
    logit = sample(mask[None], points)[0]
    entropy = F.binary_cross_entropy_with_logits(logit, label)
    found = logit.sigmoid()
    common, both = (found * label).sum(), found.sum() + label.sum()
    return torch.stack([entropy, 1 - (2 * common + 1) / (both + 1)])


def losses_of(logits, masks, targets, points, nearest):
    """Class, mask and dice losses of each prediction [P 3]; queries of targets."""
    batch, predictions, _, columns = logits.shape
    weights = torch.ones(columns, dtype=logits.dtype)
    weights[-1] = 0.1
    count = max(sum(len(own) for own, _, _ in targets), 1)
    queries = np.full((batch, predictions, MOST), -1)
    losses = []
    for prediction in range(predictions):
        classes = torch.full((batch, QUERIES), columns - 1)
        pairs = torch.zeros(2, dtype=logits.dtype)
        for example, (own, ranks, shapes) in enumerate(targets):
            if not own:
                continue
            mine, table = masks[example, prediction], points[prediction, example]
            shapes = shapes.to(logits.dtype)
            with torch.no_grad():
                scores = logits[example, prediction]
                matched = match(scores, mine, ranks, shapes, table[0, :POINTS])
            for query, target in zip(*matched, strict=True):
                classes[example, query] = ranks[target]
                queries[example, prediction, own[target]] = query
                for frame, (mask, shape) in enumerate(
                    zip(mine[query], shapes[target], strict=True)
                ):
                    drawn = table[1 + own[target] * len(shapes[target]) + frame]
                    pairs = pairs + compare(mask, shape, drawn, nearest)
        scores = logits[:, prediction].transpose(1, 2)
        entropy = F.cross_entropy(scores, classes, weights)
        losses.append(torch.cat([entropy[None], pairs / count]))
    return torch.stack(losses), queries


# ----------------------------------------------------------------------------- files


def run(model, norm, k, inputs, num_frames):
    """Everything of a file for one K, and how near anything comes to turning over."""
    model.ml_norm = norm
    dtype = model.ml_norm.weight.dtype
    maps = [inputs[f"map{level}"].to(dtype) for level in range(len(DIMS))]
    points = torch.from_numpy(inputs["points"]).to(dtype)
    nearest = []
    cosines, masks, scores = model(maps, num_frames, nearest)
    ordered, order = scores.detach().sort(dim=1, descending=True)
    gap = (ordered[:, :-1] - ordered[:, 1:])[:, :k].min().item()
    indices = order[:, :k]
    columns = F.pad(indices, (0, 1), value=CLASSES)[:, None, None]
    columns = columns.expand(*cosines.shape[:3], -1)
    logits = norm(cosines.gather(-1, columns))
    targets, presence = targets_of(inputs["segments"], inputs["classes"], indices)
    parts, queries = losses_of(logits, masks, targets, points, nearest)
    labels = ref.asymmetric_loss(scores, presence.to(dtype))
    loss = (parts @ torch.tensor([2.0, 5.0, 5.0], dtype=dtype)).sum() + 10 * labels
    grads = {official(name): grad.clone() for name, grad in gradients(model, loss)}
    fixed = dict(scores=scores, masks=masks)
    chosen = dict(indices=indices, logits=logits, queries=queries, parts=parts)
    chosen |= dict(multilabel=labels, loss=loss)
    clear = gap > GAP and min(nearest) > LEAST
    clear &= k == CLASSES or sum(len(own) for own, _, _ in targets) < sum(
        len(set(each[each >= 0])) for each in inputs["segments"]
    )
    return fixed, chosen, grads, clear


def is_told_by_float32(model, norm, exact, *args):
    """Whether rounding turns nothing over: the same pairs, gradients within 1e-5."""
    _, chosen, grads, _ = run(model.float(), norm.float(), *args)
    model.double(), norm.double()
    far = max(
        ((grads[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-3)).item()
        for name, grad in exact[2].items()
    )
    print(f"  float32 differs by at most {far:.1e} in gradients")
    return far < 1e-5 and (chosen["queries"] == exact[1]["queries"]).all()


def case(name, num_frames, counts, ks, model, norms):
    """The first seed of inputs whose ranks, masks and matches are clear."""
    for seed in range(50):
        inputs = make_inputs(np.random.default_rng(seed), num_frames, counts)
        outputs, grads, clear = {}, {}, True
        for k in ks:
            found = run(model, norms[k], k, inputs, num_frames)
            clear = clear and found[3]
            clear = clear and is_told_by_float32(
                model, norms[k], found, k, inputs, num_frames
            )
            outputs |= found[0] | {f"{key}_{k}": x for key, x in found[1].items()}
            grads[k] = torch.cat([x.flatten() for x in found[2].values()])
            if not clear:
                break
        if clear:
            break
    else:
        raise SystemExit(f"{name}: no seed will do.")
    if not num_frames:
        inputs["segments"] = inputs["segments"][:, 0]
    write(
        f"frameworks/region_mlseg_{name}", dict(seed=seed), inputs, outputs, {}, grads
    )


def main():
    torch.set_num_threads(1)
    model, norms = make_model(np.random.default_rng(11))
    weights = {official(k): v for k, v in model.named_parameters()}
    weights["criterion.empty_weight"] = np.array([1.0] * CLASSES + [0.1])
    for k, norm in norms.items():
        weights |= {f"{k}/ml_norm.{name}": x for name, x in norm.named_parameters()}
    weights = {k: torch.as_tensor(v).detach().clone() for k, v in weights.items()}
    write("frameworks/region_mlseg", {}, {}, {}, weights)
    for name, settings in CASES.items():
        case(name, *settings, model, norms)


if __name__ == "__main__":
    main()
