"""What a server takes, and whose turn it is."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator

from mlseg_jax.serving.problems import RequestProblem

Gone = Callable[[], bool]
"""Whether nobody waits for a result any more."""


def never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      bytes: of a picture's file; pixels: of a picture, and of all maps of a result.
      windows: that a picture is cut into, at all scales.
      workers: requests that are computed at a time.
      queue: requests that may wait for that; each_client: of one address.
      wait: seconds that a request may wait.
      kept_bytes, kept: of pictures whose encoding is kept.
    """

    bytes: int = 32 * 2**20
    pixels: int = 2**25
    workers: int = 1
    queue: int = 64
    each_client: int = 32
    wait: float = 30.0
    kept_bytes: int = 2**29
    kept: int = 64
    windows: int = 1024


class Turns:
    """So many requests are computed at a time; the others wait."""

    def __init__(self, limits: Limits):
        self._wait = limits.wait
        self._workers = threading.Semaphore(limits.workers)

    @contextlib.contextmanager
    def one(self, gone: Gone) -> Iterator[None]:
        """Waits until a request may be computed.

        Raises:
          RequestProblem: that took too long.
          ConnectionAbortedError: nobody waits for the result any more.
        """
        if not self._workers.acquire(timeout=self._wait):
            raise RequestProblem(
                503, f"Nothing was free within {self._wait:.0f} seconds."
            )
        try:
            if gone():
                raise ConnectionAbortedError
            yield
        finally:
            self._workers.release()
