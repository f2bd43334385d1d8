"""Operators that move numbers and compute none, in ONNX."""

import math

import jax
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.export.onnx_graph import Graph, Value


def reshape(graph: Graph, eqn, x: Value) -> Value:
    return graph.reshape(x, eqn.outvars[0].aval.shape)


def broadcast(graph: Graph, eqn, x: Value, *_) -> Value:
    """New axes of length 1; whoever needs more asks for it."""
    axes = eqn.params["broadcast_dimensions"]
    shape = [1] * len(eqn.outvars[0].aval.shape)
    for axis, length in zip(axes, x.shape, strict=True):
        shape[axis] = length
    return graph.reshape(x, shape)


def transpose(graph: Graph, eqn, x: Value) -> Value:
    return graph.transpose(x, eqn.params["permutation"])


def iota(graph: Graph, eqn, *_) -> Value:
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    shape, length = [1] * len(aval.shape), aval.shape[axis]
    shape[axis] = length
    if isinstance(length, int):
        return graph.constant(np.arange(length).reshape(shape), aval.dtype)
    ends = graph.constant(0, np.int64), graph.reshape(graph.dims((length,)), ())
    numbers = graph.node("Range", [*ends, graph.constant(1, np.int64)], (length,))
    return graph.reshape(graph.cast(numbers, aval.dtype), shape)


def cut(graph: Graph, eqn, x: Value) -> Value:
    params = eqn.params
    return graph.slice(
        x, params["start_indices"], params["limit_indices"], params["strides"]
    )


def reverse(graph: Graph, eqn, x: Value) -> Value:
    axes = graph.constant(eqn.params["dimensions"], np.int64)
    count = len(eqn.params["dimensions"])
    starts = graph.constant([-1] * count, np.int64)
    stops = graph.constant([np.iinfo(np.int64).min] * count, np.int64)
    return graph.node("Slice", [x, starts, stops, axes, starts], x.shape)


def split(graph: Graph, eqn, x: Value) -> list[Value]:
    axis = eqn.params["axis"]
    results = [(var.aval.shape, x.dtype) for var in eqn.outvars]
    sizes = graph.constant(eqn.params["sizes"], np.int64)
    return graph.nodes_of("Split", [x, sizes], results, axis=axis)


def concatenate(graph: Graph, eqn, *parts: Value) -> Value:
    return graph.concat(parts, eqn.params["dimension"])


def stack(graph: Graph, eqn, *parts: Value) -> Value:
    axis, shape = eqn.params["axis"], list(eqn.outvars[0].aval.shape)
    shape[axis] = 1
    return graph.concat([graph.reshape(part, shape) for part in parts], axis)


def batch_of(graph: Graph, eqn) -> Value:
    """A length as a number."""
    length = graph.dims((eqn.params["dim"],))
    return graph.reshape(graph.cast(length, eqn.outvars[0].aval.dtype), ())


def pad(graph: Graph, eqn, x: Value, fill: Value) -> Value:
    config, shape = eqn.params["padding_config"], eqn.outvars[0].aval.shape
    if any(inner for _, _, inner in config):
        raise UserError("Padding between elements has no operator in ONNX.")
    starts = [max(0, -low) for low, _, _ in config]
    stops = [n + min(0, high) for n, (_, high, _) in zip(x.shape, config, strict=True)]
    x = graph.slice(x, starts, stops)
    pads = [max(0, low) for low, _, _ in config] + [max(0, hi) for _, hi, _ in config]
    if not any(pads):
        return x
    kind = x.dtype
    if kind == np.bool_:  # not in all versions of the operator
        x, fill = graph.cast(x, np.int32), graph.cast(fill, np.int32)
    pads = graph.constant(pads, np.int64)
    return graph.cast(graph.node("Pad", [x, pads, fill], shape), kind)


def dynamic_slice(graph: Graph, eqn, x: Value, *starts: Value) -> Value:
    """A start is moved until the part lies inside, as JAX does it."""
    sizes = eqn.params["slice_sizes"]
    moving = []
    for axis, (n, size, start) in enumerate(zip(x.shape, sizes, starts, strict=True)):
        if start.constant is None and n != size:
            if not isinstance(n, int):
                raise UserError(
                    "A slice of the batch whose place is computed has no rule for "
                    "ONNX; export for a fixed batch with --batch=1."
                )
            moving.append(axis)
    for axis in moving:
        places = graph.reshape(graph.cast(starts[axis], np.int64), (1,))
        last = graph.constant([x.shape[axis] - sizes[axis]], np.int64)
        places = graph.node("Min", [places, last], (1,))
        zero = graph.constant([0], np.int64)
        places = graph.node("Max", [places, zero], (1,))
        offsets = graph.constant(np.arange(sizes[axis]), np.int64)
        places = graph.node("Add", [places, offsets], (sizes[axis],))
        shape = [sizes[axis] if i == axis else n for i, n in enumerate(x.shape)]
        x = graph.node("Gather", [x, places], shape, axis=axis)
    known = [
        None if start.constant is None else int(start.constant) for start in starts
    ]
    first = _clamped(x.shape, sizes, known)
    stops = [start + size for start, size in zip(first, sizes, strict=True)]
    return graph.slice(x, first, stops)


def _clamped(shape, sizes, starts) -> list[int]:
    """Starts such that parts of these sizes lie inside; those of whole axes are 0.

    Raises:
      UserError: whether it does depends on the batch.
    """
    result = []
    for n, size, start in zip(shape, sizes, starts, strict=True):
        if n == size or start <= 0:
            result.append(0)
        elif isinstance(n, int):
            result.append(min(start, n - size))
        else:
            raise UserError(
                "A slice of the batch that does not start at its first example has no "
                "rule for ONNX; export for a fixed batch with --batch=1."
            )
    return result


def dynamic_update(graph: Graph, eqn, x: Value, part: Value, *starts: Value) -> Value:
    """Replaces a part along one axis, at a place that is known here."""
    if any(start.constant is None for start in starts):
        raise UserError("Replacing a part whose place is computed is not known.")
    known = [int(start.constant) for start in starts]
    first = _clamped(x.shape, part.shape, known)
    for axis, (length, size) in enumerate(zip(x.shape, part.shape, strict=True)):
        if length == size:
            continue
        stop = first[axis] + size
        zeros, ends = [0] * len(x.shape), list(x.shape)
        before, after = list(ends), list(zeros)
        before[axis], after[axis] = first[axis], stop
        pieces = [part]
        if first[axis] > 0:
            pieces.insert(0, graph.slice(x, zeros, before))
        if stop < length:
            pieces.append(graph.slice(x, after, ends))
        rest = [a for a in range(len(x.shape)) if a != axis]
        if any(x.shape[a] != part.shape[a] for a in rest):
            raise UserError("Replacing a part along two axes is not known.")
        return graph.concat(pieces, axis)
    return part


def gather(graph: Graph, eqn, x: Value, indices: Value) -> Value:
    """Picks along some axes, for each example of batched ones its own."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batching = tuple(numbers.operand_batching_dims)
    picked = tuple(numbers.start_index_map)
    if len(indices.shape) == 1 and indices.constant is not None:
        return _known_part(
            graph, eqn, x, dict(zip(picked, indices.constant.tolist(), strict=True))
        )
    rest = [a for a in range(len(x.shape)) if a not in (*batching, *picked)]
    ones = [sizes[axis] == 1 for axis in (*batching, *picked)]
    if not all(ones) or any(sizes[a] != x.shape[a] for a in rest):
        raise UserError("Gathering parts of rows has no operator in ONNX.")
    if eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        most = np.array([x.shape[axis] - 1 for axis in picked], indices.dtype)
        indices = graph.node("Min", [indices, graph.constant(most)], indices.shape)
        zero = graph.constant(np.zeros(len(picked), indices.dtype))
        indices = graph.node("Max", [indices, zero], indices.shape)
    # Batched axes first, then those picked along, then whole rows.
    x = graph.transpose(x, (*batching, *picked, *rest))
    own = tuple(numbers.start_indices_batching_dims)
    others = [a for a in range(len(indices.shape) - 1) if a not in own]
    indices = graph.transpose(indices, (*own, *others, len(indices.shape) - 1))
    places, rows = indices.shape[:-1], [x.shape[a] for a in range(len(x.shape))]
    rows = rows[len(batching) + len(picked) :]
    if len(picked) == 1 and not batching:
        flat = graph.reshape(indices, places)
        result = graph.node("Gather", [x, flat], (*places, *rows), axis=0)
    else:
        wide = graph.cast(indices, np.int64)
        count = len(batching)
        result = graph.node("GatherND", [x, wide], (*places, *rows), batch_dims=count)
    return _in_order(graph, eqn, result, (*own, *others), picked, rest)


def _known_part(graph: Graph, eqn, x: Value, first: dict[int, int]) -> Value:
    """One slice, whose place is known here."""
    sizes = eqn.params["slice_sizes"]
    starts = [int(first.get(axis, 0)) for axis in range(len(sizes))]
    inside = _clamped(x.shape, sizes, starts)
    if eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        starts = inside
    elif starts != inside:
        raise UserError("Gathering beyond the end of an array has no rule for ONNX.")
    stops = [start + size for start, size in zip(starts, sizes, strict=True)]
    return graph.reshape(graph.slice(x, starts, stops), eqn.outvars[0].aval.shape)


def _in_order(graph: Graph, eqn, result: Value, places, picked, rest) -> Value:
    """From [places, rows] to the order of axes that the program has."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    single = [axis for axis in picked if axis not in gone]
    # Axes that are picked along and stay have length 1.
    result = graph.reshape(result, (*result.shape, *[1] * len(single)))
    kept = sorted([*rest, *single])
    offsets = dict(zip(kept, numbers.offset_dims, strict=True))
    free = [a for a in range(len(shape)) if a not in numbers.offset_dims]
    came_from = [free[axis] for axis in places]
    came_from += [offsets[axis] for axis in (*rest, *single)]
    return graph.transpose(result, np.argsort(came_from).tolist())


def squeeze(graph: Graph, eqn, x: Value) -> Value:
    return graph.reshape(x, eqn.outvars[0].aval.shape)


def tile(graph: Graph, eqn, x: Value) -> Value:
    counts = graph.dims(eqn.params["reps"])
    return graph.node("Tile", [x, counts], eqn.outvars[0].aval.shape)


RULES = {
    "concatenate": concatenate,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update,
    "expand_dims": reshape,
    "gather": gather,
    "pad": pad,
    "reshape": reshape,
    "rev": reverse,
    "slice": cut,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
}
"""By name of the primitive; values are as large as their variables."""

SMALL_RULES = {
    "broadcast_in_dim": broadcast,
    "dim_as_value": batch_of,
    "iota": iota,
    "transpose": transpose,
}
"""The same, where values may be smaller."""


def size_of(shape) -> int:
    """How many numbers; a batch counts once."""
    return math.prod(n if isinstance(n, int) else 1 for n in shape)
