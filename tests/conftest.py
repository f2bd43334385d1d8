"""Eight fake devices, strict shapes and strict broadcasting for every test."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Without the optimisations of the backend, tests compile in half the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)

from jaxtyping import install_import_hook  # noqa: E402

# Every annotated signature of the package is checked while the tests run. Must stand
# before the first import of the package.
install_import_hook(["mlseg_jax"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def quick_compiles():
    """For tests of tiny models, whose time is all compilation: XLA does little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
