"""How much of a run's minutes is used, over all processes that have worked on it."""

import json
import time

import jax
from etils import epath

from mlseg_jax.runs.checkpoint import write_json

FILE = "time.json"
"""In the work directory: seconds used, and seconds kept for the last evaluation."""

SECONDS_BETWEEN_WRITES = 5.0

SETTLED = 20, 10.0
"""Steps and seconds, before the pace of a training says how many fit."""

TOLERANCE = 0.1, 0.01
"""Shares of the steps that are left, and of all, by which those that fit may differ."""


class Clock:
    """Wall time since a run's first command, without the time when nobody worked on it.

    A process that is killed forgets its last seconds, at most
    `SECONDS_BETWEEN_WRITES`.
    """

    def __init__(
        self, workdir: str, minutes: float, already: float = 0.0, stops: bool = True
    ):
        """``already``: seconds that this process has worked on it before; ``stops``:
        whether it ends a training, which several processes would each do at a step of
        their own.
        """
        self._stops = stops
        self.seconds = 60.0 * minutes
        self.reserve = 0.0
        self.chosen = frozenset()
        self._paced = None
        self._path = epath.Path(workdir) / FILE
        self._began = time.monotonic() - already
        self._before = 0.0
        if self._path.exists():
            kept = json.loads(self._path.read_text())
            self._before, self.reserve = kept["seconds"], kept["reserve"]
        self._written = float("-inf")

    def used(self) -> float:
        """Seconds, those of earlier processes included."""
        return self._before + time.monotonic() - self._began

    def left(self) -> float:
        """Seconds until the last evaluation has to begin."""
        return self.seconds - self.reserve - self.used()

    def is_over(self) -> bool:
        """Whether training must stop, so that its evaluation ends in time."""
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()
        return self._stops and self.seconds > 0 and self.left() <= 0

    def fitted(self, step: int, steps: int) -> int:
        """How many steps there is time for at the pace so far, evaluations and saving
        included; ``steps`` where that differs little, or was not ``chosen``. A machine
        is rarely as busy for minutes as it was while some steps were measured.
        """
        now = time.monotonic()
        if self._paced is None:
            self._paced = step, now
        done, seconds = step - self._paced[0], now - self._paced[1]
        if (
            "train.steps" not in self.chosen
            or done < SETTLED[0]
            or seconds < SETTLED[1]
        ):
            return steps
        fitting = step + max(0, int(self.left() * done / seconds))
        of_left, of_all = TOLERANCE
        most = max(of_left * (steps - step), of_all * steps)
        return fitting if abs(fitting - steps) > most else steps

    def write(self) -> None:
        self._written = time.monotonic()
        if jax.process_index() > 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"seconds": self.used(), "reserve": self.reserve})
