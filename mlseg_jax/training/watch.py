"""Watching over a run: when to stop, where its time and memory go."""

import contextlib
import logging
import os
import pathlib
import resource
import signal
import sys
import threading
import time

import jax
import ml_collections
from jax.experimental import multihost_utils

from mlseg_jax.distributed import processes
from mlseg_jax.errors import UserError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often a process asks in long work whether another was told to stop."""

ONE_DAY = 86400.0

_IMPORTED = time.perf_counter()


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop while it did something that can be done again."""


class StopRequest:
    """SIGTERM, as a preempted machine gets it: finish the step, save, leave.

    A second signal ends the process at once. Of several processes it is enough that
    one is told; all stop after the same step.
    """

    def __init__(self):
        self.requested = False
        self._previous = None
        self._looked = 0.0
        self._finished = set()

    def __enter__(self):
        # Several processes: JAX listens, and agrees with the others.
        alone = jax.process_count() == 1
        if not alone and not jax.config.jax_enable_preemption_service:
            raise UserError(
                "Several processes stop together through JAX's preemption service, "
                "which is off here; do not set JAX_ENABLE_PREEMPTION_SERVICE=0."
            )
        if alone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logger.info("asked to stop: saving after this step (a second time: at once)")

    def is_due(self, step: int) -> bool:
        """Whether to save and leave now, that is before step ``step + 1``."""
        if jax.process_count() == 1:
            return self.requested
        if not self.requested and multihost_utils.reached_preemption_sync_point(step):
            self._note()
        return self.requested

    def check(self) -> None:
        """Raises `Stopped` where a stop was asked for; for long work without steps."""
        if self.requested:
            raise Stopped

    def check_together(self, name: str, is_over: bool) -> None:
        """As `check`, for work of which each process does its share at its own pace,
        without waiting for others.

        Args:
          name: of the work.
          is_over: this share is done. Each then waits for the words of all, so that
            either all go on or none does.
        """
        if jax.process_count() == 1:
            return self.check()
        if name in self._finished:
            return
        looked, now = self._looked, time.monotonic()
        if now - looked > LOOK_SECONDS:
            self._looked = now
            if processes.is_told_to_stop():
                processes.say(name, "stopped")
                logger.info("asked to stop: the evaluation is made up for later")
                raise Stopped
        if is_over:
            if "stopped" in processes.tell_all(name, "done", ONE_DAY):
                raise Stopped
            self._finished.add(name)

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


class ProfileWindow:
    """A trace of some steps for TensorBoard or Perfetto, in ``workdir/profile``."""

    def __init__(self, workdir: str, settings: ml_collections.ConfigDict):
        """``settings``: ``config.train``."""
        start = settings.profile_start
        self._path = os.path.join(workdir, "profile")
        self._steps = range(start, start + settings.profile_steps)
        self._running = False

    def at(self, step: int, arrays) -> None:
        """Called when ``step`` steps have been started; ``arrays``: the last result."""
        if step in self._steps and not self._running:
            jax.block_until_ready(arrays)
            jax.profiler.start_trace(self._path)
            self._running = True
        elif self._running and step >= self._steps.stop:
            self.close(arrays)

    def close(self, arrays=None) -> None:
        if self._running:
            jax.block_until_ready(arrays)
            jax.profiler.stop_trace()
            self._running = False
            logger.info("profile of %d steps in %s", len(self._steps), self._path)


def seconds_since_start() -> float:
    """Since this process was started, imports included."""
    with contextlib.suppress(OSError, AttributeError):
        # Fields after the command, which is in brackets; the 22nd is the start.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.perf_counter() - _IMPORTED


def peak_memory() -> float:
    """GiB that the first device has held at most; on CPU, the whole process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    if peak is None:
        peak = resident_bytes(resource.getrusage(resource.RUSAGE_SELF))
    return peak / 2**30


def resident_bytes(usage: resource.struct_rusage) -> int:
    """Most memory that a process had resident; Linux counts KiB, macOS bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
