"""An ONNX graph while it is being built.

A `Value` is what a variable of the traced program is in the graph. Two things keep
graphs small: what depends on constants alone is computed here and now, and arrays are
not repeated along axes for operators that repeat by themselves (NumPy's broadcasting),
so that a value may be smaller than the variable it stands for.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlseg_jax.errors import UserError

Dim = object
"""A number, or a multiple of the batch."""


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the graph.

    Attributes:
      name: in the graph; "" for constants that no operator has taken yet.
      shape: its real shape; 1 also where the variable it stands for is longer.
      dtype: of NumPy.
      constant: the array itself, where it is one.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype
    constant: np.ndarray | None = None


class Names:
    """Names that no two things of a file share, over a graph and those inside it."""

    def __init__(self):
        self._numbers = itertools.count()

    def new(self, hint: str) -> str:
        return f"{hint}_{next(self._numbers)}"


class Graph:
    """Nodes and constants; those inside a loop have a graph of their own, whose nodes
    may use all values outside.
    """

    def __init__(self, opset: int, batch: Dim = None, outside: "Graph | None" = None):
        self.opset = opset
        self.batch = batch
        self.names = Names() if outside is None else outside.names
        self.constants = {} if outside is None else outside.constants
        self.nodes: list[onnx.NodeProto] = []
        self.batch_size: Value | None = outside and outside.batch_size
        self._outside = outside
        self._transposed: dict[str, tuple[Value, tuple[int, ...]]] = {}

    def inside(self) -> "Graph":
        """A graph for the body of a loop."""
        if self.batch is not None:
            self.dims((self.batch, self.batch))  # outside, for all of them
        return Graph(self.opset, self.batch, self)

    # ------------------------------------------------------------------- values

    def constant(self, array, dtype=None) -> Value:
        array = np.asarray(array, dtype)
        return Value("", array.shape, array.dtype, array)

    def name_of(self, value: Value) -> str:
        """The name under which operators take a value; constants become a part of the
        file.
        """
        if value.constant is None:
            return value.name
        array = np.ascontiguousarray(value.constant).reshape(value.shape)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:24]
        name = f"{array.dtype}_{'x'.join(map(str, array.shape))}_{digest}"
        self.constants[name] = array
        return name

    def node(
        self, operator: str, inputs: Sequence[Value | None], shape, dtype=None, **extra
    ) -> Value:
        """Adds an operator with one result; its type is that of the first input unless
        said.
        """
        dtype = np.dtype(inputs[0].dtype if dtype is None else dtype)
        (value,) = self.nodes_of(operator, inputs, [(shape, dtype)], **extra)
        return value

    def nodes_of(self, operator, inputs, results, **extra) -> list[Value]:
        """Adds an operator with several results, each a shape and a type."""
        values = [
            Value(self.names.new(operator.lower()), tuple(shape), np.dtype(dtype))
            for shape, dtype in results
        ]
        names = ["" if x is None else self.name_of(x) for x in inputs]
        outputs = [value.name for value in values]
        self.nodes.append(helper.make_node(operator, names, outputs, **extra))
        return values

    # ------------------------------------------------------------------- shapes

    def factor(self, dim: Dim) -> int | None:
        """How many times the batch a length is; None where it is a number.

        Raises:
          UserError: it is neither.
        """
        if isinstance(dim, int):
            return None
        factor = dim // self.batch
        if not isinstance(factor, int):
            raise UserError(
                f"An array of the model has the length {dim}, which is no multiple of "
                f"the batch; export for a fixed one with --batch=1."
            )
        return factor

    def dims(self, shape: Sequence[Dim]) -> Value:
        """A shape as an array of the graph."""
        if all(isinstance(dim, int) for dim in shape):
            return self.constant(shape, np.int64)
        parts = []
        for dim in shape:
            factor = self.factor(dim)
            if factor is None:
                parts.append(self.constant([dim], np.int64))
            elif factor == 1:
                parts.append(self.batch_size)
            else:
                many = self.constant([factor], np.int64)
                parts.append(self.node("Mul", [self.batch_size, many], (1,)))
        return self.node("Concat", parts, (len(shape),), axis=0)

    def reshape(self, value: Value, shape: Sequence[Dim]) -> Value:
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.constant is not None and all(isinstance(n, int) for n in shape):
            return self.constant(value.constant.reshape(shape))
        if 0 in shape:
            raise UserError(
                "An array of the model is empty, which ONNX cannot reshape."
            )
        # At most one is not known, and that one ONNX finds out by itself.
        wanted = [n if isinstance(n, int) else -1 for n in shape]
        many = wanted.count(-1) > 1
        target = self.dims(shape) if many else self.constant(wanted, np.int64)
        return self.node("Reshape", [value, target], shape)

    def full(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The value at the whole shape of the variable that it stands for."""
        shape = tuple(shape)
        if value.shape == shape:
            return value
        if value.constant is not None and all(isinstance(n, int) for n in shape):
            return self.constant(np.broadcast_to(value.constant, shape))
        return self.node("Expand", [value, self.dims(shape)], shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Axes in another order; of two in a row the second may undo the first."""
        order = tuple(order)
        if value.name in self._transposed:
            value, first = self._transposed[value.name]
            order = tuple(first[axis] for axis in order)
        if order == tuple(range(len(order))):
            return value
        if value.constant is not None:
            return self.constant(value.constant.transpose(order))
        shape = [value.shape[axis] for axis in order]
        result = self.node("Transpose", [value], shape, perm=list(order))
        self._transposed[result.name] = (value, order)
        return result

    def cast(self, value: Value, dtype) -> Value:
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        if value.constant is not None:
            return self.constant(value.constant.astype(dtype))
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return self.node("Cast", [value], value.shape, dtype, to=kind)

    def slice(self, value: Value, starts, stops, steps=None) -> Value:
        """Of every axis the places from start to stop, with numbers known here."""
        steps = [1] * len(starts) if steps is None else steps
        cut = [
            axis
            for axis, (start, stop, step) in enumerate(
                zip(starts, stops, steps, strict=True)
            )
            if (start, step) != (0, 1) or stop != value.shape[axis]
        ]
        if not cut:
            return value
        if value.constant is not None:
            index = tuple(map(slice, starts, stops, steps))
            return self.constant(value.constant[index])
        shape = list(value.shape)
        for axis in cut:
            shape[axis] = -(-(stops[axis] - starts[axis]) // steps[axis])
        parts = ([of[a] for a in cut] for of in (starts, stops))
        arrays = [self.constant(x, np.int64) for x in (*parts, cut)]
        if any(steps[axis] != 1 for axis in cut):
            arrays.append(self.constant([steps[axis] for axis in cut], np.int64))
        return self.node("Slice", [value, *arrays], shape)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        if len(values) == 1:
            return values[0]
        if all(value.constant is not None for value in values):
            return self.constant(np.concatenate([v.constant for v in values], axis))
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.node("Concat", values, shape, axis=axis)


def value_info(name: str, dtype, shape: Sequence[Dim]) -> onnx.ValueInfoProto:
    """What a file says of an input or a result; the batch is called ``B``."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    dims = [n if isinstance(n, int) else "B" for n in shape]
    return helper.make_tensor_value_info(name, kind, dims)


def used_nodes(
    nodes: Sequence[onnx.NodeProto], results: Sequence[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that results depend on, in order, and all names that these use."""
    wanted, kept = set(results), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    inner = attribute.g
                    results = [result.name for result in inner.output]
                    wanted |= used_nodes(inner.node, results)[1]
    return kept[::-1], wanted


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)
