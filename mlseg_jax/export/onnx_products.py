"""Products, convolutions and reductions in ONNX."""

import functools
import math

import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.export.onnx_graph import Graph, Value


def dot_general(graph: Graph, eqn, x: Value, y: Value) -> Value:
    """A matrix product; the result has batched axes, then free ones of x, then of y."""
    (sum_x, sum_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    free_x, free_y = (
        [a for a in range(len(v.shape)) if a not in (*sums, *batch)]
        for v, sums, batch in ((x, sum_x, batch_x), (y, sum_y, batch_y))
    )
    if not batch_x and len(sum_x) == 1 and len(free_x) <= 1 < len(free_y):
        # A matrix times a stack of them: rows of the stack times its transpose.
        rows = graph.transpose(y, (*free_y, *sum_y))
        columns = graph.transpose(x, (*sum_x, *free_x))
        product = _matmul(graph, rows, columns)
        last = len(free_y)
        return graph.transpose(
            product, (*range(last, len(product.shape)), *range(last))
        )
    if not batch_x and len(sum_x) == 1 and len(free_y) == 1:
        return _matmul(
            graph,
            graph.transpose(x, (*free_x, *sum_x)),
            graph.transpose(y, (*sum_y, *free_y)),
        )
    batch = [x.shape[a] for a in batch_x]
    length = math.prod(x.shape[a] for a in sum_x)
    rows, columns = (
        [v.shape[a] for a in free] for v, free in ((x, free_x), (y, free_y))
    )
    left = graph.transpose(x, (*batch_x, *free_x, *sum_x))
    right = graph.transpose(y, (*batch_y, *sum_y, *free_y))
    left = graph.reshape(left, (*batch, _product(rows), length))
    right = graph.reshape(right, (*batch, length, _product(columns)))
    return graph.reshape(_matmul(graph, left, right), (*batch, *rows, *columns))


def _product(lengths):
    return functools.reduce(lambda a, b: a * b, lengths, 1)


def _matmul(graph: Graph, left: Value, right: Value) -> Value:
    if len(right.shape) == 1:
        return graph.node("MatMul", [left, right], left.shape[:-1])
    return graph.node("MatMul", [left, right], (*left.shape[:-1], right.shape[-1]))


def conv(graph: Graph, eqn, x: Value, kernel: Value) -> Value:
    params = eqn.params
    numbers = params["dimension_numbers"]
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UserError("Convolutions that enlarge have no rule for ONNX here.")
    out_shape = eqn.outvars[0].aval.shape
    x = _without_negative_pads(
        graph, graph.transpose(x, numbers.lhs_spec), params["padding"]
    )
    result = graph.node(
        "Conv",
        [x, graph.transpose(kernel, numbers.rhs_spec)],
        [out_shape[axis] for axis in numbers.out_spec],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=_pads(params["padding"]),
        group=params["feature_group_count"],
    )
    return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


def _pads(padding) -> list[int]:
    lows, highs = zip(*padding, strict=True)
    return [max(0, n) for n in (*lows, *highs)]


def _without_negative_pads(graph: Graph, x: Value, padding) -> Value:
    """Of [B D, spatial axes] cuts what negative padding takes away."""
    starts, stops = [0] * len(x.shape), list(x.shape)
    for axis, (low, high) in enumerate(padding, 2):
        starts[axis] = max(0, -low)
        if high < 0:
            stops[axis] = x.shape[axis] + high
    return graph.slice(x, starts, stops)


def pool(operator: str, graph: Graph, eqn, x: Value) -> Value:
    """Windows over the middle axes of [B h w D]."""
    params = eqn.params
    window, strides = params["window_dimensions"], params["window_strides"]
    dilated = any(n != 1 for n in params["base_dilation"])
    dilated |= any(n != 1 for n in params["window_dilation"])
    if dilated or len(window) != 4 or (window[0], window[3]) != (1, 1):
        raise UserError("Pooling along other axes than rows and columns is not known.")
    shape, padding = eqn.outvars[0].aval.shape, params["padding"][1:3]
    extra = {"count_include_pad": 1} if operator == "AveragePool" else {}
    result = graph.node(
        operator,
        [_without_negative_pads(graph, graph.transpose(x, (0, 3, 1, 2)), padding)],
        [shape[axis] for axis in (0, 3, 1, 2)],
        kernel_shape=list(window[1:3]),
        strides=list(strides[1:3]),
        pads=_pads(padding),
        **extra,
    )
    if operator == "AveragePool":
        count = graph.constant(math.prod(window), x.dtype)
        result = graph.node("Mul", [result, count], result.shape)
    return graph.transpose(result, (0, 2, 3, 1))


def reduce(operator: str, graph: Graph, eqn, x: Value) -> Value:
    axes = eqn.params["axes"]
    shape = [n for axis, n in enumerate(x.shape) if axis not in axes]
    if not axes:
        return x
    kind = x.dtype
    if kind == np.bool_:
        x = graph.cast(x, np.int32)
    # Only sums have always had their axes as an input.
    if operator == "ReduceSum" or graph.opset >= 18:
        inputs = [x, graph.constant(axes, np.int64)]
        result = graph.node(operator, inputs, shape, keepdims=0)
    else:
        result = graph.node(operator, [x], shape, keepdims=0, axes=list(axes))
    return graph.cast(result, kind)


def arg_best(operator: str, graph: Graph, eqn, x: Value) -> Value:
    (axis,) = eqn.params["axes"]
    shape = [n for i, n in enumerate(x.shape) if i != axis]
    best = graph.node(operator, [x], shape, np.int64, axis=axis, keepdims=0)
    return graph.cast(best, eqn.outvars[0].aval.dtype)


def top_k(graph: Graph, eqn, x: Value) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    count = graph.constant([eqn.params["k"]], np.int64)
    results = [(shape, x.dtype), (shape, np.int64)]
    best, places = graph.nodes_of("TopK", [x, count], results, axis=eqn.params["axis"])
    return [best, graph.cast(places, eqn.outvars[1].aval.dtype)]


def cumulative_sum(graph: Graph, eqn, x: Value) -> Value:
    axis = graph.constant(eqn.params["axis"], np.int64)
    return graph.node("CumSum", [x, axis], x.shape, reverse=int(eqn.params["reverse"]))


RULES = {
    "argmax": functools.partial(arg_best, "ArgMax"),
    "argmin": functools.partial(arg_best, "ArgMin"),
    "conv_general_dilated": conv,
    "cumsum": cumulative_sum,
    "dot_general": dot_general,
    "reduce_and": functools.partial(reduce, "ReduceMin"),
    "reduce_max": functools.partial(reduce, "ReduceMax"),
    "reduce_min": functools.partial(reduce, "ReduceMin"),
    "reduce_or": functools.partial(reduce, "ReduceMax"),
    "reduce_prod": functools.partial(reduce, "ReduceProd"),
    "reduce_sum": functools.partial(reduce, "ReduceSum"),
    "reduce_window_max": functools.partial(pool, "MaxPool"),
    "reduce_window_sum": functools.partial(pool, "AveragePool"),
    "top_k": top_k,
}
"""By name of the primitive; values are as large as their variables."""
