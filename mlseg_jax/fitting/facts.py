"""What is there: the training pictures, looked at, and the machine."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
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


_GROUPS = {
    "": ("", "memory.max", "memory.current"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""By kind of a control group: its folder, and its files of what it may and does use."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Facts about the training pictures.

    Attributes:
      num_pictures: of the training split.
      class_names: by class id; C of them.
      sizes: [n 2] height and width of the n pictures looked at, in pixels.
      present: [n C] which classes each holds.
      pixels: [C] pixels of each class in all of them.
      octets: [n] of memory that each takes, with its labels.
      first: where the first of them stands in the split.
    """

    num_pictures: int
    class_names: tuple[str, ...]
    sizes: Int[np.ndarray, "n 2"]
    present: Bool[np.ndarray, "n C"]
    pixels: Int[np.ndarray, "C"]
    octets: Int[np.ndarray, "n"]
    first: int = 0

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


AMPERE = 8
"""Major compute capability of the first NVIDIA GPUs with bfloat16."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts about where the training runs.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: of its devices, as they call themselves.
      num_devices: of all processes.
      cores: that this process may use.
      free_bytes: of memory.
      free_disk: bytes where the run is kept.
      has_bfloat16: whether its devices multiply matrices of bfloat16 faster.
    """

    platform: str
    kind: str
    num_devices: int
    cores: int
    free_bytes: int
    free_disk: int
    has_bfloat16: bool = False

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        text = f"{cores}, {self.free_bytes / 2**30:.0f} GiB free"
        return text if self.is_cpu else f"{self.num_devices} x {self.kind}, {text}"


def look_at_data(config: ml_collections.ConfigDict, max_seconds: float) -> Data:
    """Reads training pictures, but for no longer than ``max_seconds``.

    Raises:
      UserError: none can be read, or no pixel of them has a class.
    """
    source = open_dataset(config.data, train=True)
    count = min(NUM_LOOKED_AT, len(source))
    # Spread over the split also where time ends early.
    order = np.random.default_rng(0).permutation(len(source))[:count].tolist()
    num_classes, end = source.info.num_classes, time.monotonic() + max_seconds
    sizes, rows, octets, pixels = [], [], [], np.zeros(num_classes, np.int64)
    threads = config.data.num_threads
    readings = survey(source, order, threads, with_hashes=False)
    with contextlib.closing(readings):
        for reading in readings:
            if reading.fault is None:
                sizes.append(reading.size)
                octets.append(reading.octets)
                row = np.zeros(num_classes, bool)
                row[reading.class_ids] = True
                rows.append(row)
                pixels[reading.class_ids] += reading.pixels
            if sizes and time.monotonic() > end:
                break
    if not sizes:
        raise UserError("No training picture can be read; run doctor to see why.")
    if not pixels.any():
        raise UserError(
            f"No pixel of the {len(sizes)} training pictures looked at has a class: "
            f"their masks are ignored as a whole; run doctor, and correct the masks or "
            f"the file that names their values."
        )
    names = tuple(source.info.class_names)
    first = getattr(source, "first", 0)
    looked_at = (np.array(sizes), np.array(rows), pixels, np.array(octets))
    return Data(len(source), names, *looked_at, first)


def look_at_machine(workdir: str) -> Machine:
    """``workdir``: of the run; it need not be there yet."""
    device = jax.devices()[0]
    folder = pathlib.Path(workdir).absolute()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(
        device.platform,
        device.device_kind,
        jax.device_count(),
        cores,
        free_memory(),
        shutil.disk_usage(there).free,
        multiplies_bfloat16(
            device.platform, str(getattr(device, "compute_capability", ""))
        ),
    )


def multiplies_bfloat16(platform: str, compute_capability: str = "") -> bool:
    """TPUs do, and NVIDIA's GPUs from Ampere on ("8.0"). Of others it is not known."""
    major = compute_capability.partition(".")[0]
    is_ampere = major.isdigit() and int(major) >= AMPERE
    return platform == "tpu" or (platform == "gpu" and is_ampere)


def free_memory(
    meminfo: str = "/proc/meminfo",
    cgroup: str = "/sys/fs/cgroup",
    own: str = "/proc/self/cgroup",
) -> int:
    """Bytes that this process may still take; half of all memory where the system does
    not say.

    Args:
      meminfo: what the system says.
      cgroup: where limits of containers and jobs stand, a folder for each group.
      own: the groups that this process is in.
    """
    try:
        lines = pathlib.Path(meminfo).read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        free = 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *_left_to_groups(pathlib.Path(cgroup), pathlib.Path(own))])


def _left_to_groups(root: pathlib.Path, own: pathlib.Path) -> list[int]:
    """Bytes left to the memory groups of this process, and to those around them, that
    have a limit.

    A line of ``own`` is "number:kinds:/group"; groups without kinds are of version 2
    (man 7 cgroups).
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    left = []
    for line in lines:
        _, kinds, group = line.split(":", 2)
        for folder, *names in (_GROUPS[x] for x in kinds.split(",") if x in _GROUPS):
            place = root / folder / group.strip("/")
            # Within a container its own may be hidden, and that around it the first.
            for each in (place, *place.parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit.
                    limit, used = (int((each / name).read_text()) for name in names)
                    left.append(max(0, limit - used))
    return left
