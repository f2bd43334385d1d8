"""What a server takes, and whose turn it is."""

import collections
import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mlseg_jax.serving.problems import RequestProblem

Gone = Callable[[], bool]
"""Whether nobody waits for a result any more."""

Check = Callable[[], None]
"""Raises where a result is no longer wanted, or takes too long."""


def never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      bytes: of a picture's file; pixels: of a picture, and of all maps of a result.
      scaled_pixels: of a picture at the size at which it is looked at.
      windows: that a picture is cut into, at all scales.
      queue: requests that may wait for their turn; each_client: of one address.
      arriving, arriving_bytes: pictures that are being received, and their bytes.
      wait: seconds that a request may wait; compute: that its turn may take.
      kept_bytes, kept: of pictures whose encoding is kept.
    """

    bytes: int = 32 * 2**20
    pixels: int = 2**25
    scaled_pixels: int = 2**25
    queue: int = 64
    each_client: int = 32
    arriving: int = 128
    arriving_bytes: int = 2**31
    wait: float = 30.0
    compute: float = 120.0
    kept_bytes: int = 2**29
    kept: int = 64
    windows: int = 256


class Places:
    """So many requests, and so many bytes, at a time, and not all of one client.

    ``done``: requests that have had a place.
    """

    def __init__(self, most: int, each_client: int, most_bytes: int = sys.maxsize):
        self._most, self._each, self._most_bytes = most, each_client, most_bytes
        self._taken: collections.Counter[str] = collections.Counter()
        self._bytes, self.done = 0, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._taken.total()

    @contextlib.contextmanager
    def one(self, client: str, size: int = 0) -> Iterator[None]:
        """Raises `RequestProblem` where there is none left."""
        with self._lock:
            if len(self) >= self._most or self._bytes + size > self._most_bytes:
                raise RequestProblem(
                    503, "Too many requests are waiting; try again in a few seconds."
                )
            if self._taken[client] >= self._each:
                raise RequestProblem(
                    429, "Too many of your requests are waiting; send fewer at a time."
                )
            self._taken[client] += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self.done += 1
                self._taken -= collections.Counter({client: 1})
                self._bytes -= size


class Turns:
    """One request is computed at a time; the others wait, and come as they came."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._waiting: collections.deque[threading.Event] = collections.deque()
        self._busy = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Of those that wait."""
        return len(self._waiting)

    @contextlib.contextmanager
    def one(self, gone: Gone) -> Iterator[Check]:
        """Waits until a request may be computed; what it gives is called meanwhile.

        Raises:
          RequestProblem: that took too long.
          ConnectionAbortedError: nobody waits for the result any more.
        """
        self._begin()
        end = time.monotonic() + self._limits.compute

        def check() -> None:
            if gone():
                raise ConnectionAbortedError
            if time.monotonic() >= end:
                raise RequestProblem(
                    503,
                    f"This took more than {self._limits.compute:.0f} seconds; send "
                    f"the picture smaller, or ask for fewer scales or labels.",
                )

        try:
            check()
            yield check
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            if not self._busy:
                self._busy = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(self._limits.wait):
            return
        with self._lock:
            if mine.is_set():  # just now
                return
            self._waiting.remove(mine)
        raise RequestProblem(
            503, f"Its turn did not come within {self._limits.wait:.0f} seconds."
        )

    def _end(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._busy = False
