"""A run in which nothing moves ends on all its processes, and says where it stood."""

import os
import subprocess
import sys
import textwrap
import types

import pytest
from test_processes import free_port
from tiny import ROOT, tiny_config

from input_pipeline.files import movement
from mlseg_jax.distributed import heartbeat
from mlseg_jax.distributed.heartbeat import TRY_AGAIN
from mlseg_jax.prediction import evaluate_run
from mlseg_jax.training import loop
from mlseg_jax.training import watchdog as module
from mlseg_jax.training.watchdog import Place, Watchdog, who_is_behind

PROGRAM = """
    import sys, time
    from mlseg_jax.distributed import heartbeat, processes
    from mlseg_jax.training.watchdog import Watchdog

    own, count, port, workdir = *map(int, sys.argv[1:4]), sys.argv[4]

    def read_that_never_ends():
        time.sleep(100.0)

    if count > 1:
        processes.connect(
            f"127.0.0.1:{port}", count, own, start_seconds=60, heartbeat_seconds=15
        )
    processes.barrier("at the same time", 60.0)
    with Watchdog(0.15, workdir) as watchdog:
        watchdog.pace(step=0.01)
        for step in range(1, 4):
            for doing in ("read", "step", "save"):
                watchdog.at(step, doing)
                time.sleep(0.15)
        if own == 0 and count > 1:
            watchdog.at(4, "read")
            watchdog.at(4, "step")
            time.sleep(100.0)
        watchdog.at(4, "read")
        read_that_never_ends()
"""


def run(count, workdir):
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)]
            + [str(x) for x in (process, count, port, workdir)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for process in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[1] for process in running]
    assert [process.returncode for process in running] == [TRY_AGAIN] * count, said
    return said, sorted((workdir / "hangs").iterdir(), key=lambda p: p.name[-5:])


def test_all_processes_end_and_the_one_that_is_behind_is_named(tmp_path):
    said, stacks = run(2, tmp_path)
    for words in said:
        assert "Nothing has moved for " in words
        assert (
            "process 1 is behind and waits for the data of step 4, while process 0 "
            "computes step 4. " in words
        )
    assert [path.name[-14:] for path in stacks] == ["-process-0.txt", "-process-1.txt"]
    assert "read_that_never_ends" in stacks[1].read_text()
    assert "read_that_never_ends" not in stacks[0].read_text()


def test_a_process_alone_whose_work_directory_cannot_be_written(tmp_path):
    (tmp_path / "hangs").write_text("a file")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), "0", "1", "0", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == TRY_AGAIN
    assert "the process waits for the data of step 4." in done.stderr
    assert "read_that_never_ends" in done.stderr


MISHAP = """
    from mlseg_jax.distributed import heartbeat

    def witness():
        raise OSError("The disk is full.")

    heartbeat.before_a_hang_ends(witness)
    heartbeat.end_all("Nothing has moved.")
"""


def test_neither_a_full_disk_nor_a_broken_terminal_keeps_it_from_ending():
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-c", textwrap.dedent(MISHAP)]
    code = subprocess.call(program, cwd=ROOT, stdout=writing, stderr=writing)
    os.close(writing)
    assert code == TRY_AGAIN


def test_without_a_temporary_file_the_stacks_go_to_stderr(monkeypatch, capfd):
    def full(_):
        raise OSError

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    Watchdog(1.0, "/nowhere")._write_stacks()
    assert "test_without_a_temporary_file" in capfd.readouterr().err


def test_who_has_finished_waits_for_others_that_move(monkeypatch):
    """The clock is a made one; process 1 moves for half an hour, and then hangs."""
    now, ended = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(module, "time", clock)
    watchdog = Watchdog(1.0, "/nowhere")
    watchdog.at(1, "evaluate", 8)

    def wait(period):
        now[0] += period
        done = int(min(now[0], 1800.0) / 50.0)
        place = Place(1, "evaluate", done)
        monkeypatch.setattr(module, "told", lambda: {1: (place, {})})

    watchdog._over = types.SimpleNamespace(wait=wait, is_set=lambda: False)
    monkeypatch.setattr(module.heartbeat, "end_all", lambda _: ended.append(now[0]))
    watchdog._watch()
    assert len(ended) == 1 and 1980.0 < ended[0] < 1990.0


def test_who_was_stopped_itself_accuses_nobody(monkeypatch):
    now, ended = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setattr(heartbeat, "end", lambda *_: ended.append(now[0]))
    heart = heartbeat._Heart(None, 0, 2, 10.0)
    # Of process 1 nothing new is heard, and from 2 to 90 s this one was stopped.
    for now[0] in (2.0, 90.0, 94.0, 98.0, 102.0):
        heart._look_for_silence({0: str(now[0]), 1: ""})
    assert ended == [102.0]


def test_opening_the_data_is_watched(monkeypatch, tmp_path):
    watched = []

    def hangs(*_, **__):
        watched.append(movement._listener)
        movement.moves()
        raise TimeoutError

    monkeypatch.setattr(loop, "open_dataset", hangs)
    monkeypatch.setattr(evaluate_run, "load_parameters", hangs)
    for work in (loop.train, evaluate_run.evaluate_run):
        with pytest.raises(TimeoutError) as raised:
            work(tiny_config(), str(tmp_path))
        assert raised.value.__notes__[-1] == "This process opens the data."
        place = watched[-1].__self__._place
        assert place.doing == "open" and place.done == 1
        assert movement._listener is None


def test_how_long_a_process_may_stand_still(tmp_path):
    watchdog = Watchdog(1.0, str(tmp_path))
    watchdog.at(1, "read")
    assert watchdog._limit() == 180.0  # For the first time, and at no known pace.
    watchdog.at(1, "step")
    watchdog.at(2, "read")
    assert watchdog._limit() == 180.0
    watchdog.pace(step=0.1)
    assert watchdog._limit() == 60.0
    watchdog.pace(step=2.0)
    assert watchdog._limit() == 200.0
    watchdog.at(2, "save")
    assert watchdog._limit() == 600.0


@pytest.mark.parametrize(
    "places, words",
    [
        ({0: (5, "read")}, "the process waits for the data of step 5"),
        (
            {0: (5, "step"), 1: (5, "step")},
            "each process computes step 5, so one of them, or the network",
        ),
        (
            {0: (6, "evaluate", 8), 1: (6, "evaluate", 4), 2: (6, "evaluate", 4)},
            "process 1, 2 is behind and evaluates step 6, 4 examples done, while "
            "process 0 evaluates step 6, 8 examples done",
        ),
        (
            {0: (7, "read"), 1: (6, "save")},
            "process 1 is behind and saves step 6, while process 0 waits for the data",
        ),
    ],
)
def test_who_is_behind(places, words):
    found = who_is_behind({p: Place(*place) for p, place in places.items()})
    assert found.startswith(words)
