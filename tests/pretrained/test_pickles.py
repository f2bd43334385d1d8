"""``.pkl`` files: arrays of numpy and tensors within pickles, and hostile ones."""

import os
import pathlib
import pickle
import struct

import numpy as np
import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained.read import read_weights

FILES = pathlib.Path(__file__).parent / "files"


class Call:
    """Unpickles as the call of a function, then perhaps with a state."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


class Named:
    """Pickles as a name, whatever it stands for."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class NamingPickler(pickle._Pickler):
    """Python's own, which can be told to write a name that is nowhere."""

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            return self.write(f"c{value.module}\n{value.name}\n".encode())
        return super().save(value, save_persistent_id)

    def save_reduce(self, func, args, state=None, *more, obj=None, **others):
        if not isinstance(func, Named):
            return super().save_reduce(func, args, state, *more, obj=obj, **others)
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def write(path, value):
    with open(path, "wb") as file:
        NamingPickler(file, 2).dump(value)
    return path


def refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_numpy(tmp_path, protocol):
    arrays = {
        "plain": np.arange(6.0).reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "part": np.arange(12, dtype=np.float16).reshape(3, 4)[::2, 1:],
        "other end first": np.arange(3, dtype=">i4"),
        "truth": np.asarray([True, False]),
        "number": np.asarray(7, np.uint8),
        "nothing": np.zeros((0, 3), np.float32),
    }
    others = {"__author__": "x", "matching_heuristics": True}
    objects = {"objects": np.asarray([{}], object), "scalar": np.float32(3)}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": arrays | objects} | others, protocol))
    file = read_weights(path)
    assert set(file.arrays) == set(arrays)
    assert set(file.others) == {"__author__", "matching_heuristics", *objects}
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.arrays[name], array)
        assert file.arrays[name].dtype == array.dtype.newbyteorder("=")


def test_text_of_python_2(tmp_path):
    """Bytes were text there, and are read as such, in the first protocol, too."""
    (tmp_path / "y.pkl").write_bytes(b"(dp1\nS'\x80'\np2\nNs.")
    refused(tmp_path / "y.pkl", "holds no arrays")
    state = (1, (2,), Call(np.dtype, "f4"), False, "\x00\x00\x80?\x00\x00\x00\xc0")
    made = Call(Named("numpy.core.multiarray", "_reconstruct"), 0, state=state)
    array = read_weights(write(tmp_path / "x.pkl", {"model": {"w": made}})).arrays["w"]
    np.testing.assert_array_equal(array, np.asarray([1.0, -2.0], np.float32))


def test_names_of_classes_may_be_anything(tmp_path):
    path, names = tmp_path / "x.pkl", {"CLASSES": ["a", "b"]}
    for more in ({}, {"dataset_meta": None}, {"dataset_meta": [1]}):
        value = {"state_dict": {"w": np.zeros(2)}, "meta": names | more}
        path.write_bytes(pickle.dumps(value))
        assert read_weights(path).class_names == ("a", "b")


def test_tensors_within_a_pickle():
    """What the scripts write that turn Swin's weights to Detectron2's."""
    file = read_weights(FILES / "tensors.pkl")
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert file.others == ("__author__",)
    np.testing.assert_array_equal(file.arrays["plain"], base)
    np.testing.assert_array_equal(file.arrays["transposed"], base.T)
    np.testing.assert_array_equal(file.arrays["part"], base[1, 1:])
    np.testing.assert_array_equal(file.arrays["half"], np.full(2, 0.5, np.float16))
    np.testing.assert_array_equal(file.arrays["parameter"], np.ones(2))


# --------------------------------------------------------------------------- hostile


def nested(value, name="_load_from_bytes"):
    return Call(Named("torch.storage", name), value)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_call_at_any_depth_is_refused_and_does_not_happen(tmp_path, depth):
    target = tmp_path / "ran"
    value = Call(os.system, f"touch {target}")
    for _ in range(depth):
        path = write(tmp_path / "inner", value)
        value = nested(path.read_bytes())
    refused(write(tmp_path / "x.pkl", {"model": value}), "it wants to call")
    assert not target.exists()


def array(shape=(2,), dtype="f4", data=b"\0" * 8, order=False):
    dtype = Call(Named("numpy", "dtype"), dtype) if isinstance(dtype, str) else dtype
    state = (1, shape, dtype, order, data)
    return Call(Named("numpy._core.multiarray", "_reconstruct"), 0, state=state)


@pytest.mark.parametrize(
    "value, reason",
    [
        (array(shape=(3,)), "not as many numbers"),
        (array(shape=(2**62, 2**62)), "not as many numbers"),
        (array(shape=(-2, -1)), "impossible shape"),
        (array(shape=(True, 2)), "impossible shape"),
        (array(shape=[2]), "has no numbers"),
        (array(dtype=4), "does not say"),
        (array(data=[1, 2]), "has no numbers"),
        (array(data=None), "has no numbers"),
        (Call(Named("numpy", "dtype"), "f4", state=(3, "!")), "unknown order"),
        (nested("text"), "has no storage"),
        (nested(b"text"), "read safely"),
        (nested(b"", name="load"), "wants to call torch.storage.load"),
        (Call(Named("torch._utils", "_rebuild_tensor_v2"), 0, 0, (1,), (1,)),
         "has no storage"),
        (Call(Named("numpy", "load"), "x"), "wants to call numpy.load"),
        (Call(Named("builtins", "getattr"), "x", "y"), "wants to call builtins"),
    ],
)  # fmt: skip
def test_what_arrays_and_storages_may_say(tmp_path, value, reason):
    path = write(tmp_path / "x.pkl", {"model": {"w": value, "v": np.zeros(2)}})
    refused(path, reason)


def test_objects_are_no_arrays(tmp_path):
    """Nor is an array that says nothing of itself."""
    empty = Call(Named("numpy.core.multiarray", "_reconstruct"), 0)
    model = {"a": array(dtype="O8"), "b": array(dtype="V8"), "c": empty}
    path = write(tmp_path / "x.pkl", {"model": model | {"w": np.zeros(2)}})
    assert set(read_weights(path).arrays) == {"w"}


@pytest.mark.parametrize(
    "put", [b"r" + struct.pack("<I", 2**26), b"p%d\n" % 2**26], ids=["binary", "text"]
)
def test_little_makes_no_room_for_much(tmp_path, put):
    """Nine bytes made Python take a gigabyte."""
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}" + put + b".")
    refused(tmp_path / "x.pkl", "more memory than it has bytes")


def test_a_pickle_of_itself(tmp_path):
    model = {"w": np.zeros(2)}
    model["model"] = model
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": model}))
    refused(path, "read safely")


def test_numbers_of_old_files_are_all_there(tmp_path):
    whole = (FILES / "old.pth").read_bytes()
    end = struct.pack("<q", 2)
    assert whole[-16:-8] == end
    for bad in (whole[:-1], whole[:-12], whole[:-16] + struct.pack("<q", 3) + end):
        (tmp_path / "x.pth").write_bytes(bad)
        refused(tmp_path / "x.pth", "cut off|read safely")
    more = whole.replace(b"K\x02Nt", b"J\xff\xff\xff\x7fNt")
    assert more != whole
    (tmp_path / "x.pth").write_bytes(more)
    refused(tmp_path / "x.pth", "cut off")
