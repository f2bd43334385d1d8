"""What tests of data sets in their published layouts write, prepare and compare."""

import numpy as np
from PIL import Image

from input_pipeline.preparation import prepare, prepared


def run(name, manual, out):
    path = prepare.prepare(name, manual, out, num_workers=0, allow_incomplete=True)
    splits = prepared.tfds.builder_from_directory(path).info.splits
    return {split: prepared.Prepared(path, split) for split in splits}


def jpeg(path, shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def all_values(values):
    """A picture that holds each value, and 0 or more of the first to fill it."""
    array = np.full((12, -(-len(values) // 12)), values[0])
    array.ravel()[: len(values)] = values
    return array


def check(source, name, raw, class_of):
    """Compares pixel by pixel with a table raw value -> class id."""
    examples = {example["name"]: example for example in source}
    label_map = examples[name]["label_map"]
    assert label_map.shape == raw.shape == examples[name]["image"].shape[:2]
    for position, value in np.ndenumerate(raw):
        assert label_map[position] == class_of[int(value)], (position, value)
