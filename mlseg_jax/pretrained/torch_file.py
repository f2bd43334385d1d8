"""Reads ``.pth`` and ``.pkl`` files without torch, and without running anything that is
in them (`pickles`).

A file of torch since 1.6 is a zip archive: a pickle that says which tensors there are,
and one entry of raw numbers for each storage. An older one is a row of pickles with the
numbers after the last. The zoos of Detectron2 have plain pickles, of numpy's arrays or
of tensors; each storage of those is an older file of torch inside the pickle.
"""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import pickles
from mlseg_jax.pretrained.pickles import SafeUnpickler

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

_STORAGES = {("torch", name): name for name in DTYPES}
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch before 1.6 begin: a number, pickled."""


def read_torch_file(path: str) -> object:
    """What was saved, with NumPy arrays in place of tensors.

    Raises:
      UserError: the file is damaged, or wants to call something that weights do not
        need.
    """
    try:
        with open(path, "rb") as file:
            return pickles.plain(_read(file, FUNCTIONS))
    except Exception as error:
        raise UserError(
            f"{path} is no weight file that can be read safely ({error}); save its "
            f"tensors alone, with torch.save(model.state_dict(), FILE)."
        ) from error


def _read(file: io.BufferedIOBase, functions: Mapping) -> object:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, functions)
    file.seek(0)
    if file.read(len(_OLD)) == _OLD:
        return _read_old(file, functions)
    file.seek(0)
    return SafeUnpickler(file, functions).load()


def _read_archive(archive: zipfile.ZipFile, functions: Mapping) -> object:
    (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    root, storages = name.removesuffix("data.pkl"), {}
    if _text(archive, f"{root}byteorder", "little") != "little":
        raise pickle.UnpicklingError("its numbers are big-endian")

    def load_storage(pid) -> np.ndarray:
        name, key, count = _storage(pid)
        if key not in storages:
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("its numbers are compressed")
            numbers = np.frombuffer(archive.read(entry), DTYPES[name])
            if numbers.size < count:
                raise pickle.UnpicklingError(f"storage {key} is cut off")
            storages[key] = numbers
        return storages[key]

    data = io.BytesIO(archive.read(name))
    return SafeUnpickler(data, functions, _STORAGES, load_storage).load()


def _text(archive: zipfile.ZipFile, name: str, default: str) -> str:
    return archive.read(name).decode() if name in archive.namelist() else default


def _storage(pid: tuple) -> tuple[str, str, int]:
    """Name of the numbers, key and length."""
    _, name, key, _, count, *view = pid
    if not isinstance(name, str) or any(part is not None for part in view):
        raise pickle.UnpicklingError("it refers to something that is no storage")
    return name, key, count


def _read_old(file: io.BufferedIOBase, functions: Mapping) -> object:
    """Behind the number it begins with: version, machine, tensors, keys, numbers."""
    start = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(start)
    storages = {}

    def load_storage(pid) -> np.ndarray:
        name, key, count = _storage(pid)
        dtype = np.dtype(DTYPES[name])
        if type(count) is not int or not 0 <= count * dtype.itemsize <= length:
            raise pickle.UnpicklingError(f"storage {key} is cut off")
        # The numbers come after all that refers to them.
        return storages.setdefault(key, np.zeros(count, dtype))

    version, machine = (SafeUnpickler(file, {}).load() for _ in range(2))
    if version != 1001 or not machine.get("little_endian", True):
        raise pickle.UnpicklingError("its numbers are big-endian, or of another kind")
    value = SafeUnpickler(file, functions, _STORAGES, load_storage).load()
    for key in SafeUnpickler(file, {}).load():
        (count,) = struct.unpack("<q", file.read(8))
        numbers = file.read(storages[key].nbytes)
        if count != storages[key].size or len(numbers) < storages[key].nbytes:
            raise pickle.UnpicklingError(f"storage {key} is cut off")
        storages[key].view(np.uint8)[:] = np.frombuffer(numbers, np.uint8)
    return value


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


def _load_from_bytes(data) -> object:
    """A file of torch inside a pickle; inside it there is no further one."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("a tensor has no storage")
    return _read(io.BytesIO(data), _WITHOUT_FILES)


_WITHOUT_FILES = pickles.FUNCTIONS | {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): lambda *size: tuple(*size),
}
FUNCTIONS = _WITHOUT_FILES | {
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
}
