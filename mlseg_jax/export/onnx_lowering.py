"""From a traced program of JAX to an ONNX graph, one rule for each primitive.

Programs inside others (``jit``, functions with a gradient of their own, recomputed
blocks) are laid out in place, short loops unrolled; long ones become ``Scan``.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.extend import core
from onnx import helper

from mlseg_jax.errors import UserError
from mlseg_jax.export import onnx_arrays, onnx_elementwise, onnx_products
from mlseg_jax.export.onnx_graph import Graph, Value, value_info

SMALL_RULES: dict[str, Callable] = onnx_elementwise.RULES | onnx_arrays.SMALL_RULES
RULES: dict[str, Callable] = onnx_products.RULES | onnx_arrays.RULES

PROGRAMS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives that run one program on their inputs and do no more, and under which
parameter they keep it. Others that hold programs (``reduce``, ``while``) run them in
ways of their own.
"""

MAX_UNROLLED = 64
"""Rounds of a loop that are laid out one after the other, a program of which has up to
`MAX_UNROLLED_STEPS` steps in all.
"""
MAX_UNROLLED_STEPS = 20_000

MAX_COMPUTED = 2**16
"""Numbers that a constant computed here may have, unless it is no larger than what it
is made of.
"""


def lower(graph: Graph, program, inputs: Sequence[Value]) -> list[Value]:
    """Adds a closed program to the graph; its results, as large as their variables.

    Raises:
      UserError: a primitive has no rule; the sentence names it.
    """
    constants = [graph.constant(np.asarray(x)) for x in program.consts]
    values = _run(graph, program.jaxpr, constants, inputs)
    shapes = [var.aval.shape for var in program.jaxpr.outvars]
    return [graph.full(v, shape) for v, shape in zip(values, shapes, strict=True)]


def _run(graph: Graph, jaxpr, constants, inputs) -> list[Value]:
    """Results may be smaller than their variables."""
    known = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom) -> Value:
        if isinstance(atom, core.Literal):
            return graph.constant(atom.val, atom.aval.dtype)
        return known[atom]

    for eqn in jaxpr.eqns:
        results = _apply(graph, eqn, [read(atom) for atom in eqn.invars])
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    computed = _compute(graph, eqn, inputs)
    if computed is not None:
        return computed
    if name == "scan":
        inputs = _at_full_size(graph, eqn, inputs)
        return _scan(graph, eqn, inputs)
    if name in SMALL_RULES:
        results = SMALL_RULES[name](graph, eqn, *inputs)
    elif name in RULES:
        results = RULES[name](graph, eqn, *_at_full_size(graph, eqn, inputs))
    else:
        return _run_inside(graph, eqn, inputs)
    return results if isinstance(results, list) else [results]


def _at_full_size(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
    shapes = [atom.aval.shape for atom in eqn.invars]
    return [graph.full(x, shape) for x, shape in zip(inputs, shapes, strict=True)]


def _run_inside(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name not in PROGRAMS:
        raise UserError(
            f"This model cannot be exported to ONNX: it uses {name!r}, for which there "
            f"is no rule; --to=stablehlo exports it."
        )
    program = eqn.params[PROGRAMS[name]]
    if isinstance(program, core.ClosedJaxpr):
        constants = [graph.constant(np.asarray(x)) for x in program.consts]
        return _run(graph, program.jaxpr, constants, inputs)
    return _run(graph, program, [], inputs)


def _compute(graph: Graph, eqn, inputs: list[Value]) -> list[Value] | None:
    """What depends on constants alone, unless it would make the file larger.

    Programs inside are laid out first, and then computed one step after the other.
    """
    if eqn.primitive.name in PROGRAMS:
        return None
    shapes = [var.aval.shape for var in eqn.outvars]
    if not inputs or any(x.constant is None for x in inputs):
        return None
    if any(not isinstance(n, int) for shape in shapes for n in shape):
        return None
    sizes = map(onnx_arrays.size_of, shapes)
    most = max([MAX_COMPUTED, *(x.constant.size for x in inputs)])
    if max(sizes, default=0) > most:
        return None
    arrays = [
        np.broadcast_to(x.constant, atom.aval.shape)
        for x, atom in zip(inputs, eqn.invars, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        results = eqn.primitive.bind(*arrays, **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    return [graph.constant(np.asarray(x)) for x in results]


# ------------------------------------------------------------------------------ loops


def _scan(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
    params = eqn.params
    body, length = params["jaxpr"], params["length"]
    first = params["num_consts"]
    split = first + params["num_carry"]
    shared, carry, rows = inputs[:first], inputs[first:split], inputs[split:]
    if length <= MAX_UNROLLED and length * _steps(body.jaxpr) <= MAX_UNROLLED_STEPS:
        return _unroll(graph, eqn, shared, carry, rows)
    if params["reverse"]:
        raise UserError("A long loop that runs backwards has no rule for ONNX here.")
    return _loop(graph, eqn, shared, carry, rows)


def _steps(jaxpr) -> int:
    count = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name != "scan" and name not in PROGRAMS:
            count += 1
            continue
        inner = eqn.params[PROGRAMS.get(name, "jaxpr")]
        inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
        count += eqn.params.get("length", 1) * _steps(inner)
    return count


def _unroll(graph: Graph, eqn, shared, carry, rows) -> list[Value]:
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    kept = []
    order = range(length)
    for i in reversed(order) if eqn.params["reverse"] else order:
        own = []
        for x in rows:
            starts, stops = [0] * len(x.shape), list(x.shape)
            starts[0], stops[0] = i, i + 1
            own.append(graph.reshape(graph.slice(x, starts, stops), x.shape[1:]))
        results = lower(graph, body, [*shared, *carry, *own])
        carry, out = results[: len(carry)], results[len(carry) :]
        kept.append([graph.reshape(x, (1, *x.shape)) for x in out])
    if eqn.params["reverse"]:
        kept.reverse()
    return [*carry, *(graph.concat(parts, 0) for parts in zip(*kept, strict=True))]


def _loop(graph: Graph, eqn, shared, carry, rows) -> list[Value]:
    """ONNX's Scan, whose body sees the values outside."""
    body = eqn.params["jaxpr"]
    inside = graph.inside()
    own = [
        Value(graph.names.new("row"), var.aval.shape, np.dtype(var.aval.dtype))
        for var in body.jaxpr.invars[len(shared) :]
    ]
    results = lower(inside, body, [*shared, *own])
    if not rows:  # which only count the rounds
        rows = [graph.constant(np.zeros(eqn.params["length"], np.int32))]
        own.append(Value(graph.names.new("row"), (), rows[0].dtype))
    # A result is made by a node of the body, and is the only one of its name.
    free = {name for node in inside.nodes for name in node.output}
    for i, x in enumerate(results):
        if x.constant is not None or x.name not in free:
            results[i] = inside.node("Identity", [x], x.shape)
        free.discard(x.name)
    inner = helper.make_graph(
        inside.nodes,
        graph.names.new("body"),
        [value_info(x.name, x.dtype, x.shape) for x in own],
        [value_info(x.name, x.dtype, x.shape) for x in results],
    )
    outputs = [(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
    return graph.nodes_of(
        "Scan", [*carry, *rows], outputs, body=inner, num_scan_inputs=len(rows)
    )
