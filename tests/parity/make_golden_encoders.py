"""Golden files of DINOv3 and of EoMT on both DINOs, of the transformers library.

Run with a Python that has torch and transformers 5 (neither is a requirement of the
project):

    python tests/parity/make_golden_encoders.py [case ...]

Tiny modules of the library with random values; files look as those of
``make_golden.py``. Of DINOv3 all blocks' normalised patches; of EoMT all supervised
predictions, its own loss at points of the file, and gradients of that. The library
masks in evaluation, too, where its probabilities are not set to 0: that is how ours is
compared with it in training, which draws nothing while all queries are masked.
"""

from __future__ import annotations

import sys

import make_golden_regions as regions
import numpy as np
import torch
import transformers
from golden_files import make_image, write
from make_golden_frameworks import backbone_case, padded, randomise

CLASSES, QUERIES, DEPTH, JOINT = 7, 5, 4, 2
TARGETS = (2, 3)
LEAST = 1e-4  # distance of mask logits from where a patch is seen or not


def dinov3(case, batch, height, width, seed, *, gated):
    sizes = dict(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24 if gated else 32,
        patch_size=4,
        image_size=24,
        num_register_tokens=3,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        layer_norm_eps=1e-5,
        out_features=["stage1", "stage2", "stage3"],
        attn_implementation="eager",
    )
    config = transformers.DINOv3ViTConfig(**sizes)
    model = transformers.DINOv3ViTBackbone(config)
    model.embeddings.register_parameter("mask_token", None)
    shown = dict(
        embed_dim=16,
        depth=3,
        num_heads=2,
        mlp_dim=sizes["intermediate_size"],
        patch_size=4,
        image_size=(4, 4),
        taps=(0, 1, 2),
        num_registers=3,
        gated=gated,
    )
    run = lambda image: model(padded(image)).feature_maps  # noqa: E731
    backbone_case(case, model, shown, batch, height, width, seed, run)


def make_eomt(name, patch, cells, upscales):
    sizes = dict(
        hidden_size=16,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        patch_size=patch,
        image_size=cells * patch,
        num_register_tokens=2,
        num_upscale_blocks=upscales,
        num_blocks=JOINT,
        num_queries=QUERIES,
        num_labels=CLASSES,
        no_object_weight=0.1,
        train_num_points=regions.POINTS,
        oversample_ratio=regions.OVERSAMPLING,
        importance_sample_ratio=regions.IMPORTANCE,
        attn_implementation="eager",
    )
    sizes |= dict(mlp_ratio=2) if name == "Eomt" else dict(intermediate_size=32)
    if name == "EomtDinov3":
        sizes["layer_norm_eps"] = 1e-5
        sizes["rope_parameters"] = dict(rope_type="default", rope_theta=100.0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForUniversalSegmentation")(config)


class InOrder(regions.Recorder):
    """Predictions come from the first to the last here."""

    def __init__(self, matcher, inputs):
        super().__init__(matcher, inputs)
        self.order = list(range(JOINT + 1))


def eomt(case, name, seed, *, patch, cells, upscales):
    rng = np.random.default_rng(seed)
    model = make_eomt(name, patch, cells, upscales).double().eval()
    randomise(model, rng)
    side, batch, most = cells * patch, len(TARGETS), max(TARGETS)
    image = make_image(rng, batch, side, side)
    ids = rng.integers(-1, 3, (batch, 6, 6)) % (np.asarray(TARGETS)[:, None, None] + 1)
    ids = np.where(ids == np.asarray(TARGETS)[:, None, None], -1, ids)
    grid = np.arange(side) * 6 // side
    ids = ids[:, grid][:, :, grid]
    ranks = rng.integers(0, CLASSES, (batch, most))
    ranks[np.arange(most) >= np.asarray(TARGETS)[:, None]] = -1
    uniform = lambda *shape: torch.from_numpy(  # noqa: E731
        rng.random(shape).astype(np.float32)
    ).double()
    count = regions.CANDIDATES + regions.FRESH
    inputs = dict(
        image=image,
        ids=ids,
        ranks=ranks,
        cost_points=uniform(JOINT + 1, batch, regions.POINTS, 2),
        points=uniform(JOINT + 1, batch, most, count, 2),
    )
    found, predict = [], model.predict
    model.predict = lambda tokens: found.append(predict(tokens)) or found[-1]
    recorder = model.criterion.matcher = InOrder(model.criterion.matcher, inputs)
    true_rand, torch.rand = torch.rand, recorder.rand
    pairs = list(zip(ids, ranks, TARGETS, strict=True))
    output = model(
        pixel_values=image,
        mask_labels=[
            torch.stack([torch.from_numpy(i == m) for m in range(n)]).double()
            for i, _, n in pairs
        ],
        class_labels=[torch.from_numpy(r[:n]) for _, r, n in pairs],
    )
    torch.rand = true_rand
    output.loss.backward()
    masks, classes = (torch.stack(x, dim=1) for x in zip(*found, strict=True))
    for each in masks[:, :-1].flatten(0, 1):
        coarse = torch.nn.functional.interpolate(
            each[None], size=(cells, cells), mode="bilinear"
        )
        assert coarse.abs().min() > LEAST, "another seed"
    model.attn_mask_probs.zero_()
    with torch.no_grad():
        plain = model(pixel_values=image)
    outputs = dict(
        loss=output.loss,
        classes=classes,
        masks=masks,
        open_classes=plain.class_queries_logits,
        open_masks=plain.masks_queries_logits,
    )
    params = dict(model.named_parameters())
    grads = {key: x.grad for key, x in params.items()}
    assert all(x is not None for x in grads.values())
    config = dict(patch_size=patch, side=side, batch=batch)
    write(f"frameworks/{case}", config, inputs, outputs, params, grads)


CASES = {
    # Grids of 7x5 and of 4x8; sides that the patch does not divide.
    "dinov3": lambda case: dinov3(case, 2, 27, 18, 1, gated=False),
    "dinov3_gated": lambda case: dinov3(case, 1, 15, 31, 2, gated=True),
    "eomt": lambda case: eomt(case, "Eomt", 3, patch=16, cells=3, upscales=2),
    "eomt_dinov3": lambda case: eomt(
        case, "EomtDinov3", 4, patch=8, cells=5, upscales=1
    ),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or CASES:
        CASES[each](each)
