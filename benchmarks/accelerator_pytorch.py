"""A training step of the authors' algorithm in PyTorch, beside ours on one device."""

import time

import accelerator_steps


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def step(config, dry: bool, batch: int) -> dict:
    """Seconds and memory of a step as released (`pytorch_reference`): bfloat16 by
    autocast, compiled, SGD with momentum, random pictures that stay on the device.
    """
    import pytorch_reference as reference
    import torch

    device = torch.device("cpu" if dry else "cuda")
    backbone, num_classes = config.model.backbone, config.data.num_classes
    side = config.data.crop_size[0]
    reference.VIT["here"] = dict(
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        patch_size=backbone.patch_size,
        image_size=side,
    )
    torch.manual_seed(0)
    pool = config.model.multilabel_head.downsample or None
    model = reference.build("here", "mlseg", num_classes, config.selection.k, pool)
    model = model.to(device).train()
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
