"""Golden files of the paper's other heads and of what it compares with.

    python tests/parity/make_golden_heads.py [case ...]

As ``make_golden.py``, with the same ``golden_files``.
"""

from __future__ import annotations

import sys

import golden_files as golden
import numpy as np
import pytorch_comparisons as other
import torch
from golden_files import CLASSES, IGNORE, TOPK, ref
from make_golden import tiny

VIT = tiny(embed_dim=16, depth=2, patch_size=4, image_size=24)
SHAPE = dict(dim=16, heads=2, dropout=0.0)
MLP_DIM, HEADS, DOWNSAMPLE, CODES, COSINE_DIM, NEAREST = 24, 4, 4, 5, 6, 3
LAYERS = 1, 2
"""Of Query2Label's encoder and decoder."""


def make(case, rng):
    backbone = ref.VisionTransformer(**VIT)
    if case == "query2label":
        model = other.Query2Label(backbone, CLASSES, 16, HEADS, MLP_DIM, *LAYERS)
        model = model.double()
        golden.randomise(model, rng)
        return model
    if case == "head_decoder":
        scores = other.DecoderScores(CLASSES, 16, HEADS, MLP_DIM)
        head = other.GatheringHead(
            CLASSES, TOPK, scores, downsample=DOWNSAMPLE, **SHAPE
        )
    elif case == "head_pooling":
        scores = other.PoolingScores(CLASSES, 16)
        head = other.GatheringHead(
            CLASSES, TOPK, scores, downsample=DOWNSAMPLE, **SHAPE
        )
    elif case == "head_logits":
        head = other.LogitsHead(CLASSES, TOPK, **SHAPE)
    elif case == "oce":
        backbone = other.OCEVisionTransformer(CLASSES, **VIT)
        head = other.OCEHead(CLASSES, topk=TOPK, downsample=DOWNSAMPLE, **SHAPE)
    elif case == "encnet":
        head = other.EncNetHead(CLASSES, num_codes=CODES, **SHAPE)
    else:
        head = other.ESSNetHead(CLASSES, cosine_dim=COSINE_DIM, **SHAPE)
    model = ref.Model(backbone, head).double()
    golden.randomise(model, rng)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.copy_(0.5 + golden.normal(rng, *value.shape).abs())
            elif name.endswith("running_mean"):
                value.copy_(golden.normal(rng, *value.shape, scale=0.2))
    return model


def run(case, model, image, labels):
    presence = ref.presence(labels, CLASSES).double()
    if case == "query2label":
        scores = model(image)
        return dict(scores=scores, loss=other.query2label_loss(scores, presence > 0))
    if case == "essnet":
        logits = model(image)
        loss = other.nearest_class_loss(logits, labels, NEAREST, IGNORE)
        # Prediction: what does not score best in a cell is filled, then upsampled.
        best = logits.topk(NEAREST, dim=1).indices
        filled = torch.full_like(logits, -100.0)
        filled = filled.scatter(1, best, logits.gather(1, best))
        predicted = torch.nn.functional.interpolate(
            filled, size=labels.shape[1:], mode="bilinear", align_corners=False
        ).argmax(dim=1)
        return dict(logits=logits, loss_pixel=loss, loss=loss, eval_logits=filled,
                    eval_labels=predicted)  # fmt: skip
    if case == "encnet":
        evaluated, _ = model.eval()(image), model.train()
        scores, logits = model(image)
        pixel, label = (
            ref.pixel_cross_entropy(logits, labels),
            ref.bce(scores, presence),
        )
        return dict(scores=scores, logits=logits, eval_scores=evaluated[0],
                    eval_logits=evaluated[1], loss_pixel=pixel,
                    loss_multi_label=label, loss=pixel + 0.2 * label)  # fmt: skip
    scores, indices, logits = model.train()(image)
    pixel = ref.pixel_cross_entropy(logits, ref.remap_labels(labels, indices))
    gamma = 2.0 if case in ("oce", "head_logits") else 0.0
    label = ref.asymmetric_loss(scores, presence, gamma, 0.0, 0.05)
    return dict(scores=scores, indices=indices, logits=logits, loss_pixel=pixel,
                loss_multi_label=label, loss=pixel + 10.0 * label)  # fmt: skip


def write(case, seed):
    for attempt in range(seed, seed + 100):  # until no two deciding scores are close
        rng = np.random.default_rng(attempt)
        model = make(case, rng)
        # Query2Label looks at squares.
        size = (24, 24) if case == "query2label" else (26, 35)
        image = golden.make_image(rng, 3, *size)
        labels = golden.make_labels(rng, 3, *size)
        arrays = dict(model.named_parameters())
        arrays |= {k: v.clone() for k, v in model.named_buffers() if v.ndim}
        outputs = run(case, model, image, labels)
        if "indices" not in outputs:
            break
        ordered = outputs["scores"].detach().sort(dim=1, descending=True).values
        if (ordered[:, :TOPK] - ordered[:, 1 : TOPK + 1]).min() > golden.GAP:
            break
    grads = dict(golden.gradients(model, outputs["loss"]))
    config = golden.config_of(VIT, 3, case, topk=TOPK, downsample=DOWNSAMPLE,
                              seed=attempt)  # fmt: skip
    golden.write(case, config, dict(image=image, labels=labels), outputs, arrays, grads)


CASES = ("head_decoder", "head_pooling", "oce", "encnet", "essnet", "head_logits",
         "query2label")  # fmt: skip


def main(names):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for i, case in enumerate(CASES):
        if not names or case in names:
            write(case, 2000 + 100 * i)


if __name__ == "__main__":
    main(sys.argv[1:])
