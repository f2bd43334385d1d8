"""Writes the golden files that the JAX models are compared with.

Run with a Python that has torch (it is not a requirement of the project):

    python tests/parity/make_golden.py [case ...]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from golden_files import (
    CLASSES,
    GOLDEN,
    IGNORE,
    ML_WEIGHT,
    TOPK,
    Selections,
    config_of,
    float32_check,
    gradients,
    make_image,
    make_labels,
    make_model,
    normal,
    ref,
    write,
)


def vit_case(case, vit, batch, height, width, seed):
    rng = np.random.default_rng(seed)
    model = make_model(rng, vit)
    image = make_image(rng, batch, height, width)

    def run(image):
        return {"tokens": model["backbone"](image)[0]}

    tokens, grid = model["backbone"](image)
    cotangent = normal(rng, *tokens.shape)
    loss = (tokens * cotangent).sum()
    grads = dict(gradients(model, loss))
    float32_check(case, run, model, image)
    write(
        case,
        config_of(vit, batch, height=height, width=width),
        dict(image=image, cotangent=cotangent),
        dict(tokens=tokens, grid=grid, loss=loss),
        model.named_parameters(),
        grads,
    )


def segmenter_case(case, vit, batch, height, width, seed):
    rng = np.random.default_rng(seed)
    model = make_model(rng, vit, ref.SegmenterHead)
    image = make_image(rng, batch, height, width)
    labels = make_labels(rng, batch, height, width)

    def run(image, labels):
        logits = model(image)
        return dict(
            logits=logits,
            loss=ref.pixel_cross_entropy(logits, labels, "all"),
            loss_valid=ref.pixel_cross_entropy(logits, labels, "valid"),
        )

    outputs = run(image, labels)
    assert outputs["loss"] < outputs["loss_valid"]
    grads = dict(gradients(model, outputs["loss"]))
    float32_check(case, run, model, image, labels)
    write(
        case,
        config_of(vit, batch, "segmenter", height=height, width=width),
        dict(image=image, labels=labels),
        outputs,
        model.named_parameters(),
        grads,
    )


def mlseg_case(case, vit, batch, height, width, downsample, seed):
    while True:  # until the selection is clear; the first seeds usually are
        rng = np.random.default_rng(seed)
        model = make_model(rng, vit, ref.MLSegHead, downsample=downsample)
        image = make_image(rng, batch, height, width)
        selections = Selections(model)
        with torch.no_grad():
            model(image)
        if selections.clear() and len(selections.sets()) == batch:
            break
        seed += 1
    labels = make_labels(rng, batch, height, width)

    def run(image, labels):
        scores, indices, logits = model.train()(image)
        targets = ref.presence(labels, CLASSES).to(scores.dtype)
        ranks = ref.remap_labels(labels, indices)
        pixel = ref.pixel_cross_entropy(logits, ranks, "all")
        multi_label = ref.asymmetric_loss(scores, targets)
        return dict(
            scores=scores,
            indices=indices,
            rank_logits=logits,
            class_logits=model.eval()(image),
            presence=targets,
            rank_labels=ranks,
            loss_pixel=pixel,
            loss_pixel_valid=ref.pixel_cross_entropy(logits, ranks, "valid"),
            loss_multi_label=multi_label,
            loss_multi_label_bce=ref.bce(scores, targets),
            loss=pixel + ML_WEIGHT * multi_label,
        )

    outputs = run(image, labels)
    for b in range(batch):  # ignored, rejected and kept pixels in every image
        ignored = labels[b] == IGNORE
        rejected = (outputs["rank_labels"][b] == IGNORE) & ~ignored
        assert ignored.any() and rejected.any() and (~ignored & ~rejected).any()
    grads = dict(gradients(model, outputs["loss"]))
    float32_check(case, run, model, image, labels)
    print(f"  seed {seed}, least score gap {selections.least_gap:.4f}")
    write(
        case,
        config_of(vit, batch, "mlseg", height=height, width=width, topk=TOPK,
                  downsample=downsample or 0, ml_weight=ML_WEIGHT, seed=seed),
        dict(image=image, labels=labels),
        outputs,
        model.named_parameters(),
        grads,
    )  # fmt: skip


def oracle_case(case, vit, height, width, seed):
    rng = np.random.default_rng(seed)
    model = make_model(rng, vit, ref.OracleHead)
    image = make_image(rng, 1, height, width)
    labels = make_labels(rng, 1, height, width)
    last = labels[labels != IGNORE].max()
    none = torch.full_like(labels, IGNORE)
    one = torch.where(labels == last, labels, none)

    def run(image, labels, one, none):
        outputs = {}
        for name, label_map in (("", labels), ("_one", one), ("_none", none)):
            indices = ref.oracle_classes(label_map, CLASSES)
            logits = model.train()(image, indices=indices)
            ranks = ref.remap_labels(label_map, indices)
            outputs["indices" + name] = indices
            outputs["rank_logits" + name] = logits
            outputs["loss" + name] = ref.pixel_cross_entropy(logits, ranks, "all")
            outputs["class_logits" + name] = model.eval()(image, indices=indices)
        return outputs

    outputs = run(image, labels, one, none)
    ids = outputs["indices"][0].tolist()
    assert len(ids) > 3 and ids != list(range(len(ids))), ids  # not their positions
    assert outputs["indices_one"].tolist() == [[last]]
    assert outputs["indices_none"].tolist() == [[0]]
    grads = dict(gradients(model, outputs["loss"]))
    float32_check(case, run, model, image, labels, one, none)
    write(
        case,
        config_of(vit, 1, "oracle", height=height, width=width),
        dict(image=image, labels=labels, labels_one=one, labels_none=none),
        outputs,
        model.named_parameters(),
        grads,
    )


ASL = {
    "asl_2_0_0.05": (2.0, 0.0, 0.05),
    "asl_0_0_0.05": (0.0, 0.0, 0.05),
    "asl_2_0_0": (2.0, 0.0, 0.0),
    "asl_4_1_0.05": (4.0, 1.0, 0.05),
}


def losses_case(case, seed):
    rng = np.random.default_rng(seed)
    scores = normal(rng, 6, CLASSES, scale=3.0)
    scores[0, :4] = torch.tensor([30.0, -30.0, 30.0, -30.0])
    targets = torch.from_numpy(rng.integers(0, 2, scores.shape).astype(np.float64))
    targets[0, :4] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    small = torch.tensor([[2.0, -1, 0, -6], [0.5, 3, -2, -0.1]], dtype=torch.float64)
    small_targets = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.float64)

    def loss_of(name, scores, targets):
        if name == "bce":
            return ref.bce(scores, targets)
        return ref.asymmetric_loss(scores, targets, *ASL[name])

    expected = {  # method notes, section 14.6
        "asl_2_0_0.05": 0.3517224,
        "asl_0_0_0.05": 0.5688141,
        "asl_2_0_0": 0.3776506,
        "bce": 0.6162252,
        "asl_4_1_0.05": 0.2531527,
    }
    outputs, grads = {}, {}
    for name, value in expected.items():
        found = loss_of(name, small, small_targets).item()
        assert abs(found - value) < 1e-7, (name, found, value)
        outputs["small_" + name] = found
        leaf = scores.clone().requires_grad_()
        loss = loss_of(name, leaf, targets)
        loss.backward()
        outputs[name], grads[name] = loss, leaf.grad
    write(
        case,
        ASL,
        dict(scores=scores, targets=targets, small_scores=small,
             small_targets=small_targets),
        outputs,
        (),
        grads,
    )  # fmt: skip


def clear_model(rng_seed, vit, downsample, make_input, predict):
    """The first seed whose windows all select clearly and do not all agree."""
    for seed in range(rng_seed, rng_seed + 200):
        rng = np.random.default_rng(seed)
        model = make_model(rng, vit, ref.MLSegHead, downsample=downsample)
        image = make_input(rng)
        selections = Selections(model)
        labels, values = predict(model, image)
        if selections.clear() and len(selections.sets()) > 2:
            top = values.topk(2, dim=1).values
            close = (top[:, 0] - top[:, 1] < 1e-4).sum().item()
            print(f"  seed {seed}, least score gap {selections.least_gap:.4f},"
                  f" {len(selections.sets())} sets, {close} close pixels")  # fmt: skip
            return seed, model, image, labels, values, torch.cat(selections.indices)
    raise RuntimeError("no clear seed")


def sliding_case(case, vit, downsample, size, window, stride, out_size, seed):
    seed, model, image, labels, logits, indices = clear_model(
        seed,
        vit,
        downsample,
        lambda rng: make_image(rng, 1, *size),
        lambda model, x: ref.predict_sliding(model, x, window, stride, out_size),
    )
    whole_labels, _ = ref.predict_whole(model, image, out_size)

    def run(image):
        return dict(
            logits=ref.predict_sliding(model, image, window, stride, out_size)[1]
        )

    float32_check(case, run, model, image)
    write(
        case,
        config_of(vit, 1, "mlseg", height=size[0], width=size[1], topk=TOPK,
                  downsample=downsample or 0, window=window, stride=stride,
                  out_height=out_size[0], out_width=out_size[1], seed=seed),
        dict(image=image),
        dict(label_map=labels, logits=logits[0], window_indices=indices,
             whole_label_map=whole_labels),
        model.named_parameters(),
    )  # fmt: skip


def multi_scale_case(case, vit, downsample, size, ratios, window, stride, out_size,
                     seed):  # fmt: skip
    sizes = [tuple(int(s * r + 0.5) for s in size) for r in ratios]

    def pyramid(rng):
        base = make_image(rng, 1, *size)
        return [ref.resize(base, s).bfloat16().double() for s in sizes]

    def predict(model, images):
        return ref.predict_multi_scale(model, images, None, out_size, window, stride)

    seed, model, images, labels, probabilities, indices = clear_model(
        seed, vit, downsample, pyramid, predict
    )
    write(
        case,
        config_of(vit, 1, "mlseg", height=size[0], width=size[1], topk=TOPK,
                  downsample=downsample or 0, window=window, stride=stride,
                  out_height=out_size[0], out_width=out_size[1], seed=seed,
                  ratios=ratios, flip=1),
        {f"image_{i}": image for i, image in enumerate(images)},
        dict(label_map=labels, probabilities=probabilities[0],
             window_indices=indices),
        model.named_parameters(),
    )  # fmt: skip


def tiny(embed_dim=32, depth=2, num_heads=2, patch_size=4, image_size=24):
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads,
                patch_size=patch_size, image_size=image_size)  # fmt: skip


CASES = {
    "vit_even": lambda c: vit_case(c, tiny(), 3, 24, 24, seed=1),
    "vit_odd": lambda c: vit_case(
        c, tiny(48, 2, 3, 8, image_size=40), 3, 30, 53, seed=2
    ),
    "segmenter": lambda c: segmenter_case(c, tiny(), 3, 26, 35, seed=3),
    "mlseg_pool8": lambda c: mlseg_case(
        c, tiny(image_size=32), 1, 40, 44, downsample=8, seed=400
    ),
    "mlseg_pool_none": lambda c: mlseg_case(
        c, tiny(), 1, 24, 27, downsample=None, seed=500
    ),
    "mlseg_batch3": lambda c: mlseg_case(
        c, tiny(image_size=36), 3, 40, 36, downsample=8, seed=612
    ),
    "oracle": lambda c: oracle_case(c, tiny(), 24, 30, seed=7),
    "losses": lambda c: losses_case(c, seed=8),
    "sliding": lambda c: sliding_case(
        c, tiny(image_size=40), 8, (52, 76), 40, 24, (50, 70), seed=902
    ),
    "multi_scale": lambda c: multi_scale_case(
        c, tiny(), None, (32, 44), (0.5, 1.0, 1.5), 24, 16, (40, 54), seed=1010
    ),
}


def main(names):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    GOLDEN.mkdir(exist_ok=True)
    for name in names or CASES:
        CASES[name](name)
    total = sum(path.stat().st_size for path in GOLDEN.glob("*.npz"))
    print(f"total: {total / 1e6:.2f} MB")
    assert total < 4e6


if __name__ == "__main__":
    main(sys.argv[1:])
