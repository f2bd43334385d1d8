"""Which device holds what: one mesh, one rule.

The batch is split over both axes of the mesh; the state (parameters, optimiser moments,
averages) over ``fsdp`` alone, by shape. Model files name no axis: they only say which
arrays are examples (`pin_examples`, `on_each_device`) and where weights are needed
whole (`gather_weights`). Outside of `within`, those three do nothing.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlseg_jax.errors import UserError

AXES = ("data", "fsdp")

MIN_SHARDED_SIZE = 2**16
"""Elements below which an array is copied to every device instead of being split."""


def make_mesh(config: ml_collections.ConfigDict, devices: list | None = None) -> Mesh:
    """The mesh over all devices, or over those given; ``data`` spans TPU slices.

    Raises:
      UserError: the configuration's axes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = axis_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise UserError(
            f"mesh.data={data} does not split over {slices} slices; set it to {slices} "
            f"and mesh.fsdp to -1."
        )
    if slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp),
            (slices, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        array = mesh_utils.create_device_mesh(
            (data, fsdp), devices, allow_split_physical_axes=True
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def own_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """Of this process's devices, for work that each process does for itself."""
    if jax.process_count() == 1:
        return make_mesh(config)
    _, fsdp = axis_sizes(config, jax.device_count())
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.mesh.fsdp = math.gcd(fsdp, jax.local_device_count())
        own.mesh.data = -1
    return make_mesh(own, jax.local_devices())


def to_own_mesh(arrays: dict[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Copies of arrays of all processes on the mesh of this one (`own_mesh`).

    All processes must call it at the same time; one array after the other is whole.
    """
    if jax.process_count() == 1:
        return arrays
    return {
        path: jax.device_put(
            _whole(array.sharding.mesh)(array).addressable_data(0),
            state_sharding(mesh, array),
        )
        for path, array in arrays.items()
    }


@functools.cache
def _whole(mesh: Mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


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
    return NamedSharding(mesh, _state_spec(mesh.shape["fsdp"], array.shape))


def _state_spec(shards: int, shape: tuple[int, ...]) -> P:
    divisible = [axis for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or not divisible or math.prod(shape) < MIN_SHARDED_SIZE:
        return P()
    largest = max(divisible, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == largest else None for axis in range(len(shape))))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def within(mesh: Mesh) -> contextlib.AbstractContextManager:
    """For tracing: what is called inside runs on this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def on_mesh(mesh: Mesh | None, function: Callable) -> Callable:
    """The function, traced `within` the mesh where there is one."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with contextlib.nullcontext() if mesh is None else within(mesh):
            return function(*args, **kwargs)

    return traced


_EXPORTING = contextvars.ContextVar("exporting", default=False)


@contextlib.contextmanager
def for_any_platform() -> Iterator[None]:
    """For tracing: the program is to run anywhere, also on what is no JAX at all."""
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


def by_platform(
    *, cpu: Callable, default: Callable, anywhere: Callable | None = None
) -> Callable:
    """One function on CPU, another elsewhere; in programs `for_any_platform` that one
    too, unless there is one for ``anywhere``.
    """
    if _EXPORTING.get():
        return default if anywhere is None else anywhere
    return functools.partial(jax.lax.platform_dependent, cpu=cpu, default=default)


def platform() -> str:
    """``cpu``, ``gpu``, ``tpu`` or ``any``: what is being traced runs there."""
    if _EXPORTING.get():
        return "any"
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def pin_examples(x: jax.Array) -> jax.Array:
    """Keeps activations ``[B ...]`` on the devices that hold their examples.

    Called where one block of a model hands over to the next. Without it XLA moves
    activations instead of weights, and the more of them the more chips there are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _examples_spec(mesh, x.shape[0]))


def _examples_spec(mesh, count: int) -> P:
    """Batches that do not split evenly are on all devices alike."""
    return P(AXES) if _splits(mesh, count) else P()


def _splits(mesh, count: int) -> bool:
    return not mesh.empty and count % mesh.size == 0


def split_examples(x: jax.Array) -> jax.Array:
    """``[B ... D]`` as ``[parts n D]``: the rows that each device holds, side by side.

    One part where the examples are not split (`pin_examples`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = _splits(mesh, x.shape[0])
    x = x.reshape(mesh.size if split else 1, -1, x.shape[-1])
    return jax.lax.with_sharding_constraint(x, P(AXES)) if split else x


def copy_to_each_device(x: jax.Array, count: int) -> jax.Array:
    """``x`` as ``[copies ...]``, one beside each device's part of ``count`` examples.

    One copy where the examples are not split (`pin_examples`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = _splits(mesh, count)
    copies = jnp.broadcast_to(x[None], (mesh.size if split else 1, *x.shape))
    return jax.lax.with_sharding_constraint(copies, P(AXES)) if split else copies


def on_every_device(x: jax.Array) -> jax.Array:
    """What devices hold parts of, whole on all of them: they talk here, and once."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def gather_weights(weights, dtype=None):
    """Makes weights whole on every device, at the place where they are needed.

    Called on one block's weights within its `rematerialised` function, so that the
    whole ones live as long as the block runs. Kernels are cast to ``dtype``, in which
    the layers use them, before they travel. Gradients go straight back to where the
    state has its shards.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return weights

    def gather(path, weight):
        if dtype is not None and "kernel" in jax.tree_util.keystr(path):
            weight = weight.astype(dtype)
        return _gather(weight)

    return jax.tree_util.tree_map_with_path(gather, weights)


@jax.custom_vjp
def _gather(weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, P())


def _scatter(_, grad: jax.Array) -> tuple[jax.Array]:
    shards = jax.sharding.get_abstract_mesh().shape["fsdp"]
    spec = _state_spec(shards, grad.shape)
    return (jax.lax.with_sharding_constraint(grad, spec),)


_gather.defvjp(lambda weight: (_gather(weight), None), _scatter)


def on_each_device(function: Callable) -> Callable:
    """The function of arrays ``[B ...]``, each device seeing its own examples only.

    For loops over examples, which XLA would run on all devices in turn, and for sizes
    that are chosen by what one device holds. No result may mix examples. ``shared``
    are arrays without examples, which come last; their gradients are summed once.
    """

    def call(*arrays, shared=()):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return function(*arrays, *shared)
        spec = _examples_spec(mesh, jax.tree.leaves(arrays)[0].shape[0])
        specs = (spec,) * len(arrays) + (P(),) * len(shared)
        mapped = jax.shard_map(
            function, in_specs=specs, out_specs=spec, check_vma=False
        )
        return mapped(*arrays, *shared)

    return call


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that this process's devices hold."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return sorted({row for (rows,) in held.values() for row in range(batch_size)[rows]})


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch to the devices, as part of the global arrays."""
    sharding = batch_sharding(mesh)
    own = len(next(iter(batch.values())))
    size = own * mesh.size // len(mesh.local_devices)
    place = {row: i for i, row in enumerate(own_rows(mesh, size))}

    def put(value: np.ndarray) -> jax.Array:
        def part(index) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return value[place[start] : place[start] + stop - start]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, part)

    return {key: put(value) for key, value in batch.items()}


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """A batch must split evenly over devices and over the parts of an accumulation."""
    devices = mesh.size
    if batch_size % (devices * accumulate):
        raise UserError(
            f"train.batch_size={batch_size} does not split over {devices} devices "
            f"times train.accumulate={accumulate}; make it a multiple of "
            f"{devices * accumulate}."
        )
