"""The base of the builders and `Prepared`, on small made-up data."""

import concurrent.futures
import io
import json
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny import ROOT
from toy_builder import (
    NUM_CLASSES,
    SIZE,
    Toy,
    make_toy,
    record_bytes,
    run,
    write_example,
)

from input_pipeline.files import images
from input_pipeline.info import DataError
from input_pipeline.preparation import class_statistics, prepared, stored


def test_labels_of_16_bits_and_original_bytes_survive(tmp_path):
    labels = make_toy(tmp_path / "raw")
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    assert path == tmp_path / "out" / "toy" / "1.0.0"
    source = prepared.Prepared(path, "train")
    assert len(source) == 4 and source.info.num_classes == NUM_CLASSES
    for i, label in enumerate(labels):
        example = source[i]
        file = tmp_path / "raw" / "train" / f"example_{i}.jpg"
        assert example["name"] == f"example_{i}"
        assert example["label_map"].dtype == np.int32
        np.testing.assert_array_equal(example["label_map"], label)
        np.testing.assert_array_equal(example["image"], images.read_image(file))
        assert record_bytes(path)[i]["image"] == file.read_bytes()
        raw = cv2.imdecode(
            np.frombuffer(record_bytes(path)[i]["label"], np.uint8),
            cv2.IMREAD_UNCHANGED,
        )
        assert raw.dtype == np.uint16
        np.testing.assert_array_equal(raw, np.where(label < 0, 65_535, label))
    assert "tensorflow" not in sys.modules


def test_statistics_and_presence_are_counted(tmp_path):
    labels = make_toy(tmp_path / "raw")
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    source = prepared.Prepared(path, "train")
    counted, presence = source.statistics, source.presence
    everything = np.concatenate([label.ravel() for label in labels])
    for class_id in (0, 1, 2, 254, 255, 256, 65_533, 65_534):
        present = sum(class_id in label for label in labels)
        assert counted["class_examples"][class_id] == present
        assert counted["class_pixels"][class_id] == (everything == class_id).sum()
    assert counted["num_examples"] == 4 and counted["skipped"] == []
    assert counted["num_pixels"] == everything.size
    assert counted["ignored_pixels"] == (everything == -1).sum()
    for i, label in enumerate(labels):
        ids, pixels = np.unique(label[label >= 0], return_counts=True)
        part = slice(*presence.offsets[i : i + 2])
        np.testing.assert_array_equal(presence.class_ids[part], ids)
        np.testing.assert_array_equal(presence.pixels[part], pixels)
        assert counted["classes_per_example"][len(ids)] >= 1
    assert sum(counted["classes_per_example"]) == 4


def test_tfds_prepares_the_same(tmp_path):
    make_toy(tmp_path / "raw")
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    builder = Toy(data_dir=tmp_path / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "raw")
    builder.download_and_prepare(download_config=config)
    for split in ("train", "val"):
        ours = prepared.Prepared(path, split)
        theirs = prepared.Prepared(builder.data_dir, split)
        assert len(ours) == len(theirs) and ours.info == theirs.info
        assert ours.statistics == theirs.statistics
        for a, b in zip(ours, theirs, strict=True):
            assert a["name"] == b["name"]
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label_map"], b["label_map"])


def test_counts_again_what_beam_leaves_uncounted(tmp_path):
    make_toy(tmp_path / "raw")
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    record = prepared._count_again(tfds.builder_from_directory(path), "train")
    presence = prepared.Prepared(path, "train").presence
    again = class_statistics.Presence.collect(record.counts)
    np.testing.assert_array_equal(presence.class_ids, again.class_ids)
    np.testing.assert_array_equal(presence.pixels, again.pixels)


@pytest.mark.parametrize("kind", ["cmyk", "png16", "palette", "grey", "turned", "bmp"])
def test_pictures_of_other_kinds_show_the_same(tmp_path, kind):
    folder = tmp_path / "raw" / "train"
    write_example(folder, "a", np.zeros(SIZE), suffix=".png")
    picture = Image.open(folder / "a.png")
    picture.load()
    (folder / "a.png").unlink()
    expected = None
    if kind == "cmyk":
        picture.convert("CMYK").save(folder / "a.jpg")
    elif kind == "png16":
        values = np.arange(48, dtype=np.uint16).reshape(SIZE) * 1000
        Image.fromarray(values).save(folder / "a.png")
    elif kind == "palette":
        picture.convert("P").save(folder / "a.png")
    elif kind == "grey":
        picture.convert("L").save(folder / "a.jpg")
    elif kind == "bmp":
        picture.save(folder / "a.bmp")
    else:  # The label was drawn on the picture as it is stored.
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(folder / "a.jpg", exif=exif)
        expected = np.rot90(images.read_image(folder / "a.jpg"))
    if expected is None:
        expected = images.read_image(
            next(folder.glob("a.[jpb][npm]*g*"), folder / "a.bmp")
        )
    source = prepared.Prepared(run("toy", tmp_path / "raw", tmp_path / "out"), "train")
    np.testing.assert_array_equal(source[0]["image"], expected)


def test_a_picture_of_another_size_than_its_label_is_an_error(tmp_path):
    write_example(tmp_path / "raw" / "train", "a", np.zeros(SIZE))
    np.save(tmp_path / "raw" / "train" / "a.npy", np.zeros((5, 8), np.int32))
    with pytest.raises(DataError, match=r"a\.jpg is 8x6 pixels but its label is 8x5"):
        run("toy", tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("value", [-2, NUM_CLASSES, 70_000])
def test_ids_that_are_no_class_do_not_wrap_around(tmp_path, value):
    write_example(tmp_path / "raw" / "train", "a", np.full(SIZE, value))
    with pytest.raises(DataError, match=f"{value}.*there are 65535 classes"):
        run("toy", tmp_path / "raw", tmp_path / "out")


def test_raw_values_without_a_class_name_file_and_value():
    labels = stored.RawLabels({0: -1, 3: 0, 300: 1, 65_535: -1})
    raw = np.array([[0, 3], [300, 65_535]])
    np.testing.assert_array_equal(labels(raw, "x.png"), [[-1, 0], [1, -1]])
    for value in (1, 299, 301, 65_534, 65_536, -1):
        with pytest.raises(DataError, match=rf"x\.png holds the value {value} \(1 "):
            labels(np.array([[0, value]]), "x.png")
    small = stored.RawLabels({0: 0})
    with pytest.raises(DataError, match="value 256"):
        small(np.array([[256]]), "x.png")


def test_read_by_threads_and_in_other_processes(tmp_path):
    make_toy(tmp_path / "raw", count=30)
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    source = prepared.Prepared(path, "train")
    wanted = [source[i]["label_map"] for i in range(30)]
    fresh = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(0, 30, 300).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, example in zip(order, pool.map(fresh.__getitem__, order), strict=True):
            np.testing.assert_array_equal(example["label_map"], wanted[i])
    with pytest.raises(IndexError):
        source[30]


def test_scaling_down_keeps_image_and_label_together(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "MAX_SHORT_SIDE", 4)
    label = np.arange(48).reshape(SIZE)
    write_example(tmp_path / "raw" / "train", "a", label)
    write_example(tmp_path / "raw" / "train", "b", label[:4, :5])
    source = prepared.Prepared(run("toy", tmp_path / "raw", tmp_path / "out"), "train")
    # 6x8 to 4x5.33, rounded; the pixel at the floor of new * old / new size.
    rows, columns = [0, 1, 3, 4], [0, 1, 3, 4, 6]
    np.testing.assert_array_equal(source[0]["label_map"], label[np.ix_(rows, columns)])
    assert source[0]["image"].shape == (4, 5, 3)
    np.testing.assert_array_equal(source[1]["label_map"], label[:4, :5])


def test_a_million_examples_open_fast_and_small(tmp_path):
    make_toy(tmp_path / "raw")
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    shard = path / "toy-train.array_record-00000-of-00001"
    record = record_bytes(path)[0]
    builder = tfds.builder_from_directory(path)
    serialize = tfds.core.example_serializer.ExampleSerializer(
        builder.info.features.get_serialized_info()
    ).serialize_example
    example = {k: io.BytesIO(v) if k != "id" else v for k, v in record.items()}
    data = serialize(builder.info.features.encode_example(example))
    adapter = tfds.core.file_adapters.ArrayRecordFileAdapter
    adapter.write_examples(tmp_path / "shard", ((i, data) for i in range(1000)))
    for i in range(1000):
        os.link(tmp_path / "shard", path / f"toy-train.array_record-{i:05d}-of-01000")
    shard.unlink()
    info = json.loads((path / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = ["1000"] * 1000
    (path / "dataset_info.json").write_text(json.dumps(info))
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from input_pipeline.preparation.prepared import Prepared
start = time.perf_counter()
source = Prepared({str(path)!r}, "train")
assert len(source) == 1_000_000
assert source[999_999]["label_map"].shape == {SIZE}
print(time.perf_counter() - start)
# Not ru_maxrss, which starts with what the parent had when it forked.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1e3)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 2 and megabytes < 300, done.stdout
