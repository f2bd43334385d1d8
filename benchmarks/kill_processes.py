"""What befalls four processes that train together, one misfortune after the other.

Part of ``kill_training.py``. In each round a process starts late, and then the run is
brought to its end by a process that is stopped (SIGSTOP), one whose read never ends
(its picture has become a pipe that nobody writes to) or one that is killed. Every time
all others must end by themselves, with the code after which a launcher starts them
again.
"""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from mlseg_jax.distributed.heartbeat import TRY_AGAIN

PROCESSES = 4
HEARTBEAT = 15
"""Seconds of silence after which a process counts as gone."""
HANG_MINUTES = 1.0
LONGEST = 400.0
"""Seconds that a misfortune may take; more counts as a hang that nobody noticed."""
MISFORTUNES = ("stopped", "stuck reader", "killed", "coordinator stopped")


def start_together(run, late: float = 0.0) -> list[subprocess.Popen]:
    """``late``: seconds after the others at which the last process starts."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    running = []
    for process in range(PROCESSES):
        if process == PROCESSES - 1:
            time.sleep(late)
        more = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={PROCESSES}",
            f"--process_id={process}",
            f"--heartbeat_seconds={HEARTBEAT}",
            f"--config.train.hang_minutes={HANG_MINUTES}",
        ]
        running.append(run.start(1, more=more))
    return running


def befall(run, what: str, running: list[subprocess.Popen], rng: random.Random) -> dict:
    """Brings a run to its end; says how long its processes took to notice."""
    victim = running[0 if what.startswith("coordinator") else rng.randrange(1, 4)]
    picture = None
    begin = time.time()
    if what == "stuck reader":
        pictures = sorted((run.workdir.parent / "data/images/train").iterdir())
        picture = rng.choice(pictures)
        kept = picture.with_suffix(".kept")
        picture.rename(kept)
        os.mkfifo(picture)
        victim = None
    else:
        victim.send_signal(signal.SIGKILL if what == "killed" else signal.SIGSTOP)
    try:
        others = [process for process in running if process is not victim]
        codes = [process.wait(LONGEST) for process in others]
    finally:
        if picture is not None:
            kept.replace(picture)
        for process in running:
            process.kill()
            process.wait()
    # Without process 0 it is JAX that ends the others.
    right = {TRY_AGAIN, -signal.SIGABRT} if victim is running[0] else {TRY_AGAIN}
    assert set(codes) <= right, (what, codes, run.log.read_text())
    return {"what": what, "seconds": round(time.time() - begin, 1), "codes": codes}


def disturb(run, rounds: int, rng: random.Random) -> dict:
    """``rounds`` times each misfortune; at every start but the first one is late."""
    found = []
    for number, what in enumerate(rounds * MISFORTUNES):
        before, begin = run.first_steps() if run.log.exists() else 0, time.time()
        late = rng.uniform(5.0, 30.0) if number else 0.0
        running = start_together(run, late)
        while run.first_steps() == before:
            gone = [process.poll() for process in running]
            assert set(gone) == {None}, run.log.read_text()
            assert time.time() - begin < LONGEST, run.log.read_text()
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 10.0))
        found.append(befall(run, what, running, rng) | {"late": round(late, 1)})
        print(f"{found[-1]}: newest {run.newest()}", file=sys.stderr, flush=True)
    return {"misfortunes": found}


def write_pictures(folder: pathlib.Path, flags: list[str]) -> None:
    """The examples of a configuration as files, for `befall`."""
    command = [sys.executable, "main.py", "export_dataset", f"--output={folder}"]
    subprocess.run(command + flags, check=True, stdout=subprocess.DEVNULL)
