"""Weight files of others: named arrays, whatever the file's kind."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained.torch_file import read_torch_file

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
WEIGHT_SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """Named arrays of a file, and what it says beside them.

    Attributes:
      name, sha256: of the file.
      arrays: as they are in the file, by their names there.
      others: names of what is no array, such as an optimiser's state.
      class_names: where the file has them (mmcv's ``meta``).
    """

    name: str
    sha256: str
    arrays: dict[str, np.ndarray]
    others: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None


def is_weight_file(path: str) -> bool:
    return pathlib.Path(path).suffix.lower() in WEIGHT_SUFFIXES


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Reads ``.npz``, ``.safetensors``, ``.pth`` or ``.pkl``; runs no code in it.

    Raises:
      UserError: there is no such file, it is damaged or of another kind, or holds no
        arrays.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"There is no weight file {path}; correct the path.")
    others, class_names = (), None
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == ".npz":
        arrays = _read_npz(path)
    elif suffix == ".safetensors":
        arrays, class_names = _read_safetensors(path)
    elif suffix in TORCH_SUFFIXES:
        arrays, others, class_names = _unwrap(read_torch_file(path), path)
    else:
        raise UserError(
            f"{path} is no weight file; give one of {', '.join(WEIGHT_SUFFIXES)}."
        )
    if not arrays:
        raise UserError(f"{path} holds no arrays; give a file of weights.")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightFile(os.path.basename(path), sha256, arrays, others, class_names)


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:
        raise UserError(
            f"{path} is no .npz file of plain arrays ({error}); save its arrays with "
            f"np.savez."
        ) from error


def _read_safetensors(path: str):
    try:
        with safe_open(path, "numpy") as file:
            names = json.loads((file.metadata() or {}).get("classes", "null"))
        return load_file(path), _class_names({"classes": names})
    # An AttributeError where NumPy has no such numbers, as of 4 or 8 bits.
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no safetensors file that can be read ({error}); get it again."
        ) from error


STATE_KEYS = ("state_dict", "model_state", "model", "net", "module")
"""Under which of these keys trainers save the weights, the likelier first."""


def _unwrap(value: object, path: str):
    """The arrays of what ``torch.save`` saved; names of all else; names of classes."""
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path} holds a {type(value).__name__} and no dict of tensors; save "
            f"model.state_dict()."
        )
    others, class_names = [], None
    for key in STATE_KEYS:
        if isinstance(value.get(key), Mapping):
            others = [str(name) for name in value if name != key]
            class_names = _class_names(value.get("meta"))
            value = value[key]
            break
    arrays = collections.OrderedDict()
    for name, array in value.items():
        if isinstance(array, np.ndarray):
            arrays[str(name)] = array
        else:
            others.append(str(name))
    return arrays, tuple(others), class_names


def _class_names(meta: object) -> tuple[str, ...] | None:
    """mmcv and mmengine write the classes of the training beside the weights."""
    if not isinstance(meta, Mapping):
        return None
    facts = meta.get("dataset_meta")
    facts = facts if isinstance(facts, Mapping) else meta
    names = facts.get("CLASSES", facts.get("classes"))
    if not isinstance(names, list | tuple) or not names:
        return None
    # A file of one class is written as a bare string by some.
    return tuple(str(name).strip() for name in names)
