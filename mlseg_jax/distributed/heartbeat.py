"""Processes of a run hear each other: who lives, what each does, and why one ends.

A thread of each says every few seconds that it lives, with a note on what it does, and
listens to the others. The words go through the service that JAX has started in process
0, beside the training and without a device.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TRY_AGAIN = 75
"""Exit code of a process that did nothing wrong itself: another one has gone, or the
run hangs. Whoever started it starts it again (``EX_TEMPFAIL`` of ``sysexits.h``)."""

LONGEST_BEAT_SECONDS = 5.0
"""How often a process says that it lives, and listens whether the others do."""

FAREWELL_SECONDS = 30.0
"""How long process 0 waits for the others before it ends."""

LAST_SECONDS = 20.0
"""How long a process that ends may take to write down what it does, and to speak."""


class _Heart:
    """Of this process, which is one of several."""

    def __init__(self, client: Any, own: int, count: int, silence: float):
        self.client, self.own, self.silence = client, own, silence
        self.period = min(LONGEST_BEAT_SECONDS, silence / 5)
        self.leaving = threading.Event()
        self.note = ""
        # The last beat of each process, and when it was heard.
        self.looked = time.monotonic()
        self.heard = dict.fromkeys(range(count), ("", self.looked))

    def listen(self) -> None:
        """Says that this process lives; ends it when another is gone, or all hang."""
        beats = 0
        while not self.leaving.wait(self.period):
            beats += 1
            try:
                self.client.key_value_set(
                    f"alive/{self.own}", f"{beats} {self.note}", allow_overwrite=True
                )
                alive = self._words("alive/")
                gone = self._words("gone/")
                alarms = self._words("alarm/")
            except RuntimeError:
                if not self.leaving.is_set():
                    end(TRY_AGAIN, _loss(self.own, 0, "cannot be reached any more"))
                return
            for process, words in gone.items():
                code, _, sentence = words.partition(" ")
                end(int(code), _loss(self.own, process, f"has ended ({sentence})"))
            for sentence in alarms.values():
                attempt(_witness)
                end(TRY_AGAIN, f"\nerror: {sentence}")
            self._look_for_silence(alive)

    def _look_for_silence(self, alive: dict[int, str]) -> None:
        before, self.looked = self.looked, time.monotonic()
        now = self.looked
        if now - before > self.silence / 2:  # This process itself was stopped.
            self.heard = {
                process: (beat, now) for process, (beat, _) in self.heard.items()
            }
        for process, (beat, last) in self.heard.items():
            if alive.get(process, "") != beat:
                self.heard[process] = alive[process], now
            elif now - last > self.silence:
                what = f"has been silent for {self.silence:.0f} s"
                end(TRY_AGAIN, _loss(self.own, process, what))

    def _words(self, place: str) -> dict[int, str]:
        said = self.client.key_value_dir_get(place)
        return {int(key.rpartition("/")[2]): words for key, words in said}

    def say_farewell(self) -> None:
        """Before this process ends. Without process 0 JAX aborts all others at once, so
        it waits until they have said their own last words.
        """
        with contextlib.suppress(RuntimeError):
            self.client.key_value_set(f"ends/{self.own}", "", allow_overwrite=True)
            begin = time.monotonic()
            while self.own == 0 and time.monotonic() - begin < FAREWELL_SECONDS:
                now = time.monotonic()
                alive = {
                    process
                    for process, (_, last) in self.heard.items()
                    if now - last <= self.silence and process != 0
                }
                if alive <= set(self._words("ends/")):
                    return
                time.sleep(0.2)


_heart: _Heart | None = None


def _witness() -> None:
    """Set by `before_a_hang_ends`."""


def begin(client: Any, own: int, count: int, silence: float) -> None:
    """``client``: of the service of JAX. ``own``: index of this process, of ``count``.
    ``silence``: seconds after which one counts as gone.
    """
    global _heart
    _heart = _Heart(client, own, count, silence)
    threading.Thread(target=_heart.listen, daemon=True).start()


def stop() -> None:
    """From here on nobody who leaves is missed."""
    if _heart is not None:
        _heart.leaving.set()


def note(words: str) -> None:
    """What the others hear of this process, from its next beat on."""
    if _heart is not None:
        _heart.note = words


def notes() -> dict[int, str]:
    """What was last heard of each process, this one included; alone, of none."""
    if _heart is None:
        return {}
    heard = {p: beat.partition(" ")[2] for p, (beat, _) in _heart.heard.items()}
    return heard | {_heart.own: _heart.note}


def before_a_hang_ends(function: Callable[[], None]) -> None:
    """``function`` is called in each process when any of them says that all hang."""
    global _witness
    _witness = function


def end_all(sentence: str) -> None:
    """The run hangs: all processes write down what they do, and end to be started
    again. The first sentence is the one that all say.
    """
    if _heart is None:
        attempt(_witness)
        end(TRY_AGAIN, f"\nerror: {sentence}")
    with contextlib.suppress(RuntimeError):
        _heart.client.key_value_set("alarm/0", sentence)  # Refused where there is one.


def fail(sentence: str, code: int = 1) -> None:
    """Ends this process, and tells the others why: they end with the same code."""
    if _heart is not None:
        with contextlib.suppress(RuntimeError):
            _heart.client.key_value_set(
                f"gone/{_heart.own}", f"{code} {sentence}", allow_overwrite=True
            )
    end(code, f"error: {sentence}")


def wait_for_a_loss(silence: float) -> None:
    """Where a connection has broken: ends this process with the name of the lost one.

    Returns where all others turn out to be alive.
    """
    time.sleep(1.5 * silence)  # The heart speaks, and ends the process, before that.


def _loss(own: int, process: int, what: str) -> str:
    return (
        f"\nerror: Process {process} {what}, so process {own} ends as well; start all "
        f"processes again, and the run is taken up at its last checkpoint."
    )


class Deadline:
    """Ends the process with a sentence unless it gets through in time."""

    def __init__(self, seconds: float, sentence: str):
        ending = f"error: {sentence}"
        self._timer = threading.Timer(seconds, lambda: end(TRY_AGAIN, ending))
        self._timer.daemon = True

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *_):
        self._timer.cancel()


def end(code: int, sentence: str = "") -> None:
    """Ends the process now: exit handlers would wait for processes that are gone."""

    def speak() -> None:
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()

    try:
        attempt(speak)
        stop()
        if _heart is not None and sentence:
            _heart.say_farewell()
    finally:
        os._exit(code)


def attempt(function: Callable[[], Any]) -> Any:
    """What it returns, or None; whatever it raises or waits for (a broken terminal, a
    full disk, a pipe that nobody reads) does not keep the process from ending.
    """
    results = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=run, daemon=True)
    with contextlib.suppress(RuntimeError):  # No thread begins where Python ends.
        thread.start()
        thread.join(LAST_SECONDS)
    return results[0] if results else None
