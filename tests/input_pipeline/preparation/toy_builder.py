"""A made-up data set of the most classes that there can be, and its builder."""

import functools
import os

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.info import DatasetInfo
from input_pipeline.preparation import prepare, prepared

NUM_CLASSES = 65_535  # The most that there can be.
SIZE = (6, 8)


class Toy(prepared.SegmentationBuilder, skip_registration=True):
    """Reads ``<split>/<key>.*`` and ``<split>/<key>.npy``."""

    def class_info(self):
        names = tuple(f"class {i}" for i in range(NUM_CLASSES))
        return DatasetInfo("toy", names, (True,) * NUM_CLASSES)

    def expected_examples(self):
        return {"train": 4}

    def raw_splits(self, manual_dir):
        return {
            folder.name: [
                prepared.RawExample(
                    path.stem,
                    next(p for p in folder.glob(f"{path.stem}.*") if p != path),
                    functools.partial(np.load, path),
                )
                for path in sorted(folder.glob("*.npy"))
            ]
            for folder in sorted(manual_dir.iterdir())
        }


class Killed(Toy, skip_registration=True):
    """Its labels end the process that makes them."""

    def raw_splits(self, manual_dir):
        raws = super().raw_splits(manual_dir)["train"]
        die = functools.partial(os._exit, 9)
        return {"train": [prepared.RawExample(r.key, r.image, die) for r in raws]}


def write_example(folder, key, label, *, suffix=".jpg", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{key}{suffix}")
    np.save(folder / f"{key}.npy", label.astype(np.int32))


def make_toy(root, count=4):
    labels = []
    for i in range(count):
        rng = np.random.default_rng(100 + i)
        label = rng.choice([-1, 0, 1, 254, 255, 256, 65_533, 65_534], SIZE)
        write_example(root / "train", f"example_{i}", label, seed=i)
        labels.append(label)
    write_example(root / "val", "only", labels[0])
    return labels


def run(name, manual, out, **kwargs):
    kwargs = {"num_workers": 0, "allow_incomplete": True} | kwargs
    return prepare.prepare(name, manual, out, **kwargs)


def record_bytes(path, split="train"):
    skip = tfds.decode.SkipDecoding()
    return tfds.builder_from_directory(path).as_data_source(
        split=split, decoders={"image": skip, "label": skip}
    )
