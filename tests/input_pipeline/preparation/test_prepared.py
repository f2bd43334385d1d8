"""The base of the builders, `prepare` and `Prepared`, on small made-up data."""

import concurrent.futures
import functools
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.files import images
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import builders, prepare, prepared, shards, stored

ROOT = pathlib.Path(__file__).parents[2]
NUM_CLASSES = 65_535  # The most that there can be.
SIZE = (6, 8)


class Toy(prepared.SegmentationBuilder, skip_registration=True):
    """Reads ``<split>/<key>.*`` and ``<split>/<key>.npy``."""

    def class_info(self):
        names = tuple(f"class {i}" for i in range(NUM_CLASSES))
        return DatasetInfo("toy", names, (True,) * NUM_CLASSES)

    def expected_examples(self):
        return {"train": 4}

    def raw_splits(self, manual_dir):
        return {
            folder.name: [
                prepared.RawExample(
                    path.stem,
                    next(p for p in folder.glob(f"{path.stem}.*") if p != path),
                    functools.partial(np.load, path),
                )
                for path in sorted(folder.glob("*.npy"))
            ]
            for folder in sorted(manual_dir.iterdir())
        }


class Killed(Toy, skip_registration=True):
    """Its labels end the process that makes them."""

    def raw_splits(self, manual_dir):
        raws = super().raw_splits(manual_dir)["train"]
        die = functools.partial(os._exit, 9)
        return {"train": [prepared.RawExample(r.key, r.image, die) for r in raws]}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(builders.BUILDERS, "toy", f"{__name__}:Toy")
    monkeypatch.setitem(builders.BUILDERS, "killed", f"{__name__}:Killed")


def write_example(folder, key, label, *, suffix=".jpg", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{key}{suffix}")
    np.save(folder / f"{key}.npy", label.astype(np.int32))


def make_toy(root, count=4):
    labels = []
    for i in range(count):
        rng = np.random.default_rng(100 + i)
        label = rng.choice([-1, 0, 1, 254, 255, 256, 65_533, 65_534], SIZE)
        write_example(root / "train", f"example_{i}", label, seed=i)
        labels.append(label)
    write_example(root / "val", "only", labels[0])
    return labels


def run(name, manual, out, **kwargs):
    kwargs = {"num_workers": 0, "allow_incomplete": True} | kwargs
    return prepare.prepare(name, manual, out, **kwargs)


def record_bytes(path, split="train"):
    skip = tfds.decode.SkipDecoding()
    return tfds.builder_from_directory(path).as_data_source(
        split=split, decoders={"image": skip, "label": skip}
    )


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
    again = prepared.Presence.collect(record.counts)
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


def test_bad_examples_are_skipped_if_wanted(tmp_path):
    labels = make_toy(tmp_path / "raw")
    damaged = tmp_path / "raw" / "train" / "example_1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(DataError, match="example_1"):
        run("toy", tmp_path / "raw", tmp_path / "failed")
    path = run("toy", tmp_path / "raw", tmp_path / "out", on_bad_example="skip")
    source = prepared.Prepared(path, "train")
    assert [e["name"] for e in source] == ["example_0", "example_2", "example_3"]
    (sentence,) = source.statistics["skipped"]
    assert sentence.startswith("example_1: ") and "damaged" in sentence
    assert source.statistics["num_examples"] == 3
    np.testing.assert_array_equal(source[1]["label_map"], labels[2])


def test_incomplete_copies_duplicates_and_wrong_names(tmp_path, capsys):
    make_toy(tmp_path / "raw", count=3)
    with pytest.raises(
        DataError, match="3 of 4 train examples; complete it, or add --"
    ):
        run("toy", tmp_path / "raw", tmp_path / "out", allow_incomplete=False)
    assert not (tmp_path / "out" / "toy" / "1.0.0").exists()
    path = run("toy", tmp_path / "raw", tmp_path / "out")
    assert (
        "Note: This copy of toy has 3 of 4 train examples." in capsys.readouterr().out
    )
    with pytest.raises(DataError, match="has no split 'test', only"):
        prepared.Prepared(path, "test")
    with pytest.raises(DataError, match="no prepared data set in"):
        prepared.Prepared(tmp_path, "train")
    with pytest.raises(DataError, match="no builder for the data set 'toys'"):
        run("toys", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DataError, match="no variant '12'"):
        run("coco_stuff/12", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DataError, match="no directory"):
        run("toy", tmp_path / "nowhere", tmp_path / "other")
    raw = prepared.RawExample("a", "a.jpg", None)
    with pytest.raises(DataError, match="2 examples named 'a'"):
        prepared.check_keys({"train": [raw, raw]}, "toy")
    with pytest.raises(DataError, match="has no examples"):
        prepared.check_keys({"train": []}, "toy")


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


def test_killed_preparation_is_taken_up(tmp_path, monkeypatch):
    make_toy(tmp_path / "raw", count=20)
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
import test_prepared
from input_pipeline.preparation import builders, prepare, shards
builders.BUILDERS["toy"] = "test_prepared:Toy"
shards._SHARD_EXAMPLES = 4
left = 14
encode = test_prepared.Toy.encode
def fatal(self, raw, record):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, raw, record)
test_prepared.Toy.encode = fatal
prepare.prepare("toy", {str(tmp_path / "raw")!r}, {str(tmp_path / "out")!r},
                num_workers=0, allow_incomplete=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    work = tmp_path / "out" / "toy" / "1.0.0.incomplete"
    finished = sorted(work.glob("*-of-00005"))
    assert len(finished) == 3 and len(list(work.glob("*.part"))) == 1
    before = [path.stat().st_mtime_ns for path in finished]

    monkeypatch.setattr(shards, "_SHARD_EXAMPLES", 4)
    heard = []
    path = run(
        "toy", tmp_path / "raw", tmp_path / "out", progress=lambda *a: heard.append(a)
    )
    assert heard[:3] == [("train", 12, 20), ("val", 0, 1), ("train", 16, 20)]
    after = [(path / old.name).stat().st_mtime_ns for old in finished]
    assert before == after and not list(path.glob("*.part*"))
    assert not work.exists()
    unbroken = run("toy", tmp_path / "raw", tmp_path / "unbroken")
    for one, other in zip(
        prepared.Prepared(path, "train"),
        prepared.Prepared(unbroken, "train"),
        strict=True,
    ):
        assert one["name"] == other["name"]
        np.testing.assert_array_equal(one["label_map"], other["label_map"])
    for name in ("class_statistics.json", "classes.json"):
        assert (path / name).read_text() == (unbroken / name).read_text()


def test_unfinished_work_of_other_files_is_not_mixed(tmp_path):
    make_toy(tmp_path / "raw")
    work = tmp_path / "out" / "toy" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({"version": "0"}))
    with pytest.raises(DataError, match="unfinished preparation of other files"):
        run("toy", tmp_path / "raw", tmp_path / "out")


def test_processes_make_the_same_files_and_a_killed_one_is_explained(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, "_SHARD_EXAMPLES", 3)
    make_toy(tmp_path / "raw", count=9)
    alone = run("toy", tmp_path / "raw", tmp_path / "alone")
    both = run("toy", tmp_path / "raw", tmp_path / "both", num_workers=2)
    files = sorted(path.name for path in alone.glob("*array_record*"))
    assert len(files) == 4
    assert files == sorted(path.name for path in both.glob("*array_record*"))
    for one, other in zip(record_bytes(alone), record_bytes(both), strict=True):
        assert one == other
    with pytest.raises(DataError, match="process that prepares data was killed"):
        run("killed", tmp_path / "raw", tmp_path / "killed", num_workers=1)


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
from input_pipeline.datasets.prepared import Prepared
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
