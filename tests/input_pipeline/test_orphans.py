"""A reader that is killed leaves neither its workers nor their shared memory."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
from tiny import ROOT

PROGRAM = """
import sys
import time
from multiprocessing import shared_memory

import numpy as np

from input_pipeline.pipeline import train_batches

# Also in the worker, which imports this file: names that are this test's alone.
shared_memory._SHM_NAME_PREFIX = "/" + sys.argv[1]

class Source:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return {"image": np.zeros((64, 64, 3), np.uint8)}

def same(example, rng):
    return example

if __name__ == "__main__":
    batches = train_batches(
        Source(), seed=0, batch_size=2, augment=same, num_workers=1, num_threads=1
    )
    next(batches)
    print("reads", flush=True)
    time.sleep(100)
"""
SHARED = pathlib.Path("/dev/shm")


def children(parent: int) -> set[int]:
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(not SHARED.exists(), reason="needs the /proc and /dev/shm of Linux")
def test_a_killed_reader_leaves_nothing_behind(tmp_path):
    prefix = f"o{os.getpid()}_"  # Names have 14 letters at most.
    (tmp_path / "reader.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, tmp_path / "reader.py", prefix],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as reader:  # fmt: skip
        assert reader.stdout.readline() == "reads\n"
        family = children(reader.pid)
        assert family and list(SHARED.glob(f"{prefix}*"))
        reader.kill()

    def left() -> list:
        alive = [
            child for child in family if (pathlib.Path("/proc") / str(child)).exists()
        ]
        return alive + list(SHARED.glob(f"{prefix}*"))

    deadline = time.monotonic() + 30.0
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()
