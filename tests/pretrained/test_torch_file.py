"""``.pth`` files without torch: all that torch writes, nothing that runs."""

import io
import os
import pathlib
import pickle
import sys
import zipfile
from unittest import mock

import numpy as np
import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained.read import read_weights

FILES = pathlib.Path(__file__).parent / "files"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_every_kind_of_tensor():
    arrays = read_weights(FILES / "kinds.pth").arrays
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8"):
        assert arrays[name].dtype == name
        np.testing.assert_array_equal(arrays[name], [-2, 0, 3])
    assert arrays["bfloat16"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(arrays["bfloat16"].astype(np.float32), [-2, 0, 3])
    np.testing.assert_array_equal(arrays["bool"], [True, False, True])
    np.testing.assert_array_equal(arrays["tied"], BASE)
    np.testing.assert_array_equal(arrays["transposed"], BASE.T)
    np.testing.assert_array_equal(arrays["part"], BASE[1:3, ::2])
    np.testing.assert_array_equal(arrays["expanded"], np.full((3, 2), 7.0))
    assert arrays["scalar"] == 5.0
    assert arrays["empty"].shape == (0, 3)
    np.testing.assert_array_equal(arrays["parameter"], np.ones(2))


def test_what_stands_beside_the_weights():
    file = read_weights(FILES / "mlseg.pth")
    assert file.class_names == tuple(f"thing {i}" for i in range(11))
    assert file.others == ("meta", "optimizer")
    assert len(file.sha256) == 64
    assert all(array.dtype == np.float16 for array in file.arrays.values())


def test_files_of_old_torch():
    arrays, newer = (read_weights(FILES / f"{n}.pth").arrays for n in ("old", "kinds"))
    assert arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, newer.get(name, array))


# --------------------------------------------------------------------------- hostile


class Call:
    """Unpickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write(path, data: bytes, storage: bytes = b"\0" * 16, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", storage)
    return path


def refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def tensor(offset=0, size=(4,), stride=(1,), count=4, module="torch._utils"):
    """The pickle of one float tensor, by hand."""
    numbers = b"".join(
        b"(" + b"".join(b"I%d\n" % n for n in values) + b"t"
        for values in (size, stride)
    )
    return (
        b"(dS'w'\nc" + module.encode() + b"\n_rebuild_tensor_v2\n"
        b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQ" % count
        + b"I%d\n" % offset + numbers + b"I00\nNtRs."
    )  # fmt: skip


@pytest.mark.parametrize("where", ["alone", "beside", "key"])
def test_a_call_is_refused_and_does_not_happen(tmp_path, where):
    target = tmp_path / "ran"
    call = Call(os.system, f"touch {target}")
    value = {
        "alone": call,
        "beside": {"state_dict": {}, "meta": call},
        "key": {"state_dict": {(call,): 1}},
    }[where]
    refused(write(tmp_path / "evil.pth", pickle.dumps(value)), "it wants to call")
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"), ("builtins", "getattr"), ("os", "system"),
        ("torch", "load"), ("torch.hub", "load"), ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"), ("collections", "namedtuple"),
        ("mlseg_jax.pretrained.torch_file", "FUNCTIONS"), ("pickle", "loads"),
    ],
)  # fmt: skip
def test_only_what_weights_need_can_be_called(tmp_path, name):
    module, attribute = name
    data = f"c{module}\n{attribute}\n(tR.".encode()
    refused(write(tmp_path / "evil.pth", data), f"call {module}.{attribute}")


def test_a_function_cannot_be_changed(tmp_path):
    # BUILD with a pair sets attributes of what the pickle holds.
    data = b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'_function'\nI1\nstb."
    refused(write(tmp_path / "evil.pth", data), "function was to be changed")


def test_tensors_stay_inside_their_storage(tmp_path):
    path = write(tmp_path / "good.pth", tensor())
    np.testing.assert_array_equal(read_weights(path).arrays["w"], np.zeros(4))
    for bad, reason in (
        (tensor(offset=1), "beyond its storage"),
        (tensor(stride=(2,)), "beyond its storage"),
        (tensor(size=(10**9,), stride=(10**9,)), "beyond its storage"),
        (tensor(offset=-1), "impossible shape"),
        (tensor(stride=(-1,)), "impossible shape"),
        (tensor(size=(2, 2)), "impossible shape"),
        (tensor(count=5), "cut off"),
        (tensor(module="torch.other"), "it wants to call"),
    ):
        refused(write(tmp_path / "bad.pth", bad), reason)
    bomb = write(tmp_path / "b.pth", tensor(), compress=zipfile.ZIP_DEFLATED)
    refused(bomb, "compressed")


def test_files_that_are_something_else(tmp_path):
    whole = (FILES / "mlseg.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "list.pth", pickle.dumps([1, 2]))
    write(tmp_path / "empty.pth", pickle.dumps({}))
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "picture.png").write_text("hello")
    objects = io.BytesIO()
    np.savez(objects, x=np.array([{}], object))
    (tmp_path / "objects.npz").write_bytes(objects.getvalue())
    with mock.patch.dict(sys.modules, {"torch": None}):
        for name, reason in (
            ("half.pth", "zip archive|read safely"), ("list.pth", "no dict"),
            ("empty.pth", "no arrays"), ("text.safetensors", "safetensors"),
            ("text.npz", "plain arrays"), ("picture.png", "no weight file"),
            ("objects.npz", "plain arrays"), ("nothing.pth", "There is no"),
        ):  # fmt: skip
            refused(tmp_path / name, reason)
