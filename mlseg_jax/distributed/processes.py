"""Several processes that train together: how they find and hear each other.

TPU pods and SLURM say by themselves who is there; elsewhere (Kubernetes, a local trial)
``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` do, or flags.
"""

import collections
import faulthandler
import os
import pathlib
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlseg_jax.distributed import heartbeat
from mlseg_jax.distributed import private_jax as distributed
from mlseg_jax.distributed.callers import callers
from mlseg_jax.errors import TransientError, UserError

START_SECONDS = 600
"""How long the processes of a run wait for each other when it starts, unless told:
machines of a pod come up, and download what they need, minutes apart.
"""

ANSWER_SECONDS = 60.0
"""How long a process that is there may take to answer."""

REPORT_SECONDS = 30.0
"""How often who waits says for whom."""

GOOGLE_PCI_VENDOR = "0x1ae0"


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int = START_SECONDS,
    heartbeat_seconds: int = 60,
) -> None:
    """Joins the other processes where there are any; before JAX looks for devices.

    Args:
      coordinator: host and port of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.
      start_seconds: how long they wait for each other.
      heartbeat_seconds: silence after which a process counts as gone.

    Raises:
      UserError: half of what is needed is given.
      TransientError: the others do not come.
    """
    given = (
        coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _first(num_processes, "JAX_NUM_PROCESSES"),
        _first(process_id, "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
    )
    if given[0] is None:
        if num_processes is not None or process_id is not None:
            raise UserError(
                "--num_processes and --process_id need --coordinator=HOST:PORT as well."
            )
        if not _is_managed():
            return
        given = (None, None, None)
    elif given[1] is None or given[2] is None:
        raise UserError(
            f"The coordinator {given[0]} is given, but not how many processes there "
            f"are and which this is; add --num_processes and --process_id, or "
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        )
    elif not 0 <= given[2] < given[1]:
        raise UserError(
            f"--process_id={given[2]} is none of {given[1]} processes; count from 0."
        )
    who = "" if given[2] is None else f"Process {given[2]} of {given[1]}: "
    apart = f"{who}not all processes of the run came together within {start_seconds} s"
    advice = (
        "start all of them, with the same coordinator address, or let them wait longer "
        "(--start_seconds)."
    )
    try:
        # JAX aborts when its time is up, so it has more than this module's own.
        with (
            heartbeat.Deadline(float(start_seconds), f"{apart}; {advice}"),
            _Reports(
                lambda: f"the others (at most {start_seconds} s{_who_has_come()})"
            ),
        ):
            jax.distributed.initialize(
                *given,
                initialization_timeout=start_seconds + 60,
                # Also later than this module's own, which says it in plain words.
                heartbeat_timeout_seconds=2 * heartbeat_seconds + 10,
                shutdown_timeout_seconds=heartbeat_seconds,
            )
    except (RuntimeError, ValueError) as error:
        if given[0] is None and "should be defined" in str(error):
            return  # a machine with TPUs, but none of a pod
        reason = str(error).strip().splitlines()[0][:300]
        raise TransientError(f"{apart} ({reason}); {advice}") from error

    distributed.check()
    if are_connected():
        # Where process 0 is gone, JAX itself aborts at once with a sentence, after
        # which the stacks of all threads help nobody.
        faulthandler.disable()
        state = distributed.global_state
        heartbeat.begin(
            state.client, own_index(), state.num_processes, heartbeat_seconds
        )


def leave() -> None:
    """At the end of a command: all go together, so that none misses another."""
    if are_connected():
        barrier("leave", 86400.0)
        heartbeat.stop()


def _first(value: int | None, *names: str) -> int | None:
    """The value, else that of the first environment variable which is set."""
    found = [os.environ[name] for name in names if os.environ.get(name)]
    if value is not None or not found:
        return value
    if not found[0].isdigit():
        raise UserError(f"{names[0]}={found[0]!r} is no whole number; correct it.")
    return int(found[0])


def _is_managed() -> bool:
    """Whether SLURM or a TPU machine has started this process."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return False
    if "TPU_WORKER_ID" in os.environ:
        return True
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(path.read_text().strip() == GOOGLE_PCI_VENDOR for path in vendors)


def are_connected() -> bool:
    """Whether this process is one of several; looks for no device."""
    return (distributed.global_state.num_processes or 1) > 1


def own_index() -> int:
    return distributed.global_state.process_id or 0


def _who_has_come() -> str:
    """Of the processes that start, in words. Only process 0 knows: the others reach its
    port, and the address that is missing is that of the one which is missing.
    """
    port = distributed.own_port()
    here = [] if port is None else callers(port)
    if not here:
        return ""
    counts = collections.Counter(here).items()
    places = [f"{place} ({count})" if count > 1 else place for place, count in counts]
    count = distributed.global_state.num_processes
    return f"; {len(here)} of {count} are here, from {', '.join(places)}"


class _Reports:
    """While something is waited for, a line on stderr now and then says what.

    ``what`` gives its words, or none where there is nothing to say.
    """

    def __init__(self, what: Callable[[], str]):
        self._what = what
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()

    def _run(self):
        begin = time.monotonic()
        while not self._over.wait(REPORT_SECONDS):
            if what := self._what():
                seconds = time.monotonic() - begin
                line = f"waiting for {what} since {seconds:.0f} s"
                print(line, file=sys.stderr, flush=True)


def barrier(name: str, seconds: float) -> None:
    """Until all processes are here. Every call needs a name of its own.

    The first of those that are here says now and then who is missing.
    """
    if not are_connected():
        return
    client, place = distributed.global_state.client, f"arrived/{name}/"
    client.key_value_set(f"{place}{own_index()}", "")

    def missing() -> str:
        try:
            here = {key for key, _ in client.key_value_dir_get(place)}
        except RuntimeError:  # `_listen` will say who is gone.
            return ""
        there = {int(key.rpartition("/")[2]) for key in here}
        absent = sorted(set(range(distributed.global_state.num_processes)) - there)
        if not absent or own_index() != min(there):
            return ""
        return f"process {', '.join(map(str, absent))} ({name})"

    with _Reports(missing):
        client.wait_at_barrier(name, int(1000 * seconds))


def tell_all(name: str, value: str, seconds: float = ANSWER_SECONDS) -> list[str]:
    """What every process says under a name, without a device; for short words.

    Raises:
      TransientError: names the process that says nothing.
    """
    client, count = distributed.global_state.client, jax.process_count()
    say(name, value)
    words = []
    for process in range(count):
        try:
            words.append(
                client.blocking_key_value_get(f"{name}/{process}", int(1000 * seconds))
            )
        except RuntimeError as error:
            raise TransientError(
                f"Process {process} of {count} is connected but did not answer within "
                f"{seconds:.0f} s ({name}); look at its log."
            ) from error
    return words


def say(name: str, value: str) -> None:
    """As `tell_all`, where this process does not wait for the words of others."""
    distributed.global_state.client.key_value_set(f"{name}/{own_index()}", value)


def is_told_to_stop() -> bool:
    """Whether one of several processes has got a SIGTERM; it is asked without waiting
    for any of them, and they come to know at different moments.
    """
    try:
        distributed.global_state.client.key_value_try_get(distributed.STOP_KEY)
    except RuntimeError:  # Nothing is said there.
        return False
    return True


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; each may have its own size."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(data), np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(row[:size].tobytes())
        for row, size in zip(rows, sizes, strict=True)
    ]


def first_process_first(name: str, function: Callable[[], Any]) -> Any:
    """Process 0 alone, then all others, which find what it has written."""
    if jax.process_index() == 0:
        result = function()
        barrier(name, 86400.0)
        return result
    barrier(name, 86400.0)
    return function()
