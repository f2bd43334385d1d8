"""What all golden files are made of: models with random weights, pictures, files.

Everything is computed in float64 from values that bfloat16 can hold, then stored as
float32, so outputs carry no rounding of the reference beyond the last store.
Gradients are rounded to 16 significant bits (relative error below 8e-6), which
lets the files compress.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import pytorch_reference as ref  # noqa: E402

GOLDEN = Path(__file__).resolve().parent / "golden"
CLASSES, TOPK, IGNORE = 11, 4, 255
ML_WEIGHT = 10.0
GAP = 5e-3  # least distance between neighbouring scores up to the first rejected


# ---------------------------------------------------------------- random material
def normal(rng, *shape, scale=1.0, mean=0.0):
    """float64 tensor of normal values that bfloat16 represents exactly."""
    values = torch.from_numpy(mean + scale * rng.standard_normal(shape))
    return values.bfloat16().double()


def randomise(model, rng):
    """Trained-looking values: nothing is left at 0, at 1 or tiny."""
    with torch.no_grad():
        for module in model.modules():
            is_norm = isinstance(module, torch.nn.LayerNorm | ref.PositionNorm)
            for name, param in module.named_parameters(recurse=False):
                if is_norm and name == "weight":
                    mean, scale = 1.0, 0.25
                elif name in ("cls_token", "pos_embed"):
                    mean, scale = 0.0, 0.5
                elif name in ("cls_emb", "W"):
                    mean, scale = 0.0, {"cls_emb": 1.0, "W": 0.3}[name]
                elif param.ndim == 1 or name == "b":
                    mean, scale = 0.0, 0.2
                else:
                    mean, scale = 0.0, param[0].numel() ** -0.5
                param.copy_(normal(rng, *param.shape, scale=scale, mean=mean))


def make_image(rng, batch, height, width):
    """Blobs plus noise, so that different windows look different."""
    blobs = normal(rng, batch, 3, 4, 5, scale=1.2)
    smooth = F.interpolate(blobs, size=(height, width), mode="bilinear")
    image = smooth + 0.3 * normal(rng, batch, 3, height, width)
    return image.bfloat16().double()


def make_labels(rng, batch, height, width):
    """Blocks of 6 classes, some of them ignored, different for each image."""
    coarse = np.stack(
        [rng.choice(rng.permutation(CLASSES)[:6], (5, 6)) for _ in range(batch)]
    )
    coarse[rng.random(coarse.shape) < 0.15] = IGNORE
    rows, cols = np.arange(height) * 5 // height, np.arange(width) * 6 // width
    labels = coarse[:, rows][:, :, cols]
    labels[:, :2, -3:] = IGNORE
    return torch.from_numpy(labels)


def make_model(rng, vit, head=None, topk=TOPK, downsample=8):
    backbone = ref.VisionTransformer(**vit)
    shape = dict(dim=vit["embed_dim"], heads=vit["num_heads"], dropout=0.0)
    if head is None:
        model = torch.nn.ModuleDict({"backbone": backbone})
    else:
        if head is ref.MLSegHead:
            shape.update(topk=topk, downsample=downsample)
        model = ref.Model(backbone, head(CLASSES, **shape))
    model = model.double()
    randomise(model, rng)
    return model.eval()


class Selections:
    """Records every selection of a model and checks that none of them is close."""

    def __init__(self, model):
        self.indices = []
        self.least_gap = float("inf")
        model.decode_head.ml_fc.register_forward_hook(self.record)

    def record(self, module, inputs, scores):
        ordered, indices = scores.detach().sort(dim=1, descending=True)
        gaps = ordered[:, :TOPK] - ordered[:, 1 : TOPK + 1]
        self.least_gap = min(self.least_gap, gaps.min().item())
        self.indices.append(indices[:, :TOPK])

    def clear(self):
        """No two scores that decide the ranks are within GAP of each other."""
        return self.least_gap > GAP

    def sets(self):
        return {tuple(sorted(row)) for part in self.indices for row in part.tolist()}


# ---------------------------------------------------------------- files
def as_array(value):
    if torch.is_tensor(value):
        value = value.detach().numpy()
    value = np.asarray(value)
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    return value.astype(np.int32)


def shorten(array, bits=16):
    """Rounds float32 values to so many significant bits."""
    step = np.int64(1) << (24 - bits)
    whole = array.view(np.int32).astype(np.int64)
    whole = (whole + step // 2) // step * step
    return whole.astype(np.int32).view(np.float32)


def write(case, config, inputs, outputs, params=(), grads=()):
    arrays = {f"config:{k}": as_array(v) for k, v in config.items()}
    arrays |= {f"input:{k}": as_array(v) for k, v in dict(inputs).items()}
    arrays |= {f"output:{k}": as_array(v) for k, v in dict(outputs).items()}
    arrays |= {f"param:{k}": as_array(v) for k, v in dict(params).items()}
    arrays |= {f"grad:{k}": shorten(as_array(v)) for k, v in dict(grads).items()}
    for name, array in arrays.items():
        assert np.isfinite(array).all(), (case, name)
    path = GOLDEN / f"{case}.npz"
    # np.load reads this as any npz; np.savez_compressed would make it 15% larger
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(zipfile.ZipInfo(name + ".npy"), buffer.getvalue(),
                             zipfile.ZIP_LZMA)  # fmt: skip
    size = path.stat().st_size
    print(f"{case}: {size / 1000:.0f} kB")
    assert size < 400_000, (case, size)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, f"no gradient reaches {name}"
        yield name, param.grad


def float32_check(case, run, model, *tensors):
    """How far the same computation in float32 is from the float64 one."""
    exact = run(*tensors)
    model.float()
    rough = run(*(t.float() if t.is_floating_point() else t for t in tensors))
    model.double()
    far = {k: (exact[k].double() - rough[k].double()).abs().max() for k in exact}
    worst = max(far, key=far.get)
    print(f"  float32 differs by at most {far[worst]:.1e} ({worst})")
    assert far[worst] < 1e-3, case


def config_of(vit, batch, head=None, **more):
    config = dict(vit, batch=batch)
    if head:
        config |= dict(num_classes=CLASSES, ignore=IGNORE)
    return config | more
