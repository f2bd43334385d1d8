"""Operators that work on every number for itself, in ONNX."""

import functools

import jax
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.export.onnx_graph import Dim, Graph, Value

UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}

BINARY = {
    "add": "Add",
    "add_any": "Add",
    "div": "Div",
    "pow": "Pow",
    "sub": "Sub",
}

EXTREMES = {"max": "Max", "min": "Min", "mul": "Mul"}
"""Of truth values they are their or, and, and."""

COMPARISONS = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}

LOGIC = {"and": "And", "not": "Not", "or": "Or", "xor": "Xor"}
"""Of truth values; of whole numbers they have other names, and came later."""

BITWISE_SINCE = 18
"""The version of ONNX's operators."""

SAME = ("copy", "copy_p", "optimization_barrier", "pin", "stop_gradient")
"""What changes no number."""


def joint_shape(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """What NumPy's broadcasting makes of shapes of equal rank, or of no axes at all."""
    shapes = [shape for shape in shapes if shape]
    if not shapes:
        return ()
    result = []
    for lengths in zip(*shapes, strict=True):
        longer = [n for n in lengths if not (isinstance(n, int) and n == 1)]
        result.append(longer[0] if longer else 1)
    return tuple(result)


def unary(operator: str, graph: Graph, eqn, x: Value) -> Value:
    return graph.node(operator, [x], x.shape)


def binary(operator: str, graph: Graph, eqn, x: Value, y: Value) -> Value:
    return graph.node(operator, [x, y], joint_shape(x.shape, y.shape))


def extreme(operator: str, graph: Graph, eqn, x: Value, y: Value) -> Value:
    if x.dtype == np.bool_:
        operator = {"Max": "Or", "Min": "And", "Mul": "And"}[operator]
    return binary(operator, graph, eqn, x, y)


def logic(operator: str, graph: Graph, eqn, *values: Value) -> Value:
    """Bit by bit for whole numbers."""
    if values[0].dtype != np.bool_:
        if graph.opset < BITWISE_SINCE:
            raise UserError(
                f"The model computes {eqn.primitive.name!r} of whole numbers, which "
                f"ONNX has since version {BITWISE_SINCE} of its operators; export with "
                f"--opset={BITWISE_SINCE}."
            )
        operator = f"Bitwise{operator}"
    return graph.node(operator, values, joint_shape(*(x.shape for x in values)))


def round_to_whole(graph: Graph, eqn, x: Value) -> Value:
    """ONNX knows only the rounding of halves to even numbers."""
    if eqn.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.node("Round", [x], x.shape)
    size = graph.node("Abs", [x], x.shape)
    below = graph.node("Floor", [size], x.shape)
    rest = graph.node("Sub", [size, below], x.shape)
    half, one = graph.constant(0.5, x.dtype), graph.constant(1, x.dtype)
    is_up = graph.node("GreaterOrEqual", [rest, half], x.shape, np.bool_)
    above = graph.node("Add", [below, one], x.shape)
    whole = graph.node("Where", [is_up, above, below], x.shape, x.dtype)
    sign = graph.node("Sign", [x], x.shape)
    return graph.node("Mul", [sign, whole], x.shape)


def compare(operator: str, graph: Graph, eqn, x: Value, y: Value) -> Value:
    if x.dtype == np.bool_:
        x, y = graph.cast(x, np.int32), graph.cast(y, np.int32)
    return graph.node(operator, [x, y], joint_shape(x.shape, y.shape), np.bool_)


def not_equal(graph: Graph, eqn, x: Value, y: Value) -> Value:
    equal = compare("Equal", graph, eqn, x, y)
    return graph.node("Not", [equal], equal.shape)


def same(graph: Graph, eqn, *values: Value):
    return values[0] if len(values) == 1 else list(values)


def square(graph: Graph, eqn, x: Value) -> Value:
    return graph.node("Mul", [x, x], x.shape)


def integer_power(graph: Graph, eqn, x: Value) -> Value:
    power = eqn.params["y"]
    if power == 2:
        return square(graph, eqn, x)
    return graph.node("Pow", [x, graph.constant(power, x.dtype)], x.shape)


def inverse_root(graph: Graph, eqn, x: Value) -> Value:
    root = graph.node("Sqrt", [x], x.shape)
    return graph.node("Reciprocal", [root], x.shape)


def log1p(graph: Graph, eqn, x: Value) -> Value:
    more = graph.node("Add", [x, graph.constant(1, x.dtype)], x.shape)
    return graph.node("Log", [more], x.shape)


def expm1(graph: Graph, eqn, x: Value) -> Value:
    power = graph.node("Exp", [x], x.shape)
    return graph.node("Sub", [power, graph.constant(1, x.dtype)], x.shape)


def remainder(graph: Graph, eqn, x: Value, y: Value) -> Value:
    shape = joint_shape(x.shape, y.shape)
    return graph.node("Mod", [x, y], shape, fmod=1)


def convert(graph: Graph, eqn, x: Value) -> Value:
    return graph.cast(x, eqn.outvars[0].aval.dtype)


def select(graph: Graph, eqn, which: Value, *cases: Value) -> Value:
    """Of two cases the second where ``which`` is true."""
    no, yes = cases
    shape = joint_shape(*(x.shape for x in _of_rank(graph, which, no, yes)))
    if no.dtype == np.bool_:  # which ONNX Runtime does not choose between
        other = graph.node("Not", [which], which.shape)
        kept = [graph.node("And", pair, shape) for pair in ((which, yes), (other, no))]
        return graph.node("Or", kept, shape)
    return graph.node("Where", [which, yes, no], shape, no.dtype)


def clamp(graph: Graph, eqn, low: Value, x: Value, high: Value) -> Value:
    low, x, high = _of_rank(graph, low, x, high)
    above = graph.node("Max", [x, low], joint_shape(x.shape, low.shape))
    return graph.node("Min", [above, high], joint_shape(above.shape, high.shape))


def _of_rank(graph: Graph, *values: Value) -> list[Value]:
    """Scalars with as many axes as the others have."""
    rank = max(len(value.shape) for value in values)
    return [x if x.shape else graph.reshape(x, (1,) * rank) for x in values]


RULES = {
    **{name: functools.partial(unary, to) for name, to in UNARY.items()},
    **{name: functools.partial(binary, to) for name, to in BINARY.items()},
    **{name: functools.partial(compare, to) for name, to in COMPARISONS.items()},
    **{name: functools.partial(extreme, to) for name, to in EXTREMES.items()},
    **{name: functools.partial(logic, to) for name, to in LOGIC.items()},
    **{name: same for name in SAME},
    "clamp": clamp,
    "convert_element_type": convert,
    "expm1": expm1,
    "integer_pow": integer_power,
    "log1p": log1p,
    "ne": not_equal,
    "rem": remainder,
    "round": round_to_whole,
    "rsqrt": inverse_root,
    "select_n": select,
    "square": square,
}
"""By name of the primitive. Values may be smaller than their variables."""
