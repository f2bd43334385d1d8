"""How the program ends: from exceptions to one sentence and an exit code."""

import errno
import re
import sys
import traceback

from mlseg_jax.cli.flags import FLAGS
from mlseg_jax.errors import TransientError, UserError


def fail(sentence: str, code: int = 1) -> None:
    """Ends the program; of several processes all, with the same code."""
    from mlseg_jax.distributed import heartbeat, processes

    if processes.are_connected():
        heartbeat.fail(sentence, code)
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


_PASSING_ERRORS = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EPIPE"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
    )
    if hasattr(errno, name)
}
"""Of a disk or a network that may answer again."""

_PASSING_WORDS = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): "
    r"|Worker process was terminated"
)
"""Of XLA, whose collectives tell of a broken connection or a faulty chip so, and of
Grain, whose workers are killed where memory is short."""


SAME = 3
"""Internal errors of XLA pass as well, until one has come so many times in a row with
the same words at the same place of the run: then it is the program that is at fault."""


def _code(error: Exception) -> int:
    """Of the process: whether it should be started again."""
    from mlseg_jax.distributed import heartbeat

    passes = isinstance(error, TransientError | ConnectionError | TimeoutError)
    if isinstance(error, OSError):
        passes |= error.errno in _PASSING_ERRORS
    elif not isinstance(error, UserError):
        passes |= _PASSING_WORDS.match(str(error)) is not None
    return heartbeat.TRY_AGAIN if passes else 1


def _fail_with_file(error: OSError) -> None:
    """A file or directory that cannot be made, written or read."""
    from mlseg_jax.distributed import heartbeat

    if error.errno == errno.ENOSPC:
        where = error.filename or FLAGS.workdir or FLAGS.output
        # The libraries' exit handlers would each try to write once more, and fail.
        heartbeat.fail(
            f"The disk is full ({where}); free some space and run the same command "
            f"again."
        )
    if error.errno is None or not error.filename:
        traceback.print_exception(error)
        fail(f"{str(error) or repr(error)}; the lines above say where.", _code(error))
    advice = "correct the path or its permissions"
    if _code(error) == heartbeat.TRY_AGAIN:
        advice = "run the same command again"
    fail(f"{error.strerror}: {error.filename}; {advice}.", _code(error))


def _is_of_xla(error: Exception) -> bool:
    """Whether it tells a status, such as ``UNKNOWN: Gloo AllGather failed``."""
    is_status = re.match(r"[A-Z_]{5,}: ", str(error))
    return isinstance(error, RuntimeError) or is_status is not None


def _ending(error: Exception) -> tuple[str, int, str, str] | None:
    """Of an internal error: what `runs.failures` compares; None of any other.

    The place is in the error's notes (`Watchdog`), with the number of the step; other
    numbers, such as addresses and ports, differ from time to time.
    """
    from mlseg_jax.distributed import processes

    words, notes = str(error).strip(), getattr(error, "__notes__", [])
    # JAX adds notes, too.
    notes = [note for note in notes if note.startswith("This process ")]
    if not notes or not re.match("UNKNOWN|INTERNAL", words):
        return None
    words = re.sub(r"0x[0-9a-f]+|\d+", "#", words.splitlines()[0])
    return FLAGS.workdir, processes.own_index(), words, "; ".join(notes)


def end_with(error: Exception) -> None:
    """Ends the program with a sentence and the code by which a launcher goes.

    Returns where it is this program's own mistake, which its traceback tells best.
    """
    from mlseg_jax.distributed import heartbeat, processes
    from mlseg_jax.runs import failures

    code, are_several = _code(error), processes.are_connected()
    if isinstance(error, UserError):
        fail(str(error), code)
    if isinstance(error, OSError):
        _fail_with_file(error)
    if code == 1 and not are_several:
        return
    # Most often another process has gone, and this one notices.
    traceback.print_exception(error)
    first = (str(error).strip() or repr(error)).splitlines()[0][:200]
    ending, times = _ending(error), 1
    if ending is not None:
        times += heartbeat.attempt(lambda: failures.times_before(*ending)) or 0
    # So do broken connections show. Who knows better says so while the others wait.
    if are_several and _is_of_xla(error) and times < SAME:
        heartbeat.wait_for_a_loss(FLAGS.heartbeat_seconds)
    if ending is not None:
        heartbeat.attempt(lambda: failures.remember(*ending, times))
    who = f"Process {processes.own_index()} cannot go on ({first})."
    if times >= SAME:
        fail(
            f"{who} It has ended so at the same place {times} times in a row, so this "
            f"does not pass: the lines above say where; look at this machine, or try "
            f"another version of JAX, and start the same command again."
        )
    if not are_several:
        fail(f"{first}; start the same command again.", code)
    fail(
        f"{who} If this is about the connection, another process has ended: its log "
        f"says why. Start all processes again; the run is taken up at its last "
        f"checkpoint.",
        code,
    )
