"""Memory and time from the queries of a region model to results at a picture's size.

    python benchmarks/regions_memory.py --height=4000 --width=5000 --queries=200 --k=100

What the network gives (class logits, mask embeddings, features at stride 4) is there
before; printed is what the process needs beside it at its peak, the result (80 MB for
a segment map of this size) included. Holding all masks would take 16 GB.
"""

import argparse
import gc
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from mlseg_jax.inference.instances import instance_segments  # noqa: E402
from mlseg_jax.inference.mask_tiles import Masks, mask_axes  # noqa: E402
from mlseg_jax.inference.panoptic import panoptic_segments  # noqa: E402
from mlseg_jax.inference.regions import (  # noqa: E402
    RegionWindow,
    SegmentedRegions,
)
from mlseg_jax.label_selection import Selection  # noqa: E402
from mlseg_jax.prediction.draw_segments import draw_segments  # noqa: E402

STRIDE, EMBED_DIM, NUM_CLASSES = 4, 32, 10_000


def queries_of_blobs(random, cells, num_queries: int, k: int):
    """Class logits, features and embeddings whose products are discs of all sizes."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in cells))
    features = np.zeros((*cells, EMBED_DIM), np.float32)
    for i, part in enumerate((x * x + y * y, x, y, np.ones_like(x))):
        features[..., i] = part.T
    centres = random.uniform(-1, 1, (num_queries, 2))
    radius = random.uniform(0.05, 0.4, num_queries)
    embeddings = np.zeros((num_queries, EMBED_DIM), np.float32)
    embeddings[:, 0] = -1
    embeddings[:, 1:3] = 2 * centres
    embeddings[:, 3] = radius**2 - np.square(centres).sum(1)
    logits = random.normal(0, 1, (num_queries, k + 1)).astype(np.float32)
    logits[np.arange(num_queries), random.integers(0, k, num_queries)] += 9.0
    return logits, features, embeddings * 200


def make_picture(size, num_queries: int, k: int, side: int) -> SegmentedRegions:
    """A picture as the network has seen it: whole, or with a shorter side of ``side``
    pixels.
    """
    scale = side / min(size) if side else 1.0
    resized = [round(length * scale) for length in size]
    padded = [-(-length // 32) * 32 for length in resized]
    cells = [length // STRIDE for length in padded]
    logits, features, embeddings = queries_of_blobs(
        np.random.default_rng(0), cells, num_queries, k
    )
    axes = [
        mask_axes(length, view, (0,), view, canvas, count)[0]
        for length, view, canvas, count in zip(
            size, resized, padded, cells, strict=True
        )
    ]
    masks = Masks(jnp.asarray(features)[None], jnp.asarray(embeddings))
    window = RegionWindow(logits, jax.block_until_ready(masks), *axes)
    selection = Selection(np.arange(k)[None], None, NUM_CLASSES)
    scores = np.zeros((1, NUM_CLASSES), np.float32)
    return SegmentedRegions(size, (window,), selection, scores)


def rss_bytes(key: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def measured(task: str, function) -> dict:
    """Seconds and the peak of memory beside what was there, of a first call."""
    gc.collect()
    # The peak so far is forgotten, where Linux lets a process do so.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = rss_bytes("VmRSS")
    seconds = measure.seconds_of(function)
    extra = (rss_bytes("VmHWM") - before) / 1e6
    return {"task": task, "extra MB": round(extra), "seconds": round(seconds, 1)}


def run(size, num_queries: int, k: int, side: int) -> list[dict]:
    """Each task, on a picture of ``size``."""
    picture = make_picture(size, num_queries, k, side)
    names = [str(i) for i in range(NUM_CLASSES)]
    things = np.arange(NUM_CLASSES) % 2 == 0
    found = []

    def find_panoptic():
        found.append(panoptic_segments(picture, names, things))

    def draw():
        for _ in draw_segments(image, found[0], names).bands():
            pass

    rows = [
        measured("panoptic", find_panoptic),
        measured("semantic", picture.label_maps),
        measured("instance", lambda: instance_segments(picture, names)),
    ]
    image = np.zeros((*size, 3), np.uint8)
    return [*rows, measured("overlay of panoptic", draw)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("height", 4000), ("width", 5000), ("queries", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument(
        "--side", type=int, default=800, help="shorter side for the network; 0: as is"
    )
    parser.add_argument("--json")
    flags = parser.parse_args()
    facts = measure.machine()
    measure.print_machine(facts)
    rows = run((flags.height, flags.width), flags.queries, flags.k, flags.side)
    measure.print_table(rows)
    measure.write_json(flags.json, {"machine": facts, "rows": rows} | vars(flags))


if __name__ == "__main__":
    main()
