"""From a picture's file to its encoding; pictures that wait are encoded together."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator

import numpy as np

from input_pipeline.files.images import (
    WHITE,
    ReadOptions,
    image_from_bytes,
    open_picture,
)
from input_pipeline.info import DataError
from mlseg_jax.export.predictor import BATCH, Predictor, Seen
from mlseg_jax.export.resampling import views_of, windows_of
from mlseg_jax.serving.limits import Check, Gone, Limits
from mlseg_jax.serving.problems import RequestProblem
from mlseg_jax.typing import UInt8

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's names of what is read: others may start programs, as EPS does."""

Scales = tuple[float, ...] | None


@dataclasses.dataclass(eq=False)
class Job:
    """A picture that waits, and what became of it.

    Attributes:
      data: its file; scales: it is looked at, None for those of evaluation.
      gone: whether nobody waits for it any more.
      start: when it began to wait.
      picture: of `windows_of`, once it has been read.
      seen: its encoding; problem: why there is none.
      seconds: of its parts.
      left: its sender has been told that it took too long.
    """

    data: bytes
    scales: Scales
    gone: Gone
    start: float = dataclasses.field(default_factory=time.perf_counter)
    picture: tuple | None = None
    seen: Seen | None = None
    problem: Exception | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    left: bool = False


class Looking:
    """Runs the encoder. Whose turn it is takes along those that wait behind."""

    def __init__(self, predictor: Predictor, limits: Limits):
        self.predictor, self.limits = predictor, limits
        self._jobs: collections.deque[Job] = collections.deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, job: Job) -> Iterator[None]:
        """While a picture waits, the turn of another may take it along."""
        with self._lock:
            self._jobs.append(job)
        try:
            yield
        finally:
            with self._lock:
                job.left = True  # and may be in the hands of another turn
                self._forget(job)

    def look(self, job: Job, check: Check) -> tuple[Seen, dict[str, float]]:
        """A waiting picture's encoding, and seconds of its parts; in its turn.

        Raises:
          RequestProblem: it cannot be read, is too large, or takes too long.
          ConnectionAbortedError: its sender has hung up.
        """
        if job.seen is None and job.problem is None:
            self._run(job, check)
        if job.problem is not None:
            raise job.problem
        return job.seen, job.seconds

    def _run(self, mine: Job, check: Check) -> None:
        """This picture, and those that wait while there is room in a batch."""
        with self._lock:
            self._forget(mine)
        chosen, room, job = [], BATCH, mine
        while job is not None:
            if self._cut(job):
                count = len(job.picture[2])
                if chosen and count > room:
                    with self._lock:
                        if not job.left:  # has been read, and comes next
                            self._jobs.appendleft(job)
                    break
                chosen.append(job)
                room -= count
            job = self._next() if room > 0 else None
        if not chosen:
            return
        # Of several all are in one batch, and what this one's sender does is its own.
        alone = check if chosen == [mine] else lambda: None
        start = time.perf_counter()
        try:
            seen = self.predictor.look_at([each.picture for each in chosen], alone)
        except Exception as error:
            for each in chosen:
                each.problem = error
            return
        taken = time.perf_counter() - start
        for each, result in zip(chosen, seen, strict=True):
            each.picture = None
            each.seconds["encoder"] = taken
            each.seen = result

    def _next(self) -> Job | None:
        """The one that has waited longest."""
        with self._lock:
            return self._jobs.popleft() if self._jobs else None

    def _forget(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)

    def _cut(self, job: Job) -> bool:
        """Reads a picture; its windows are then there, or its problem is."""
        start = time.perf_counter()
        try:
            if job.left or job.gone():
                raise ConnectionAbortedError
            if job.picture is not None:
                return True
            about, limits = self.predictor.about, self.limits
            image = read(job.data, about["views"], limits)
            check_windows(about, image.shape[:2], job.scales, limits)
            job.picture = windows_of(about, image, job.scales)
        except Exception as error:
            job.problem = error
            return False
        end = time.perf_counter()
        job.seconds = {"waiting": start - job.start, "reading": end - start}
        return True


def read(data: bytes, views: dict, limits: Limits) -> UInt8[np.ndarray, "H W 3"]:
    """``views``: of ``export.json``.

    Raises:
      RequestProblem: this is no picture, or has too many pixels.
    """
    most = limits.pixels
    try:
        with open_picture(data, "the picture") as header:
            if header.format not in FORMATS:
                raise _unknown()
            if header.width * header.height > most:
                raise RequestProblem(
                    413,
                    f"The picture has {header.width} x {header.height} pixels; "
                    f"this server takes {most:,} in all.",
                )
        options = ReadOptions(most, views["exif"], views.get("white", WHITE))
        return image_from_bytes(data, "the picture", options)
    except DataError as error:
        if "decompression bomb" in str(error):
            raise RequestProblem(
                413, f"The picture has too many pixels; {most:,} are taken."
            ) from error
        raise _unknown() from error


def check_windows(
    about: dict, size: tuple[int, int], scales: Scales, limits: Limits
) -> None:
    """Before a picture is cut.

    Raises:
      RequestProblem: it is too long, too large at a scale, or too many windows.
    """
    try:
        views = views_of(about, size, scales)
    except ValueError as error:  # very long
        raise RequestProblem(413, str(error)) from error
    largest = max(height * width for (height, width), _ in views)
    if largest > limits.scaled_pixels:
        raise RequestProblem(
            413,
            f"The picture would be looked at with {largest:,} pixels; this server "
            f"takes {limits.scaled_pixels:,}: send it smaller, or with smaller scales.",
        )
    count = sum(len(rows.starts) * len(columns.starts) for _, (rows, columns) in views)
    if count > limits.windows:
        raise RequestProblem(
            413,
            f"The picture would be cut into {count:,} windows; this server takes "
            f"{limits.windows:,}: send it smaller, or a part of it.",
        )


def _unknown() -> RequestProblem:
    return RequestProblem(
        415,
        "This is no picture that can be read: it is damaged, in an unknown format, "
        "narrower than two pixels, or has 32 bits a channel; send a JPEG, PNG, WebP, "
        "BMP, GIF or TIFF file.",
    )
