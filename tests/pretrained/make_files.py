"""Writes the small ``.pth`` files of the tests; needs torch.

python tests/pretrained/make_files.py
"""

import argparse
import pathlib
import pickle
import sys
from collections import OrderedDict

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import pytorch_reference as ref  # noqa: E402

FILES = pathlib.Path(__file__).parent / "files"


def kinds() -> dict:
    """Every type of number, and every way in which a tensor can lie in its storage."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        str(dtype).removeprefix("torch."): torch.tensor([-2, 0, 3]).to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        )
    }
    return tensors | {
        "transposed": base.T,
        "part": base[1:3, ::2],
        "tied": base,
        "expanded": torch.tensor([7.0]).expand(3, 2),
        "scalar": torch.tensor(5.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def mlseg() -> dict:
    """A tiny model as mmcv saves one."""
    torch.manual_seed(0)
    vit = dict(embed_dim=16, depth=2, num_heads=2, patch_size=4, image_size=24)
    head = ref.MLSegHead(11, topk=4, dim=16, heads=2, downsample=8)
    state = ref.Model(ref.VisionTransformer(**vit), head).half().state_dict()
    return {
        "meta": {
            "CLASSES": [f"thing {i}" for i in range(11)],
            "PALETTE": [[i, i, i] for i in range(11)],
            "best": np.float64(0.5),
            "options": argparse.Namespace(seed=1),
        },
        "state_dict": OrderedDict(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    torch.save(kinds(), FILES / "kinds.pth")
    torch.save(mlseg(), FILES / "mlseg.pth")
    old = {"x": torch.tensor([1.0, 2.0])}
    torch.save(old, FILES / "old.pth", _use_new_zipfile_serialization=False)
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "part": base[1, 1:],
        "half": torch.full((2,), 0.5, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    with open(FILES / "tensors.pkl", "wb") as file:
        pickle.dump({"model": tensors, "__author__": "x"}, file)
