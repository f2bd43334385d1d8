"""Work directories whose names are addresses: a bucket in memory stands for one."""

import json
import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tiny import tiny_config

from input_pipeline.datasets.data_version import data_facts
from input_pipeline.datasets.open import open_dataset
from input_pipeline.files import movement
from input_pipeline.files.images import read_image, write_label_map
from input_pipeline.files.local_copy import local_copy
from input_pipeline.info import DataError
from input_pipeline.preparation.export import export_folder
from input_pipeline.preparation.prepare import prepare
from mlseg_jax.runs import progress
from mlseg_jax.runs.workdir import claim_workdir, load_info
from mlseg_jax.settings import saved
from mlseg_jax.settings.resolve import resolve


class Bucket(MemoryFileSystem):
    """Answers to gs://."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
    from fsspec.registry import _registry as implementations

    monkeypatch.setitem(implementations, "gs", Bucket)
    monkeypatch.setitem(implementations, "gcs", Bucket)
    Bucket.clear_instance_cache()
    yield "gs://bucket/run"
    Bucket.store.clear()


class NoEvents:
    """TensorBoard's files want Google's own library."""

    def __init__(self, path, purge_step):
        assert path.startswith("gs://bucket")

    def add_scalar(self, *_):
        pass

    close = add_scalar


def test_a_run_in_a_bucket(bucket, monkeypatch):
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, bucket, info)
    claim_workdir(config, bucket, info)
    assert json.loads(saved.get_config(bucket).to_json()) == json.loads(
        resolve(config, info.num_classes).to_json()
    )
    assert load_info(bucket).class_names == info.class_names
    monkeypatch.setattr(progress, "SummaryWriter", NoEvents)
    writer = progress.MetricWriter(bucket, start=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss/total": 1.0})
    writer.close()
    progress.MetricWriter(bucket, start=2).close()  # resumed at 2
    lines = (epath.Path(bucket) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_pictures_in_a_bucket(bucket):
    label_map = np.arange(12, dtype=np.int32).reshape(3, 4)
    path = epath.Path(bucket) / "a.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, label_map, 12)
    assert read_image(path).shape == (3, 4, 3)


@pytest.fixture
def cache(bucket, monkeypatch, tmp_path):
    """Where copies go; there are none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local_copy.cache_clear()
    yield tmp_path / "cache/mlseg_jax/data"
    local_copy.cache_clear()


def open_signs(path):
    data = tiny_config({"data.name": "folder", "data.path": str(path)}).data
    data.update(num_classes=0, train_examples=0)
    return open_dataset(data, train=True)


def test_a_data_set_in_a_bucket(cache, tmp_path):
    signs, address = tmp_path / "signs", "gs://bucket/signs"
    split = open_dataset(tiny_config({"data.train_examples": 3}).data, train=True)
    export_folder({"train": split}, signs)
    Bucket().put(str(signs), address, recursive=True)
    source, local = open_signs(address), open_signs(signs)
    assert source.info == local.info and len(source) == len(local) == 3
    for key, value in local[1].items():
        np.testing.assert_array_equal(source[1][key], value)
    # Opened again, it is there; what was changed is copied anew.
    (copied,) = cache.glob("*/signs/classes.txt")
    copied.with_name("mark").touch()
    local_copy.cache_clear()
    open_signs(address)
    data = tiny_config({"data.path": address}).data
    kept = list(data_facts(data, tmp_path))
    assert len(kept) == 8 and kept[0].startswith(b"classes.txt ")
    assert len(list(cache.glob("*/signs"))) == 1
    Bucket().pipe(f"{address}/things.txt", b"")
    local_copy.cache_clear()
    assert open_signs(address).info.is_thing == (False,) * 20
    assert len(list(cache.glob("*/signs"))) == 2
    assert len(set(data_facts(data, tmp_path)).difference(kept)) == 1


def test_a_prepared_data_set_in_a_bucket(cache, tmp_path):
    raw = np.arange(152, dtype=np.uint8).reshape(8, 19) % 151
    for split, stem in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        for kind, pixels in (("images", np.stack([raw] * 3, 2)), ("annotations", raw)):
            folder = tmp_path / "raw/ADEChallengeData2016" / kind / split
            folder.mkdir(parents=True)
            suffix = ".png" if pixels is raw else ".jpg"
            Image.fromarray(pixels).save(folder / f"{stem}{suffix}")
    path = prepare(
        *("ade20k", tmp_path / "raw", tmp_path / "data"),
        **dict(num_workers=0, allow_incomplete=True, progress=lambda *_: None),
    )
    Bucket().put(f"{tmp_path}/data/", "gs://bucket/data/", recursive=True)
    Bucket().pipe("gs://bucket/data/another/large", b"")
    version = f"gs://bucket/data/{path.relative_to(tmp_path / 'data')}"
    for address in ("gs://bucket/data", version):
        data = tiny_config({"data.name": "ade20k", "data.path": address}).data
        data.update(num_classes=0, train_examples=0)
        (example,) = open_dataset(data, train=True)
        np.testing.assert_array_equal(example["label_map"], raw.astype(np.int32) - 1)
    # Of what else is there nothing was copied.
    assert list(cache.rglob("*.array_record*")) and not list(cache.rglob("large"))


def test_a_copy_that_was_broken_off_goes_on(cache, monkeypatch):
    for name in ("a", "b", "c/d"):
        Bucket().pipe(f"gs://bucket/data/{name}", name.encode())
    brought, get = [], Bucket.get

    def breaks(self, there, here, callback):
        get(self, there[:2], here[:2], callback=callback)
        raise ConnectionResetError("gone")

    def counts(self, there, here, callback):
        brought.extend(there)
        get(self, there, here, callback=callback)

    moved = []  # Whoever watches for hangs hears of every file.
    monkeypatch.setattr(movement, "_listener", lambda: moved.append(len(moved)))
    monkeypatch.setattr(Bucket, "get", breaks)
    with pytest.raises(
        DataError, match="gs://bucket/data cannot be read .gone.; check"
    ):
        local_copy("gs://bucket/data")
    monkeypatch.setattr(Bucket, "get", counts)
    path = pathlib.Path(local_copy("gs://bucket/data"))
    assert brought == ["/bucket/data/c/d"] and len(moved) >= 3
    assert sorted(x.read_text() for x in path.rglob("*") if x.is_file()) == [
        *("a", "b", "c/d")
    ]
    assert not list(cache.glob("*.part"))


def test_what_cannot_be_copied(cache, monkeypatch, tmp_path):
    with pytest.raises(DataError, match="no files in gs://bucket/nothing"):
        local_copy("gs://bucket/nothing")
    with pytest.raises(DataError, match="abc://x cannot be read .Protocol not known"):
        local_copy("abc://x")
    with pytest.raises(DataError, match=r"-m pip install 'mlseg-jax\[s3\]'"):
        local_copy("s3://bucket/data")
    Bucket().pipe("gs://bucket/data/large", bytes(10**6))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME to a larger disk"):
        local_copy("gs://bucket/data")
    with pytest.raises(DataError, match="prepare into a directory and copy that"):
        prepare("ade20k", tmp_path, "gs://bucket/data")
