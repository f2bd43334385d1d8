"""The end of a run in which nothing moves any more, though all its processes live.

A read that never ends and a collective that waits for ever hold up the main thread, and
with it all other processes, while each goes on saying that it lives.
"""

import contextlib
import dataclasses
import faulthandler
import json
import sys
import tempfile
import threading
import time

import jax
from etils import epath

from input_pipeline.files import movement
from mlseg_jax.distributed import heartbeat

STEPS = 100
"""Standing still for so many of its steps, and for ``train.hang_minutes`` at least, is
hanging. More than devices are given in advance (some tens), so that whoever waits for
all of those is not taken for one that hangs."""

FIRST = 3
"""So many times as long is waited for what is done for the first time, since it is
compiled, and while nothing is known of the pace."""

WRITING_SECONDS = 10.0
"""How long the work directory may take for the stacks; it may be what hangs."""

ORDER = {
    "open": "opens the data",
    "restore": "restores a checkpoint",
    "read": "waits for the data of step {step}",
    "step": "computes step {step}",
    "fetch": "waits for its devices after step {step}",
    "save": "saves step {step}",
    "evaluate": "evaluates step {step}, {done} examples done",
}
"""What a process does with each step, one after the other."""


@dataclasses.dataclass(frozen=True)
class Place:
    """How far a process is; all go the same way.

    Attributes:
      step: number of the step, from 1; 0 before it.
      doing: key of `ORDER`.
      done: examples, where it evaluates.
    """

    step: int
    doing: str
    done: int = 0

    def __str__(self) -> str:
        return ORDER[self.doing].format(step=self.step, done=self.done)

    def __lt__(self, other: "Place") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, int]:
        return self.step, list(ORDER).index(self.doing), self.done


class Watchdog:
    """Ends all processes when nothing has moved for too long, so that they are started
    again; before that each writes what its threads do to ``workdir/hangs``.
    """

    def __init__(self, minutes: float, workdir: str):
        """``minutes``: ``train.hang_minutes``; 0 never ends a run."""
        self._least = 60.0 * minutes
        self._folder = epath.Path(workdir) / "hangs"
        self._place, self._since = Place(0, "open"), time.monotonic()
        self._finished = set()
        self._pace = {}
        self._over = threading.Event()

    def at(self, step: int, doing: str, done: int = 0) -> None:
        """Something moved: where this process is now. Takes microseconds."""
        self._finished.add(self._place.doing)
        self._place, self._since = Place(step, doing, done), time.monotonic()
        self._tell()

    def moves(self) -> None:
        """Something moved within what this process does."""
        place = self._place
        self.at(place.step, place.doing, place.done + 1)

    def pace(self, **seconds: float) -> None:
        """What a step took lately: ``step`` in all, and whatever else others should
        know of this process.
        """
        self._pace = seconds
        self._tell()

    def _tell(self) -> None:
        place = dataclasses.astuple(self._place)
        heartbeat.note(json.dumps([place, self._pace]))

    def __enter__(self):
        if self._least > 0:
            self._since = time.monotonic()
            self._tell()
            movement.listen(self.moves)
            heartbeat.before_a_hang_ends(self._write_stacks)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, _, error, __):
        self._over.set()
        movement.listen(None)
        if error is not None:  # For whoever reads it; the program compares it too.
            error.add_note(f"This process {self._place}.")

    def _limit(self) -> float:
        """Seconds for which this process may stay where it is."""
        pace = self._pace.get("step", 0.0)
        is_known = self._place.doing in self._finished and (
            pace > 0 or self._place.doing in ("save", "evaluate")
        )
        return max(self._least, STEPS * pace) * (1 if is_known else FIRST)

    def _watch(self) -> None:
        period, before = min(self._least / 4, 5.0), time.monotonic()
        places = {}
        while not self._over.wait(period):
            now = time.monotonic()
            if now - before > 3 * period + 10.0:  # All of this process was stopped.
                self._since = now
            before = now
            # Who has finished its share waits for others that still move.
            seen, places = (
                places,
                {process: place for process, (place, _) in told().items()},
            )
            if places != seen:
                self._since = now
            still = now - self._since
            if still > self._limit() and not self._over.is_set():
                heartbeat.end_all(self._sentence(still))
                return

    def _sentence(self, still: float) -> str:
        places = {process: place for process, (place, _) in told().items()}
        who = who_is_behind(places or {0: self._place})
        if self._place.doing not in self._finished:
            who += " (for the first time: where it compiles, raise train.hang_minutes)"
        return (
            f"Nothing has moved for {still / 60:.3g} minutes (train.hang_minutes): "
            f"{who}. What the threads of each process do is in {self._folder}; where "
            f"that cannot be written, in its log. All end with code "
            f"{heartbeat.TRY_AGAIN}: start them again, and the run is taken up at its "
            f"last checkpoint."
        )

    def _write_stacks(self) -> None:
        """To the work directory; where that takes too long or fails, to stderr."""
        try:
            with tempfile.TemporaryFile("w+") as file:
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(0)
                text = f"Process {jax.process_index()} {self._place}.\n\n{file.read()}"
        except OSError:  # The disk is full, or nothing may be written.
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return
        written = []

        def write() -> None:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                when = time.strftime("%Y-%m-%d-%H%M%S")
                name = f"{when}-process-{jax.process_index()}.txt"
                (self._folder / name).write_text(text)
                written.append(name)

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(WRITING_SECONDS)
        if not written:
            print(text, file=sys.stderr, flush=True)


def told() -> dict[int, tuple[Place, dict[str, float]]]:
    """Where each process of the run is, and its pace, as last heard; none if alone."""
    read = {p: json.loads(words) for p, words in heartbeat.notes().items() if words}
    return {p: (Place(*place), pace) for p, (place, pace) in sorted(read.items())}


def who_is_behind(places: dict[int, Place]) -> str:
    """In words: whoever is behind the others, and what it and the foremost do."""
    first, last = max(places.values()), min(places.values())
    if not last < first:
        if len(places) == 1:
            return f"the process {last}"
        return f"each process {last}, so one of them, or the network, must be at fault"
    behind = [process for process, place in places.items() if place == last]
    ahead = next(process for process, place in places.items() if place == first)
    names = ", ".join(map(str, behind))
    return f"process {names} is behind and {last}, while process {ahead} {first}"
