"""Golden files of the losses of regions, from transformers' own loss classes.

    python tests/parity/make_golden_regions.py

As ``make_golden.py``, whose rules and helpers it follows. Random points come from the
file, by prediction, image and target, in place of torch's generator.
"""

from __future__ import annotations

import make_golden as golden
import numpy as np
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as mask2former
from transformers.models.maskformer import modeling_maskformer as maskformer

PREDICTIONS, QUERIES, RANKS, WIDTH = 3, 5, 4, 6
TARGETS = 3, 1, 6
"""Of each image; the last has more of them than queries."""
GRID, SIZE = (5, 7), (18, 26)
POINTS, OVERSAMPLING, IMPORTANCE = 40, 3.0, 0.75
FRESH = POINTS - int(IMPORTANCE * POINTS)
CANDIDATES = int(OVERSAMPLING * POINTS)


def make_inputs(rng):
    batch = len(TARGETS)
    ids = np.full((batch, *SIZE), -1)
    for image, count in enumerate(TARGETS):
        coarse = rng.integers(-1, count, (5, 6))
        coarse.ravel()[rng.permutation(coarse.size)[:count]] = np.arange(count)
        rows, cols = (np.arange(n) * m // n for n, m in zip(SIZE, (5, 6), strict=True))
        ids[image] = coarse[rows][:, cols]
    ranks = rng.integers(0, RANKS, (batch, max(TARGETS)))
    ranks[np.arange(max(TARGETS)) >= np.asarray(TARGETS)[:, None]] = -1
    uniform = lambda *shape: torch.from_numpy(  # noqa: E731
        rng.random(shape).astype(np.float32)
    ).double()
    return dict(
        class_logits=golden.normal(rng, batch, PREDICTIONS, QUERIES, RANKS + 1),
        embeddings=golden.normal(rng, batch, PREDICTIONS, QUERIES, WIDTH),
        features=golden.normal(rng, batch, *GRID, WIDTH),
        ids=ids,
        ranks=ranks,
        cost_points=uniform(PREDICTIONS, batch, POINTS, 2),
        points=uniform(PREDICTIONS, batch, max(TARGETS), CANDIDATES + FRESH, 2),
    )


class Recorder(torch.nn.Module):
    """The matcher, which keeps its pairs and hands torch the points of the file."""

    def __init__(self, matcher, inputs):
        super().__init__()
        self.matcher, self.inputs = matcher, inputs
        self.order = [PREDICTIONS - 1, *range(PREDICTIONS - 1)]
        self.pairs = []

    @property
    def prediction(self):
        return self.order[len(self.pairs) - 1]

    def forward(self, *args):
        self.pairs.append(None)
        self.image = 0
        self.pairs[-1] = self.matcher(*args)
        return self.pairs[-1]

    def rand(self, count, num_points, _, device=None):
        if self.pairs[-1] is None:
            self.image += 1
            return self.inputs["cost_points"][self.prediction, self.image - 1][None]
        drawn = [
            self.inputs["points"][self.prediction, image, target]
            for image, (_, targets) in enumerate(self.pairs[-1])
            for target in targets
        ]
        part = slice(CANDIDATES, None) if num_points == FRESH else slice(CANDIDATES)
        drawn = torch.stack(drawn)[:, part].contiguous()
        assert drawn.shape == (count, num_points, 2)
        return drawn


def criterion(case):
    """Their loss and its weights (class, mask, dice)."""
    if case == "region_points":
        config = Mask2FormerConfig(
            num_labels=RANKS, train_num_points=POINTS, oversample_ratio=OVERSAMPLING,
            importance_sample_ratio=IMPORTANCE, no_object_weight=0.1, class_weight=2.0,
            mask_weight=5.0, dice_weight=5.0,
        )  # fmt: skip
        return mask2former.Mask2FormerLoss(config, {}), (2.0, 5.0, 5.0)
    matcher = maskformer.MaskFormerHungarianMatcher(1.0, 20.0, 1.0)
    return maskformer.MaskFormerLoss(RANKS, matcher, {}, 0.1), (1.0, 20.0, 1.0)


def run(case, inputs):
    loss, weights = criterion(case)
    loss = loss.double()
    loss.matcher = Recorder(loss.matcher, inputs)
    mask2former.torch.rand, true_rand = loss.matcher.rand, torch.rand
    leaves = {
        name: inputs[name].clone().requires_grad_()
        for name in ("class_logits", "embeddings", "features")
    }
    maps = torch.einsum("bpnd,bhwd->bpnhw", leaves["embeddings"], leaves["features"])
    outputs = [
        dict(
            masks_queries_logits=maps[:, i],
            class_queries_logits=leaves["class_logits"][:, i],
        )
        for i in range(PREDICTIONS)
    ]
    masks = [
        torch.stack([torch.from_numpy(ids == m) for m in range(count)]).double()
        for ids, count in zip(inputs["ids"], TARGETS, strict=True)
    ]
    labels = [
        torch.from_numpy(ranks[:count])
        for ranks, count in zip(inputs["ranks"], TARGETS, strict=True)
    ]
    found = loss(
        **outputs[-1],
        mask_labels=masks,
        class_labels=labels,
        auxiliary_predictions=outputs[:-1],
    )
    torch.rand = true_rand
    parts = {
        ours: torch.stack([found[f"{theirs}{end}"] for end in ("_0", "_1", "")])
        for ours, theirs in (
            ("class", "loss_cross_entropy"),
            ("mask", "loss_mask"),
            ("dice", "loss_dice"),
        )
    }
    parts["loss"] = sum(
        w * parts[k].sum()
        for w, k in zip(weights, ("class", "mask", "dice"), strict=True)
    )
    parts["loss"].backward()
    queries = np.full((len(TARGETS), PREDICTIONS, max(TARGETS)), -1)
    recorder = loss.matcher
    for prediction, pairs in zip(recorder.order, recorder.pairs, strict=True):
        for image, (query, target) in enumerate(pairs):
            queries[image, prediction, target] = query
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    return parts | {"queries": queries}, grads


def main():
    torch.set_num_threads(1)
    inputs = make_inputs(np.random.default_rng(3000))
    config = dict(points=POINTS, oversampling=OVERSAMPLING, importance=IMPORTANCE)
    for case in ("region_points", "region_pixels"):
        outputs, grads = run(case, inputs)
        if case == "region_pixels":
            inputs = {k: v for k, v in inputs.items() if "points" not in k}
        golden.write(f"frameworks/{case}", config, inputs, outputs, (), grads)


if __name__ == "__main__":
    main()
