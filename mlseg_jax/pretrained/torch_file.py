"""Reads ``.pth`` files without torch, and without running anything that is in them.

Such a file is a zip archive: a pickle that says which tensors there are, and one entry
of raw numbers for each storage. A pickle is a program; ours may only call what is
listed here, and what it calls makes arrays and dicts.
"""

import collections
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np

from mlseg_jax.errors import UserError

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""What torch calls a storage, and the numbers in it."""

SETTINGS = (
    ("argparse", "Namespace"),
    ("addict.addict", "Dict"),
    ("mmcv.utils.config", "ConfigDict"),
    ("mmengine.config.config", "ConfigDict"),
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
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


def read_torch_file(path: str) -> object:
    """What ``torch.save`` saved, with NumPy arrays in place of tensors.

    Raises:
      UserError: the file is of torch before 1.6 (and no torch is installed), damaged,
        or wants to call something that weights do not need.
    """
    if not zipfile.is_zipfile(path):
        return _read_old(path)
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            root = name.removesuffix("data.pkl")
            if _text(archive, f"{root}byteorder", "little") != "little":
                raise pickle.UnpicklingError("its numbers are big-endian")
            return _Unpickler(archive, root).load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is no weight file that can be read safely ({error}); save its "
            f"tensors alone, with torch.save(model.state_dict(), FILE)."
        ) from error


def _text(archive: zipfile.ZipFile, name: str, default: str) -> str:
    return archive.read(name).decode() if name in archive.namelist() else default


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive = archive
        self._root = root
        self._storages = {}

    def find_class(self, module: str, name: str):
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) in FUNCTIONS:
            return _Callable(FUNCTIONS[module, name])
        if (module, name) in SETTINGS:
            # A new class each time: nothing that a pickle does to it outlives it.
            return type(name, (Ignored,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")

    def persistent_load(self, pid) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, str):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("its numbers are compressed")
            numbers = np.frombuffer(self._archive.read(entry), DTYPES[storage])
            if numbers.size < count:
                raise pickle.UnpicklingError(f"storage {key} is cut off")
            self._storages[key] = numbers
        return self._storages[key]


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    """A view of the storage, whose last element is checked to lie inside it."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise pickle.UnpicklingError("a tensor has no storage")
    whole = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in whole):
        raise pickle.UnpicklingError("a tensor has an impossible shape")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides)
    view.flags.writeable = False
    return view


def _rebuild_parameter(tensor, *_):
    return tensor


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): lambda *size: tuple(*size),
    ("builtins", "set"): lambda *items: frozenset(*items),
    ("_codecs", "encode"): lambda *_: b"",
}


def _read_old(path: str) -> object:
    """A file of torch before 1.6, whose format only torch itself knows."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is no zip archive, as torch.save writes since 1.6; with torch, "
            f"torch.save(torch.load(OLD, weights_only=True), NEW) makes it one."
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no weight file torch reads: {reason}.") from error
    return _as_numpy(loaded)


def _as_numpy(value):
    if isinstance(value, dict):
        return {key: _as_numpy(item) for key, item in value.items()}
    if type(value).__module__.startswith("torch"):
        is_tensor = callable(getattr(value, "detach", None))
        return value.detach().float().numpy() if is_tensor else Ignored()
    return value
