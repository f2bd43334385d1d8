"""`benchmarks/accelerator.py` ends in time with a true table, whatever its parts do."""

import json
import pathlib
import sys
import textwrap
import time

import numpy as np
import pytest
from tiny import ROOT

from mlseg_jax.settings import recipes

sys.path.insert(0, str(ROOT / "benchmarks"))

import accelerator  # noqa: E402
import accelerator_cases as cases  # noqa: E402
import accelerator_parity  # noqa: E402
import accelerator_parts  # noqa: E402
import accelerator_pytorch  # noqa: E402
import accelerator_steps as steps  # noqa: E402
import accelerator_table  # noqa: E402

WORKER = """
    import json, os, pathlib, signal, subprocess, sys, time
    name, folder = sys.argv[1:]
    part = pathlib.Path(folder) / "parts" / f"{name.replace(' ', '_')}.json"
    row = {"batch": 4, "images_per_second": 123.4, "peak_bytes": 2**31}
    if name == "device":
        row |= {"count": 8, "kind": "TPU v5e", "jax": "0.10.2", "runtime": "libtpu"}
    if name == "forecast":
        row = {"case": "train 1284", "batch": 16, "bytes": 2**30, "planned_batch": 32}
    hangs = name in ("profile", "forecast")
    if hangs:
        child = subprocess.Popen(["sleep", "600"])
        part.with_suffix(".child").write_text(str(child.pid))
    part.with_suffix(".new").write_text(json.dumps({"rows": [row]}))
    part.with_suffix(".new").rename(part)
    if name == "train 1284":  # has its forecast before it begins
        found = json.loads((part.parent / "forecast.json").read_text())
        assert found["rows"][0]["case"] == name
    if name == "train 150":
        sys.exit("RESOURCE_EXHAUSTED: of all memory")
    if name == "mask2former":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(600 * hangs)
"""


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_what_fails_hangs_or_comes_too_late_is_named(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(textwrap.dedent(WORKER))
    names = ("device", "train 1284", "train 150", "mask2former", "profile", "demo")
    parts = [accelerator.Part(n, 60, n if n == "train 1284" else "") for n in names]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/forecast.json").write_text('{"rows": ["of an earlier call"]}')
    run = accelerator.Run(tmp_path, 60.0, [sys.executable, str(worker)])
    assert cases.read_rows(tmp_path, "forecast") == []
    finish = run.finish

    def last(part, process):
        if part.name == "profile":  # As if the minutes were over while it runs.
            wait_until((tmp_path / "parts" / "profile.json").exists)
            run.end = time.monotonic()
        return finish(part, process)

    monkeypatch.setattr(run, "finish", last)
    result = run.run(parts)
    found = {part["part"]: part for part in result["parts"]}
    assert result["not_reached"] == ["demo"]
    assert [n for n, part in found.items() if "error" not in part] == list(names[:2])
    words = "with code 1: RESOURCE_EXHAUSTED: of all memory"
    assert found["train 150"]["error"].endswith(words)
    assert "by SIGSEGV" in found["mask2former"]["error"]
    assert "the minutes are over" in found["profile"]["error"]
    assert found["profile"]["rows"]
    # Nothing that they have started is left.
    for name in ("profile", "forecast"):
        child = int((tmp_path / "parts" / f"{name}.child").read_text())
        wait_until(lambda child=child: not is_alive(child))
    assert json.loads((tmp_path / "accelerator.json").read_text()) == result
    page = (tmp_path / "accelerator.md").read_text()
    assert "mean nothing" not in page and "accelerator.py --minutes=60`" in page
    assert "| train 1284 | 4 | 123.4 | 2.00 |" in page
    assert "- train 150: Its process ended with code 1" in page
    assert "Not reached in time: demo." in page


def test_a_part_ends_with_the_run(tmp_path, monkeypatch):
    """A SIGTERM raises `SystemExit`, see `main`."""

    class Process:
        def wait(self, _):
            raise SystemExit

    killed, process = [], Process()
    monkeypatch.setattr(accelerator, "_kill", killed.append)
    run = accelerator.Run(tmp_path, 60.0, [])
    with pytest.raises(SystemExit):
        run.finish(accelerator.Part("device", 60), process)
    assert killed == [process]


def test_batches_come_from_the_forecast(tmp_path):
    assert cases.fitting_batch(32, 100, 110) == 32
    assert cases.fitting_batch(32, 100, 60) == 16
    assert cases.fitting_batch(32, 100, 1) == 1
    assert cases.fitting_batch(32, 100, None) == 32
    assert cases.topology_name("NVIDIA H200", 1, False) == "h200x1"
    assert cases.topology_name("NVIDIA H100 80GB HBM3", 8, False) == "h100x8"
    assert cases.topology_name("TPU v5 lite", 1, False) == "v5e-4"
    assert cases.topology_name("TPU7x", 16, False) == "tpu7x-8"
    with pytest.raises(LookupError, match="knows no Radeon"):
        cases.topology_name("Radeon", 1, False)
    assert cases.forecast_of(tmp_path, "train 150")["batch"] == cases.BATCH // 8


def test_a_step_falls_back_once():
    tried = []

    def make(batch):
        tried.append(batch)
        if batch > 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")
        return batch

    assert steps.with_fallback(make, 16) == (8, "16 images a chip ran out of memory")
    with pytest.raises(RuntimeError, match="RESOURCE"):
        steps.with_fallback(make, 32)
    assert tried == [16, 8, 32, 16]

    def row(batch):
        return {"batch": make(batch), "peak_bytes": 1}

    assert steps.with_fallback(row, 8)[0] == {"batch": 8, "peak_bytes": 1}
    assert steps.with_fallback(row, 16)[0] == {"batch": 8}
    with pytest.raises(ZeroDivisionError):
        steps.with_fallback(lambda batch: 1 / 0, 16)


@pytest.mark.usefixtures("quick_compiles")
def test_parts_on_a_processor(tmp_path, monkeypatch):
    """As `--dry`, here without processes: what they compile is tiny."""
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr(accelerator_parity, "run_demo", lambda dry: {"loss": loss})
    loss = np.float32(2.0)
    masked = "attention, 9 tokens, heads of 8, masked"
    monkeypatch.setattr(
        accelerator_parity, "attention_cases", lambda dry: [(masked, 9, 8, True)]
    )
    accelerator_parity.write(tmp_path / "reference.npz", dry=True)
    with np.load(tmp_path / "reference.npz") as file:
        expected = dict(file)
    loss = np.float32(2.1)
    rows = list(accelerator_parity.compare(expected, dry=True))
    assert [row["holds"] for row in rows] == [True, True, False]
    assert [row["kernel"] for row in rows] == ["blocks", "blocks", ""]
    assert 1e-4 < rows[0]["difference"] > 10 * rows[1]["difference"]
    found = []
    for name in ("device", "train 1284"):
        part = accelerator_parts.run(name, tmp_path, dry=True)
        assert part["rows"] and "error" not in part, part
        found.append({"part": name, "seconds": 1.0} | part)
    assert found[1]["rows"][0]["ceiling_share"] > 0
    assert "error" in accelerator_parts.run("no such part", tmp_path, dry=True)
    facts = dict(time="", python="", cores=1, cpu="")
    page = accelerator_table.page(
        dict(minutes=8, dry=True, machine=facts, parts=found)
        | dict(forecast=[], not_reached=[])
    )
    assert "mean nothing" in page and "accelerator.py --dry --minutes=8`" in page
    assert "## Training steps and prediction" in page and "| train 1284 |" in page


def test_pytorch_has_a_python_of_its_own(tmp_path, monkeypatch):
    """A made one here, which answers for the shapes that it is given."""
    python = tmp_path / "python"

    def answer(words):
        python.write_text(f"#!/bin/sh\necho noise; test -f $1 && echo '{words}'")
        python.chmod(0o700)
        name, folder = "pytorch 1284", tmp_path / "out"
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        return accelerator_parts.run(name, folder, True, str(python))

    assert answer('{"batch": 1}')["rows"] == [{"batch": 1, "C": 24}]
    assert answer('{"left_out": "No torch."}')["left_out"] == "No torch."
    assert answer('{"error": "Crash: x"}')["error"].endswith("in PyTorch, Crash: x")
    shapes = accelerator_pytorch.shapes_of(cases.make_config("train 1284", False), 4, 0)
    assert shapes["embed_dim"] == 1024 and shapes["side"] == cases.SIDE
    assert shapes["k"] == cases.RANKS and shapes["pool"] == cases.POOL
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "has no torch" in accelerator_pytorch.run(shapes)["left_out"]


@pytest.mark.parametrize("dry", [False, True])
def test_the_demo_is_started_with_flags_that_there_are(tmp_path, monkeypatch, dry):
    """Its training itself is that of `make demo`."""

    def train(command, **_):
        assert command[1:3] == ["main.py", "train"]
        flags = dict(word.lstrip("-").split("=", 1) for word in command[3:])
        config = recipes.load(flags.pop("config")).to_dict()
        folder = pathlib.Path(flags.pop("workdir"))
        for name in flags:
            value = config
            for part in name.removeprefix("config.").split("."):
                value = value[part]
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 2, "eval/mIoU": 0.5}\n')

    monkeypatch.setattr(accelerator_parts.subprocess, "run", train)
    (row,) = accelerator_parts.demo(tmp_path, dry)
    assert row["mIoU"] == 0.5 and row["oracle_mIoU"] is None
