"""What is there: the training pictures, looked at, and the machine."""

import dataclasses
import os
import time

import jax
import ml_collections
import numpy as np

from input_pipeline.datasets.open import open_dataset
from input_pipeline.survey import survey
from mlseg_jax.errors import UserError
from mlseg_jax.typing import Bool, Int

NUM_LOOKED_AT = 256
"""Training pictures that are read, spread over the split, if time allows."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Facts about the training pictures.

    Attributes:
      num_pictures: of the training split.
      class_names: by class id; C of them.
      sizes: [n 2] height and width of the n pictures looked at, in pixels.
      present: [n C] which classes each holds.
      pixels: [C] pixels of each class in all of them.
    """

    num_pictures: int
    class_names: tuple[str, ...]
    sizes: Int[np.ndarray, "n 2"]
    present: Bool[np.ndarray, "n C"]
    pixels: Int[np.ndarray, "C"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that half of the pictures do not exceed."""
        height, width = np.median(self.sizes, axis=0).astype(int).tolist()
        return height, width

    @property
    def is_uniform(self) -> bool:
        """Whether all pictures have one size."""
        return bool((self.sizes == self.sizes[0]).all())

    @property
    def num_labels(self) -> Int[np.ndarray, "n"]:
        """How many classes each picture holds."""
        return self.present.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts about where the training runs.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: of its devices, as they call themselves.
      num_devices: of all processes.
      cores: that this process may use.
      free_bytes: of memory.
    """

    platform: str
    kind: str
    num_devices: int
    cores: int
    free_bytes: int

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    def __str__(self) -> str:
        memory = f"{self.free_bytes / 2**30:.0f} GiB free"
        if self.is_cpu:
            return f"{self.cores} cores, {memory}"
        return f"{self.num_devices} x {self.kind}, {self.cores} cores, {memory}"


def look_at_data(config: ml_collections.ConfigDict, max_seconds: float) -> Data:
    """Reads training pictures, but for no longer than ``max_seconds``.

    Raises:
      UserError: none can be read.
    """
    source = open_dataset(config.data, train=True)
    count = min(NUM_LOOKED_AT, len(source))
    # Spread over the split also where time ends early.
    order = np.random.default_rng(0).permutation(len(source))[:count].tolist()
    num_classes, end = source.info.num_classes, time.monotonic() + max_seconds
    sizes, rows, pixels = [], [], np.zeros(num_classes, np.int64)
    threads = config.data.num_threads
    for reading in survey(source, order, threads, with_hashes=False):
        if reading.fault is None:
            sizes.append(reading.size)
            row = np.zeros(num_classes, bool)
            row[reading.class_ids] = True
            rows.append(row)
            pixels[reading.class_ids] += reading.pixels
        if sizes and time.monotonic() > end:
            break
    if not sizes:
        raise UserError("No training picture can be read; run doctor to see why.")
    names = tuple(source.info.class_names)
    return Data(len(source), names, np.array(sizes), np.array(rows), pixels)


def look_at_machine() -> Machine:
    device = jax.devices()[0]
    page, free = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_AVPHYS_PAGES")
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(
        device.platform, device.device_kind, jax.device_count(), cores, page * free
    )
