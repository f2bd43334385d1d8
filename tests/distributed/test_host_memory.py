"""The C library keeps what was freed."""

import os
import platform
import subprocess
import sys

import pytest

from mlseg_jax.distributed import host_memory

COUNT_FAULTS = """
import ctypes, resource
from mlseg_jax.distributed.host_memory import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 256 * 2**20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has it")
@pytest.mark.parametrize("platforms, kept", [("cpu", True), ("cuda,cpu", False)])
def test_a_freed_block_is_not_mapped_again(platforms, kept):
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env=os.environ | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 1000) == kept


def test_accelerators_are_guessed(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = []
    monkeypatch.setattr(
        host_memory.glob, "glob", lambda pattern: found if "nvidia" in pattern else []
    )
    assert host_memory._runs_on_cpu()
    found.append("/dev/nvidia0")
    assert not host_memory._runs_on_cpu()
