"""A training step of the authors' algorithm in PyTorch, beside ours on one device.

    python benchmarks/accelerator_pytorch.py SHAPES

`accelerator.py` starts it with the Python that has PyTorch, and NumPy beside it. SHAPES
and the last line that it writes are JSON: a row of the table, ``left_out`` where this
Python cannot make one, or the ``error`` that it came to.
"""

import functools
import json
import sys
import time
import traceback

import accelerator_steps


def shapes_of(config, batch: int, dry: bool) -> dict:
    """What `step` needs of a configuration."""
    backbone = config.model.backbone
    names = ("embed_dim", "depth", "num_heads", "patch_size")
    return {name: backbone[name] for name in names} | {
        "side": config.data.crop_size[0],
        "num_classes": config.data.num_classes,
        "k": config.selection.k,
        "pool": config.model.multilabel_head.downsample or None,
        "batch": batch,
        "dry": dry,
    }


def step(shapes: dict, batch: int) -> dict:
    """Seconds and memory of a step as released (`pytorch_reference`): bfloat16 by
    autocast, compiled, SGD with momentum, random pictures that stay on the device.
    """
    import pytorch_reference as reference
    import torch

    dry, side, num_classes = shapes["dry"], shapes["side"], shapes["num_classes"]
    device = torch.device("cpu" if dry else "cuda")
    names = ("embed_dim", "depth", "num_heads", "patch_size")
    reference.VIT["here"] = {name: shapes[name] for name in names}
    reference.VIT["here"]["image_size"] = side
    torch.manual_seed(0)
    kinds = ("here", "mlseg", num_classes, shapes["k"], shapes["pool"])
    model = reference.build(*kinds).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    pixels = torch.randn(batch, 3, side, side, device=device)
    present = torch.randperm(num_classes)[:12]
    pieces = present[torch.randint(0, 12, (batch, 8, 8))].to(device)
    labels = pieces.repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2)

    def loss():
        scores, indices, logits = model(pixels)
        ranks = reference.remap_labels(labels, indices)
        presence = reference.presence(labels, num_classes)
        label_loss = reference.asymmetric_loss(scores.float(), presence)
        return reference.pixel_cross_entropy(logits, ranks) + 300.0 * label_loss

    compiled = loss if dry else torch.compile(loss)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            value = compiled()
        value.backward()
        optimizer.step()

    def wait(_) -> None:
        if not dry:
            torch.cuda.synchronize()

    begin = time.perf_counter()
    wait(train())
    compile_seconds = time.perf_counter() - begin
    seconds = accelerator_steps.time_groups(train, wait, dry)
    row = {"batch": batch, "seconds": seconds, "images_per_second": batch / seconds}
    row |= {"compile_seconds": compile_seconds, "torch": torch.__version__}
    if not dry:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def run(shapes: dict) -> dict:
    try:
        import torch
    except ImportError as error:
        return {"left_out": f"{sys.executable} has no {error.name} (--torch-python)."}
    if not (shapes["dry"] or torch.cuda.is_available()):
        return {"left_out": f"PyTorch {torch.__version__} finds no GPU here."}
    make = functools.partial(step, shapes)
    try:
        row, fell_back = accelerator_steps.with_fallback(make, shapes["batch"])
    except Exception as error:
        traceback.print_exc()
        return {"error": accelerator_steps.sentence(error)}
    return row | {"fell_back": fell_back}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
