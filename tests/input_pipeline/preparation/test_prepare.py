"""`prepare`: what it refuses, skips and takes up again, on small made-up data."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tiny import ROOT
from toy_builder import make_toy, record_bytes, run

from input_pipeline.info import DataError
from input_pipeline.preparation import prepared, shards


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


def test_killed_preparation_is_taken_up(tmp_path, monkeypatch):
    make_toy(tmp_path / "raw", count=20)
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
import toy_builder
from input_pipeline.preparation import builders, prepare, shards
builders.BUILDERS["toy"] = "toy_builder:Toy"
shards._SHARD_EXAMPLES = 4
left = 14
encode = toy_builder.Toy.encode
def fatal(self, raw, record):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, raw, record)
toy_builder.Toy.encode = fatal
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
