"""Work directories whose names are addresses: a bucket in memory stands for one."""

import json

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from tiny import tiny_config

from configs import saved
from input_pipeline.datasets.open import open_dataset
from input_pipeline.images import read_image, write_label_map
from mlseg_jax import progress
from mlseg_jax.workdir import claim_workdir, load_info


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
        config.to_json()
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
