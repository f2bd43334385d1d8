"""Who waits says for whom: late processes join, missing ones are named."""

import subprocess
import sys
import textwrap

from test_processes import free_port
from tiny import ROOT

from mlseg_jax.distributed.heartbeat import TRY_AGAIN

PROGRAM = """
    import sys, time
    from mlseg_jax.distributed import heartbeat, processes
    from mlseg_jax.errors import UserError

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
    """And when process 0 makes a mistake, both end with its code."""
    port = free_port()
    with start(0, port) as first:
        # It waits, and says so, before there is another.
        line = first.stderr.readline()
        assert "waiting for the other processes (at most 60 s) since" in line
        with start(1, port, late=3.0) as second:
            rest, others = first.stderr.read(), second.stderr.read()
    assert (first.returncode, second.returncode) == (1, 1), rest + others
    assert "error: A mistake." in rest
    assert "Process 0 has ended (A mistake.), so process 1 ends as well" in others
    assert "waiting for process 1 (here) since" in rest
    assert "waiting for process" not in others


def test_a_process_that_never_comes():
    with start(0, free_port(), start_seconds=3) as process:
        said = process.stderr.read()
    assert process.returncode == TRY_AGAIN
    assert "not all processes of the run came together within 3 s" in said
    assert "--start_seconds" in said
