"""Reads pickles without running anything that is in them (masks.md 8.4).

A pickle is a program; ours may only call what is listed here and what `torch_file`
adds for tensors, and what it calls makes arrays, dicts and what stands for things that
are no weights. Arrays of numpy are not made by numpy's own functions, which trust what
they are told.
"""

import collections
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

SETTINGS = (
    ("argparse", "Namespace"),
    ("addict.addict", "Dict"),
    ("mmcv.utils.config", "ConfigDict"),
    ("mmengine.config.config", "ConfigDict"),
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("torch", "device"),
    ("torch", "float32"),
    ("torch", "float16"),
    ("torch", "bfloat16"),
)
"""Harmless companions of weights (options, curves); they are read as `Ignored`."""


class Ignored(dict):
    """Stands for something that is no weight; whatever is put into it is lost."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass

    def extend(self, items):
        pass

    append = extend


class _Callable:
    """A function that a pickle can call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args):
        return self._function(*args)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError("a function was to be changed")


class SafeUnpickler(pickle.Unpickler):
    """Calls ``functions`` alone; ``load_storage`` finds what lies outside the pickle.

    Names in ``constants`` stand for themselves. Text of Python 2 is read as latin-1,
    which keeps its bytes.
    """

    def __init__(
        self,
        file,
        functions: Mapping[tuple[str, str], Callable],
        constants: Mapping[tuple[str, str], str] = MappingProxyType({}),
        load_storage: Callable[[tuple], np.ndarray] | None = None,
    ):
        super().__init__(file, encoding="latin1")
        self._file = file
        self._functions = functions
        self._constants = constants
        self._load_storage = load_storage

    def load(self):
        _check_memo(self._file)
        return super().load()

    def find_class(self, module: str, name: str):
        key = module, name
        if key in self._constants:
            return self._constants[key]
        if key in self._functions:
            return _Callable(self._functions[key])
        if key in SETTINGS:
            # A new class each time: nothing that a pickle does to it outlives it.
            return type(name, (Ignored,), {})
        if key == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")

    def persistent_load(self, pid) -> np.ndarray:
        if self._load_storage is None or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return self._load_storage(pid)


_CODES = {code.code.encode("latin1"): code for code in pickletools.opcodes}


def _check_memo(file) -> None:
    """Python makes room for as many remembered things as a pickle's largest number of
    one says. No honest one is above the number of bytes before it.

    Raises:
      UnpicklingError: there is such a number.
    """
    start = file.tell()
    while True:
        place = file.tell()
        code = _CODES.get(file.read(1))
        if code is None or code.name == "STOP":  # unpickling says what is wrong
            break
        if code.name == "STRING":  # of Python 2, whose bytes need not be ASCII
            file.readline()
        elif code.arg is not None:
            argument = code.arg.reader(file)
            if code.name.endswith("PUT") and argument > place:
                raise pickle.UnpicklingError("it wants more memory than it has bytes")
    file.seek(start)


# ------------------------------------------------------------------- arrays of numpy

_NUMBERS = re.compile(r"[<>=|]?([iu][1248]|f[248]|b1|\?)")


class _DType:
    """Says what numbers an array has; ``None`` where it has none, but objects."""

    __slots__ = ("dtype",)

    def __init__(self, code="", *_):
        is_known = isinstance(code, str) and _NUMBERS.fullmatch(code)
        self.dtype = np.dtype(code) if is_known else None

    def __setstate__(self, state):
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("an array has numbers of an unknown order")
        if self.dtype is not None and order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Becomes an array when its state is known."""

    __slots__ = ("array",)

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        *_, shape, dtype, is_fortran, numbers = state
        self.array = _make_array(numbers, dtype, shape, "F" if is_fortran else "C")


def _make_array(numbers, dtype, shape, order) -> np.ndarray | None:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array does not say what its numbers are")
    if dtype.dtype is None:
        return None
    if isinstance(numbers, str):
        numbers = numbers.encode("latin1")
    shape = (shape,) if type(shape) is int else shape
    if not isinstance(numbers, bytes | bytearray) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array has no numbers")
    if any(type(n) is not int or n < 0 for n in shape) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array has an impossible shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(numbers):
        raise pickle.UnpicklingError("an array has not as many numbers as it says")
    array = np.frombuffer(bytes(numbers), dtype.dtype).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_buffer(numbers, dtype, shape, order, *_) -> _Array:
    made = _Array()
    made.array = _make_array(numbers, dtype, shape, order)
    return made


def _from_bytes(shape=(), code="", numbers=b"", *_) -> _Array:
    made = _Array()
    made.array = _make_array(numbers, _DType(code), shape, "C")
    return made


def _encode(text, codec="", *_) -> bytes:
    """How pickles of the older protocols write bytes."""
    is_bytes = isinstance(text, str) and codec in ("latin1", "latin-1")
    return text.encode("latin1") if is_bytes else b""


def plain(value):
    """Arrays in place of what stands for them, in dicts within dicts."""
    if isinstance(value, _Array):
        return Ignored() if value.array is None else value.array
    if isinstance(value, Mapping) and not isinstance(value, Ignored):
        return {key: plain(item) for key, item in value.items()}
    return value


FUNCTIONS = {
    ("numpy", "dtype"): _DType,
    # Mostly handed on to the next one; our own files call it.
    ("numpy", "ndarray"): _from_bytes,
    ("builtins", "set"): lambda *items: frozenset(*items),
    ("_codecs", "encode"): _encode,
    # Called without anything: no bytes at all.
    ("__builtin__", "bytes"): lambda *_: b"",
    ("builtins", "bytes"): lambda *_: b"",
}
# Numpy has called its own folder by two names.
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda *_: _Array(),
        (f"{_core}.multiarray", "scalar"): lambda *_: Ignored(),
        (f"{_core}.numeric", "_frombuffer"): _from_buffer,
    }
