"""The other side of own_data.py: a model of segmentation-models-pytorch, trained.

    python own_data_torch.py FOLDER MODEL UNTIL SEED LEARNING_RATE SPLIT

Trains on FOLDER/crops.npz with Adam and a cosine schedule, then writes the confusion
matrix [C C] of FOLDER/SPLIT.npz at full size to FOLDER/confusion.npy; all of it until
the monotonic clock, which is the whole system's, says UNTIL.
"""

import math
import pathlib
import sys
import time

import numpy as np
import segmentation_models_pytorch as smp
import torch

BATCH = 8
MULTIPLE = 32


def main() -> None:
    folder, name, until, seed, rate, split = sys.argv[1:]
    folder, until, rate = pathlib.Path(folder), float(until), float(rate)
    torch.manual_seed(int(seed))
    facts = np.load(folder / "facts.npz")
    num_classes = int(facts["classes"])
    mean, std = (
        torch.tensor(facts[key], dtype=torch.float32).view(1, 3, 1, 1)
        for key in ("mean", "std")
    )
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=num_classes)

    def pixels(images: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() - mean) / std

    pictures = np.load(folder / f"{split}.npz")
    count = len(pictures.files) // 2
    begin = time.monotonic()
    score(model, pictures, pixels, num_classes, min(count, 8))
    reserve = (time.monotonic() - begin) / min(count, 8) * count
    train(model, np.load(folder / "crops.npz"), pixels, rate, until - reserve)
    confusion = score(model, pictures, pixels, num_classes, count)
    np.save(folder / "confusion.npy", confusion)


def train(model, crops, pixels, rate: float, until: float) -> None:
    """Until the monotonic clock, which is the whole system's, says so."""
    images, labels = crops["image"], crops["label"].astype(np.int64)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    loss = torch.nn.CrossEntropyLoss(ignore_index=-1)
    model.train()
    first, step = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        done = (now - first) / max(until - first, 1e-9)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        optimizer.zero_grad()
        loss(model(pixels(images[rows])), torch.from_numpy(labels[rows])).backward()
        optimizer.step()
        step += 1
    print(f"{step} steps", flush=True)


@torch.no_grad()
def score(model, pictures, pixels, num_classes: int, count: int) -> np.ndarray:
    """[C C] pixels by truth and prediction of whole pictures, padded to `MULTIPLE`, at
    the size of their labels.
    """
    model.eval()
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for i in range(count):
        image, label = pictures[f"image_{i}"], pictures[f"label_{i}"]
        height, width = image.shape[:2]
        x = pixels(image[None])
        x = torch.nn.functional.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        logits = model(x)[:, :, :height, :width]
        logits = torch.nn.functional.interpolate(logits, label.shape, mode="bilinear")
        found = logits[0].argmax(0).numpy()
        known = label >= 0
        index = label[known] * num_classes + found[known]
        counts = np.bincount(index, minlength=num_classes**2)
        confusion += counts.reshape(num_classes, num_classes)
    return confusion


if __name__ == "__main__":
    main()
