"""The weights of ONNX files: one file beside them, perhaps with fewer bits."""

import pathlib

import numpy as np
import onnx
from onnx import helper

from mlseg_jax.export.onnx_graph import tensor

FLOAT16_MAX = float(np.finfo(np.float16).max)

INLINE = 1024
"""Bytes from which constants are in the file of weights."""


class Weights:
    """One file of arrays, each of which is stored once.

    With ``quantize`` large arrays are kept as ``float16``, or those of two axes and
    more as ``int8`` with a scale for each place along one, unless float16 cannot hold
    their numbers; every graph makes float32 of them, in which it computes.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        quantize: str | None = None,
        name: str = "weights.bin",
    ):
        self.name = name
        self.quantize = quantize
        self._file = (folder / name).open("wb")
        self._places: dict[str, tuple[int, int]] = {}

    def place(self, name: str, array: np.ndarray) -> onnx.TensorProto:
        """A tensor that points into the file."""
        if name not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % 64))
            start = self._file.tell()
            self._file.write(np.ascontiguousarray(array).tobytes())
            self._places[name] = start, array.nbytes
        result = onnx.TensorProto(name=name, dims=array.shape)
        result.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        result.data_location = onnx.TensorProto.EXTERNAL
        start, length = self._places[name]
        for key, value in (
            ("location", self.name),
            ("offset", start),
            ("length", length),
        ):
            result.external_data.add(key=key, value=str(value))
        return result

    def close(self) -> None:
        self._file.close()

    def tensors(
        self, constants: dict[str, np.ndarray]
    ) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
        """The constants of a graph, and the nodes that unpack some of them."""
        tensors, nodes = [], []
        for name, array in constants.items():
            if array.nbytes < INLINE:
                tensors.append(tensor(name, array))
                continue
            packed, node = self._packed(name, array)
            tensors += [self.place(*pair) for pair in packed.items()]
            nodes += [] if node is None else [node]
        return tensors, nodes

    def _packed(self, name: str, array: np.ndarray):
        """What is stored of an array, and the node that makes the array of it."""
        if array.dtype != np.float32 or self.quantize is None:
            return {name: array}, None
        if np.max(np.abs(array)) > FLOAT16_MAX:
            # Would become infinite, or as a scale leave nothing of the others.
            return {name: array}, None
        if self.quantize == "float16":
            short = f"{name}_float16"
            node = helper.make_node("Cast", [short], [name], to=onnx.TensorProto.FLOAT)
            return {short: array.astype(np.float16)}, node
        if array.ndim < 2:
            return {name: array}, None
        # Channels that come out: the first axis of convolutions, else the last.
        axis = 0 if array.ndim == 4 else array.ndim - 1
        others = tuple(a for a in range(array.ndim) if a != axis)
        scale = np.max(np.abs(array), axis=others, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        small = np.rint(array / scale).astype(np.int8)
        names = [f"{name}_int8", f"{name}_scale"]
        node = helper.make_node("DequantizeLinear", names, [name], axis=axis)
        return dict(zip(names, (small, scale.reshape(-1)), strict=True)), node
