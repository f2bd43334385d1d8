"""Which device holds what: one mesh, one rule.

The batch is split over both axes of the mesh; the state (parameters, optimiser moments,
averages) over ``fsdp`` alone, by shape. Model files know nothing of this.
"""

import math

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlseg_jax.errors import UserError

AXES = ("data", "fsdp")

MIN_SHARDED_SIZE = 2**16
"""Elements below which an array is copied to every device instead of being split."""


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh over all devices."""
    sizes = axis_sizes(config, jax.device_count())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(config: ml_collections.ConfigDict, count: int) -> tuple[int, int]:
    """Devices along each axis of ``count``; one may be -1, "what is left"."""
    sizes = [config.mesh.data, config.mesh.fsdp]
    if -1 in sizes and 0 not in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise UserError(
            f"mesh.data={config.mesh.data} and mesh.fsdp={config.mesh.fsdp} do not "
            f"make up the {count} devices there are; set one to -1."
        )
    return tuple(sizes)


def state_sharding(mesh: Mesh, array) -> NamedSharding:
    """Splits the largest axis that ``fsdp`` divides; small arrays are copied."""
    shards = mesh.shape["fsdp"]
    shape = tuple(array.shape)
    divisible = [axis for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or not divisible or math.prod(shape) < MIN_SHARDED_SIZE:
        return NamedSharding(mesh, P())
    largest = max(divisible, key=lambda axis: shape[axis])
    spec = [None] * len(shape)
    spec[largest] = "fsdp"
    return NamedSharding(mesh, P(*spec))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's part of a batch to the devices, as part of the global arrays."""
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """A batch must split evenly over devices and over the parts of an accumulation."""
    devices = mesh.size
    if accumulate < 1:
        raise UserError(
            f"train.accumulate={accumulate} is no number of parts; set it to 1."
        )
    if batch_size < 1 or batch_size % (devices * accumulate):
        raise UserError(
            f"train.batch_size={batch_size} does not split over {devices} devices "
            f"times train.accumulate={accumulate}; make it a multiple of "
            f"{devices * accumulate}."
        )
