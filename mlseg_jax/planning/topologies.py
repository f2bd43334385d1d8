"""Machines that a program can be compiled for without having one.

Names: ``v5e-256`` is 256 **chips** of TPU v5e (Google's own names count cores for v4
and v5p: its ``v5p-128`` is ``v5p-64`` here), ``v5p:4x4x4`` is by shape, ``v5e-256x2``
are two such slices. JAX makes two devices of a chip of ``tpu7x`` (Ironwood): what is
said of one chip is of one of these. ``h100x8`` is 8 GPUs, ``h100x16`` two hosts of 8;
``cpu8`` is 8 devices of this computer's processor.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from mlseg_jax.errors import UserError, pip_install
from mlseg_jax.models.flops import peak_flops
from mlseg_jax.planning.chatter import quiet

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One chip, as its maker describes it.

    Attributes:
      platform: ``tpu``, ``cuda`` or ``cpu``.
      kind: a row of ``flops.PEAK_FLOPS``.
      memory: bytes of its memory.
      bandwidth: bytes a second to and from that memory.
      link: bytes a second that it sends over all its links within a slice or host.
      network: bytes a second that it sends to other slices or hosts.
      torus: axes of the network of a TPU slice; 0 for GPUs.
      per_host: GPUs in a host.
      halves: devices that JAX makes of a chip; what is said above is of one.
    """

    platform: str
    kind: str
    memory: int = 0
    bandwidth: float = 0.0
    link: float = 0.0
    network: float = 0.0
    torus: int = 0
    per_host: int = 0
    halves: int = 1


ACCELERATORS = {
    # Memory, links and network as docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}
    # gave them in 2026. Links: one way (v5e 200 GB/s, v5p 600, v6e 400: half of what is
    # said there for both), of which nine tenths are assumed to be reached; v4, which
    # has no figure there, 50 GB/s one way for each of its six links (Zu et al.,
    # "Resiliency at Scale", NSDI 2024). Network: v5e 6.4 and v6e 25.6 Tb/s for 256
    # chips, v5p 50 Gb/s a chip; that of v4 is an estimate (as v5p).
    "v4": Accelerator("tpu", "TPU v4", 32 * GIB, 1.2e12, 2.7e11, 6.25e9, torus=3),
    "v5e": Accelerator("tpu", "TPU v5e", 16 * GIB, 8.19e11, 1.8e11, 3.1e9, torus=2),
    "v5p": Accelerator("tpu", "TPU v5p", 95 * GIB, 2.765e12, 5.4e11, 6.25e9, torus=3),
    "v6e": Accelerator("tpu", "TPU v6e", 32 * GIB, 1.638e12, 3.6e11, 1.25e10, torus=2),
    # Half of 192 GiB, 7,380 GB/s, 1,200 GB/s both ways and 100 Gb/s.
    "tpu7x": Accelerator(
        "tpu", "TPU7x", 96 * GIB, 3.69e12, 2.7e11, 6.25e9, torus=3, halves=2
    ),
    # SXM cards as in NVIDIA's data sheets; NVLink one way (half of 600, 900 GB/s). The
    # network is that of DGX hosts, one adapter of 200 or 400 Gb/s for each card.
    "a100": Accelerator(
        "cuda", "NVIDIA A100", 80 * GIB, 2.039e12, 3.0e11, 2.5e10, per_host=8
    ),
    "h100": Accelerator(
        "cuda", "NVIDIA H100", 80 * GIB, 3.35e12, 4.5e11, 5.0e10, per_host=8
    ),
    "h200": Accelerator(
        "cuda", "NVIDIA H200", 141 * 10**9, 4.8e12, 4.5e11, 5.0e10, per_host=8
    ),
    # Nothing is known about the processor, so there is no estimate of its time.
    "cpu": Accelerator("cpu", "cpu"),
}

USABLE = {"tpu": 63 / 64, "cuda": 0.9, "cpu": 1.0}
"""Share of the memory that a program can have. The TPU compiler refuses what is larger
(15.75 GiB on v5e); on GPUs the driver, NCCL and fragmentation take about a tenth."""

SHAPES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""Shapes of slices by the axes of the torus; the product is the number of chips."""

_PACKAGES = {
    "tpu": (("libtpu",), "tpu"),
    "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "aot-gpu"),
}
"""What may hold a platform's compiler, and the extra of this package that installs it.
"""

# What the compiler of XLA wants to know of a GPU.
_GPU = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
    "threads_per_core_limit: 2048 fpus_per_core: 128 block_dim_limit_x: 2147483647 "
    "block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536 "
)
_GPUS = {
    # cores, clock in GHz, shared memory in KiB (a core, a block), L2 in MiB, capability
    "a100": (108, 1.41, 164, 163, 40, 8),
    "h100": (132, 1.98, 228, 227, 50, 9),
    "h200": (132, 1.98, 228, 227, 50, 9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind, and how they are connected.

    Attributes:
      name: as the user wrote it.
      accelerator: key of `ACCELERATORS`.
      shape: chips along each axis of the torus of a slice; GPUs: hosts, GPUs per host.
      slices: TPU slices, connected by the network of the data centre.
    """

    name: str
    accelerator: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Accelerator:
        return ACCELERATORS[self.accelerator]

    @property
    def num_chips(self) -> int:
        """Devices of JAX: chips, or their halves."""
        return self.slices * math.prod(self.shape) * self.chip.halves

    @property
    def peak_flops(self) -> float | None:
        return peak_flops(self.chip.kind)

    @property
    def usable_memory(self) -> int | None:
        """Bytes of a chip that a program can have; ``None`` where not known."""
        return int(self.chip.memory * USABLE[self.chip.platform]) or None


def parse_topology(name: str) -> Topology:
    """Raises `UserError` for what is not known or cannot be built."""
    match = re.fullmatch(
        r"(?P<tpu>v\d[a-z]*|tpu\d[a-z]*)(-(?P<chips>\d+)(x(?P<slices>\d+))?|:(?P<shape>\d+(x\d+)*))"
        r"|(?P<gpu>[a-z]+\d+)x(?P<gpus>\d+)|(?P<cpu>cpu)(?P<devices>\d+)",
        name,
    )
    found = match and (match["tpu"] or match["cpu"] or match["gpu"])
    if found not in ACCELERATORS:
        raise UserError(
            f"There is no topology {name!r}; write v5e-256 (chips), v5p:4x4x4 (shape), "
            f"h100x8 or cpu8, with one of {', '.join(ACCELERATORS)}."
        )
    if match["cpu"]:
        return Topology(name, "cpu", (_positive(name, match["devices"]),))
    if match["gpu"]:
        return Topology(name, found, _gpu_hosts(name, found, match["gpus"]))
    axes = ACCELERATORS[found].torus
    if match["shape"]:
        shape = tuple(map(int, match["shape"].split("x")))
        if len(shape) != axes or min(shape) < 1:
            raise UserError(f"A {found} slice has {axes} axes, not {match['shape']!r}.")
        return Topology(name, found, shape)
    known = {math.prod(map(int, s.split("x"))): s for s in SHAPES[axes]}
    chips = int(match["chips"])
    if chips not in known:
        raise UserError(
            f"No slice of {chips} chips is known for {found}; choose one of "
            f"{', '.join(map(str, known))}, or give its shape as {found}:{known[4]}."
        )
    shape = tuple(map(int, known[chips].split("x")))
    return Topology(name, found, shape, _positive(name, match["slices"] or "1"))


def _positive(name: str, text: str) -> int:
    if int(text) < 1:
        raise UserError(f"The topology {name!r} has no device; ask for 1 or more.")
    return int(text)


def _gpu_hosts(name: str, kind: str, text: str) -> tuple[int, int]:
    count, per_host = _positive(name, text), ACCELERATORS[kind].per_host
    if count > per_host and count % per_host:
        raise UserError(
            f"{count} GPUs are no whole number of hosts of {per_host}; ask for "
            f"{kind}x{-(-count // per_host) * per_host}."
        )
    return max(1, count // per_host), min(count, per_host)


def prepare(topology: Topology) -> None:
    """Settings of the process, before JAX has looked for devices."""
    jax.config.update("jax_platforms", "cpu")
    # Programs for other machines are written to the cache, but never found there.
    jax.config.update("jax_enable_compilation_cache", False)
    if topology.accelerator == "cpu":
        flag = f"--xla_force_host_platform_device_count={topology.num_chips}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    with quiet():  # the GPU's plugin looks for drivers and says that there are none
        jax.devices()


def devices(topology: Topology) -> list:
    """Descriptions of the devices, which programs can be compiled for."""
    if topology.accelerator == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.num_chips:
            raise UserError(
                f"This process has {len(found)} CPU devices, not {topology.num_chips}; "
                f"start it with XLA_FLAGS=--xla_force_host_platform_device_count="
                f"{topology.num_chips}."
            )
        return found[: topology.num_chips]
    packages, extra = _PACKAGES[topology.chip.platform]
    if not any(map(importlib.util.find_spec, packages)):
        raise UserError(
            f"Planning for {topology.name} needs its compiler, which is not installed: "
            f"{pip_install(f'mlseg-jax[{extra}]')}."
        )
    describe = _describe_tpu if topology.chip.platform == "tpu" else _describe_gpu
    try:
        with quiet():
            return list(describe(topology).devices)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"The compiler knows no {topology.name}; give another shape ({reason})."
        ) from error


def _describe_tpu(topology: Topology):
    quiet_settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_LOG_DIR": "disabled",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Several plans at once, or one beside a training.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for key, value in quiet_settings.items():
        os.environ.setdefault(key, value)
    options = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.accelerator == "v4":
        # Otherwise each of its two cores is a device.
        options["chip_config_name"] = "megacore"
    shape = "x".join(map(str, topology.shape))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{topology.accelerator}:{shape}", **options
    )


def _describe_gpu(topology: Topology):
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    chip = topology.chip
    cores, clock, core_kib, block_kib, cache, major = _GPUS[topology.accelerator]
    target = (
        f"gpu_device_info {{ {_GPU} core_count: {cores} clock_rate_ghz: {clock} "
        f"shared_memory_per_core: {core_kib * 1024} "
        f"shared_memory_per_block_optin: {block_kib * 1024} "
        f"memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {cache * 2**20} "
        f"device_memory_size: {chip.memory} "
        f"cuda_compute_capability {{ major: {major} minor: 0 }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 7 }} '
        f"runtime_version {{ major: 12 minor: 9 patch: 0 }} "
        f'device_description_str: "{chip.kind}"'
    )
    hosts, per_host = topology.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=topology.accelerator,
        target_config=target,
        topology=f"1x{hosts}x{per_host}",
    )
