"""Eight fake devices, strict shapes and strict broadcasting for every test."""

import atexit
import gc
import importlib.metadata
import logging
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled no other compiles again, in this process, in the other
    # workers (they start with this environment) and in those that tests start.
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="mlseg-compiled-"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
# Without the optimisations of the backend tests compile in half the time, with the
# older way of writing fused loops in half of that, and in a tenth less where LLVM gets
# each program in one piece. jaxlib 0.12 does not know the second, and a flag that XLA
# does not know ends the process.
flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", flags)
# Programs without the Python lines of their operations compile 7 % faster.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

from jaxtyping import install_import_hook  # noqa: E402

# Every annotated signature of the package is checked while the tests run. Must stand
# before the first import of the package.
install_import_hook(["mlseg_jax"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def heard():
    """What is logged is heard, also after a test that ran the program here (absl turns
    the root logger down with its own).
    """
    logging.root.setLevel(logging.WARNING)
    package = logging.getLogger("mlseg_jax")
    package.handlers.clear()
    package.setLevel(logging.NOTSET)
    package.propagate = True


@pytest.fixture(scope="module")
def quick_compiles():
    """For tests of tiny models, whose time is all compilation: XLA does little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


LONGEST = ("test_processes.py", "test_train.py", "test_step.py")
"""Files that take long for their few tests; not `test_kills.py`, whose processes would
hold the cores that those of `test_processes.py` wait for each other on.
"""


def pytest_collection_modifyitems(items):
    """Of the files that two workers share, the longest come first, so that at the end
    none is left to one worker while the other has nothing to do.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """What is there by now stays, and tracing makes few cycles: garbage that is looked
    for as often as Python does by itself costs a quarter of the time to trace.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
