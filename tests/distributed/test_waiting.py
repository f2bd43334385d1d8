"""Who waits says for whom: late processes join, missing ones are named."""

import socket
import subprocess
import sys
import textwrap

import pytest
from test_processes import free_port
from tiny import ROOT

from mlseg_jax.distributed import callers
from mlseg_jax.distributed.heartbeat import TRY_AGAIN

PROGRAM = """
    import os, signal, sys, time
    from mlseg_jax.distributed import heartbeat, processes
    from mlseg_jax.errors import UserError
    from mlseg_jax.training.watch import Stopped, StopRequest

    own, port, start_seconds, late = map(float, sys.argv[1:])
    processes.REPORT_SECONDS = 0.4
    try:
        processes.connect(
            f"127.0.0.1:{port:.0f}", 2, int(own), start_seconds=int(start_seconds)
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    if own == 1:
        time.sleep(late)
    processes.barrier("here", 60.0)
    stop = StopRequest()
    stop.check_together("first", is_over=True)
    if own == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        for _ in range(600):
            # Process 1 has done its share, and waits for process 0 to end its own.
            stop.check_together("second", is_over=own == 1)
            time.sleep(0.1)
    except Stopped:
        print(f"process {own:.0f} stops", file=sys.stderr, flush=True)
    if own == 0:
        heartbeat.fail("A mistake.")
    time.sleep(60.0)
"""


def start(process, port, start_seconds=60, late=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)]
        + [str(x) for x in (process, port, start_seconds, late)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_late_process_joins_and_is_named_where_it_is_missing():
    """When one is told to stop, both do; when process 0 makes a mistake, both end with
    its code.
    """
    port = free_port()
    with start(0, port) as first:
        # It waits, and says so, before there is another, but for who is not here.
        while "1 of 2 are here, from 127.0.0.1) since" not in (
            line := first.stderr.readline()
        ):
            assert line.startswith("waiting for the others (at most 60 s")
        with start(1, port, late=3.0) as second:
            rest, others = first.stderr.read(), second.stderr.read()
    assert (first.returncode, second.returncode) == (1, 1), rest + others
    assert "process 0 stops" in rest and "process 1 stops" in others
    assert "error: A mistake." in rest
    assert "Process 0 has ended (A mistake.), so process 1 ends as well" in others
    assert "waiting for process 1 (here) since" in rest
    assert "waiting for process" not in others


@pytest.mark.skipif(not callers.TABLES[0].exists(), reason="The system is no Linux.")
@pytest.mark.parametrize(
    "family, place", [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")]
)
def test_who_has_called(family, place):
    try:
        server = socket.create_server((place, 0), family=getattr(socket, family))
    except OSError:
        pytest.skip(f"There is no {place} here.")
    with server:
        port = server.getsockname()[1]
        assert callers.callers(port) == []
        with socket.create_connection((place, port)):
            assert callers.callers(port) == [place]


def test_a_process_that_never_comes():
    with start(0, free_port(), start_seconds=3) as process:
        said = process.stderr.read()
    assert process.returncode == TRY_AGAIN
    assert "not all processes of the run came together within 3 s" in said
    assert "--start_seconds" in said
