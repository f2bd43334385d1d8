"""ONNX files that share one file of weights."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import onnx
from onnx import helper

from mlseg_jax.distributed.sharding import for_any_platform
from mlseg_jax.export.onnx_graph import Graph, Value, used_nodes, value_info
from mlseg_jax.export.onnx_lowering import lower
from mlseg_jax.export.onnx_weights import Weights
from mlseg_jax.typing import Array


def write_onnx(
    path: pathlib.Path,
    function: Callable[..., dict[str, Array]],
    inputs: dict[str, jax.ShapeDtypeStruct],
    weights: Weights,
    *,
    opset: int,
    batch=None,
) -> onnx.ModelProto:
    """Writes a function of named arrays that returns named arrays.

    Args:
      path: of the file.
      function: takes the inputs by place.
      inputs: their shapes, in which ``batch`` may stand for a length.
      weights: takes large constants.
      opset: version of the operators.
      batch: the symbol of the batch (`artifacts.any_batch`), None for a fixed one.

    Raises:
      UserError: something of the function has no operator in ONNX.
    """
    with for_any_platform():
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs.values())
    graph = Graph(opset, batch)
    values = [Value(key, x.shape, np.dtype(x.dtype)) for key, x in inputs.items()]
    if batch is not None:
        first = next(v for v in values if v.shape and v.shape[0] is batch)
        graph.batch_size = graph.node("Shape", [first], (1,), np.int64, start=0, end=1)
    results = lower(graph, program, values)
    # In the order in which JAX flattens a dictionary.
    names = sorted(shapes)
    for name, value in zip(names, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.name_of(value)], [name]))
    nodes, used = used_nodes(graph.nodes, names)
    constants = {key: x for key, x in graph.constants.items() if key in used}
    tensors, unpacking = weights.tensors(constants)
    nodes = [*unpacking, *nodes]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            path.stem,
            [value_info(x.name, x.dtype, x.shape) for x in values],
            [value_info(key, shapes[key].dtype, shapes[key].shape) for key in names],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_ir_version(opset),
        producer_name="mlseg_jax",
    )
    onnx.save(model, path)
    return model


def _ir_version(opset: int) -> int:
    """The oldest format of files that has these operators, which most readers know."""
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
