"""What is done with an example that cannot be read: stop, or go on without it.

``fail`` stops with the example's sentence. ``skip`` reads another example in training,
chosen by the index alone, so that the order of the data stays a pure function of
(seed, index); and leaves the example out in evaluation. Skips are counted by kind, and
the first of each kind is logged.
"""

import collections
import logging
import threading

import numpy as np

from input_pipeline.info import DataError

logger = logging.getLogger("mlseg_jax.data")

ON_BAD_EXAMPLE = ("fail", "skip")
MAX_TRIES = 50
"""Other examples that are tried in place of a bad one, before it is an error."""


class Skips:
    """Counts by kind what was skipped; several threads may add to it.

    Attributes:
      counts: examples, and faults of listings, by kind.
      segments: segments that were left out because a crop had too many.
      crops: such crops.
    """

    def __init__(self):
        self.counts = collections.Counter()
        self.segments = 0
        self.crops = 0
        self._lock = threading.Lock()

    def add(self, error: DataError) -> None:
        with self._lock:
            self.counts[error.kind] += 1
            is_first = self.counts[error.kind] == 1
        if is_first:
            logger.warning(
                "skipped (and counted, without a line for each): %s", error.args[0]
            )

    def add_batch(self, skipped: np.ndarray) -> None:
        """Adds what `Replacing` says of the examples of a batch; "" is none."""
        for kind, _, sentence in (text.partition(" ") for text in skipped.tolist()):
            if kind:
                self.add(DataError(sentence, kind=kind))

    def add_segments(self, dropped: np.ndarray) -> None:
        """Adds how many segments of each crop of a batch did not fit."""
        if not dropped.any():
            return
        with self._lock:
            is_first = self.segments == 0
            self.segments += int(dropped.sum())
            self.crops += np.count_nonzero(dropped)
        if is_first:
            logger.warning(
                "a crop has %d segments more than data.max_segments; the smallest are "
                "left out (and counted, without a line for each); raise it if they "
                "matter",
                dropped.max(),
            )

    def log(self, what: str) -> None:
        """A line about all skips so far, if there are any."""
        if self.segments:
            logger.warning(
                "%s: %d segments of %d crops were more than data.max_segments, and "
                "left out",
                what,
                self.segments,
                self.crops,
            )
        if self.counts:
            counts = ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common())
            logger.warning("%s: skipped %s", what, counts)


class Replacing:
    """A source without bad examples: others stand in for them, the same ones always.

    Those have the fault beside the rest, as ``skipped``: they may be read in another
    process than the one that counts, see `Skips.add_batch`.

    Raises:
      DataError: `MAX_TRIES` others are bad as well.
    """

    def __init__(self, source):
        self.info = source.info
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        return self._read(index, lambda own: self._source[own])

    @property
    def draw(self):
        """As `clips.Clips.draw`, of a source of videos; None of another."""
        draw = getattr(self._source, "draw", None)
        if draw is None:
            return None
        return lambda index, rng: self._read(index, lambda own: draw(own, rng))

    def _read(self, index: int, read) -> dict:
        try:
            return read(index)
        except DataError as error:
            skipped = f"{error.kind} {error}"
        rng = np.random.default_rng(index)
        for other in rng.integers(len(self), size=MAX_TRIES).tolist():
            try:
                return read(other) | {"skipped": skipped}
            except DataError as error:
                last = error
        raise DataError(
            f"Example {index} and {MAX_TRIES} others tried in its place cannot be "
            f"read; run doctor, since of the last one it is said: {last}"
        ) from last


class Dropping:
    """A source that has None in place of bad examples, which grain leaves out.

    Of a video only the frame in the middle is read here; whoever reads the others
    leaves the video out if one of them is bad.
    """

    def __init__(self, source, skips: Skips):
        self.info = source.info
        self._source = source
        self._skips = skips

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict | None:
        try:
            return self._source[index]
        except DataError as error:
            self._skips.add(error)
            return None


def check(on_bad_example: str) -> None:
    """Raises DataError unless it is one of `ON_BAD_EXAMPLE`."""
    if on_bad_example not in ON_BAD_EXAMPLE:
        raise DataError(
            f"data.on_bad_example is {on_bad_example!r}; choose one of "
            f"{', '.join(ON_BAD_EXAMPLE)}."
        )


def replace_bad(source, on_bad_example: str):
    """The source of a training stream under ``on_bad_example``."""
    check(on_bad_example)
    if on_bad_example == "fail":
        return source
    return Replacing(source)


def drop_bad(source, on_bad_example: str, skips: Skips | None = None):
    """The source of one pass under ``on_bad_example``."""
    check(on_bad_example)
    if on_bad_example == "fail":
        return source
    return Dropping(source, Skips() if skips is None else skips)
