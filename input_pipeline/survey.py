"""Reads many examples and keeps only facts about them: classes, faults, hashes."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from input_pipeline.files import movement
from input_pipeline.info import DataError
from input_pipeline.pipeline import set_up_process
from input_pipeline.preparation.class_statistics import Presence
from input_pipeline.segments import Counts, count
from mlseg_jax.typing import IGNORE

_AHEAD = 64  # Examples that are handed to the threads before their turn.


@dataclasses.dataclass(frozen=True)
class Reading:
    """Facts about one example; with a fault, only its index is known.

    Attributes:
      index: in the source.
      name: of the example.
      class_ids: [n] classes in it, ascending.
      pixels: [n] number of pixels of each of them.
      num_pixels: of the label map.
      size: height and width of the label map.
      octets: of memory that the example takes.
      image_hash: of the decoded picture, so that it is equal for two encodings.
      label_hash: of the label map.
      colour: of all pixels of the picture, where it has only one.
      palette: colour by raw value, of a palette mask; see `folder.Folder.palette`.
      segments: how many it has, where somebody asked.
      remarks: what is odd about it though it can be read.
      fault: why it cannot be read.
    """

    index: int
    name: str = ""
    class_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.int64([]))
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.int64([]))
    num_pixels: int = 0
    size: tuple[int, int] = (0, 0)
    octets: int = 0
    image_hash: bytes = b""
    label_hash: bytes = b""
    colour: tuple[int, ...] | None = None
    palette: dict[int, tuple[int, ...]] | None = None
    segments: Counts | None = None
    remarks: tuple[DataError, ...] = ()
    fault: DataError | None = None

    @property
    def ignored_pixels(self) -> int:
        return self.num_pixels - int(self.pixels.sum())


def read_facts(
    source, index: int, with_hashes: bool = True, segments: str = "none"
) -> Reading:
    """Reads one example of a source; never raises because of it.

    Args:
      source: of examples.
      index: of one.
      with_hashes: whether to look for more than its classes.
      segments: as ``data.segments``; those are counted.
    """
    try:
        return _read_facts(source, index, with_hashes, segments)
    except DataError as error:
        return Reading(index, fault=error)
    except Exception as error:  # A library's own: the other examples matter as well.
        reason = " ".join(str(error).split()) or "no reason given"
        fault = f"Example {index} cannot be read ({type(error).__name__}: {reason})."
        return Reading(index, fault=DataError(fault))


def _read_facts(source, index: int, with_hashes: bool, segments: str) -> Reading:
    example, counts = source[index], None
    if segments != "none":
        counts = count(segments, example, source.info)
    label_map = example["label_map"]
    pixels = np.bincount(label_map.ravel() - IGNORE)[1:]
    ids = np.flatnonzero(pixels)
    arrays = [value for value in example.values() if isinstance(value, np.ndarray)]
    octets = sum(array.nbytes for array in arrays)
    more = {"segments": counts, "size": label_map.shape, "octets": octets}
    if with_hashes:
        palette = getattr(source, "palette", None)
        remarks = getattr(source, "remarks", None)
        more |= {
            "image_hash": _hash(example["image"]),
            "label_hash": _hash(label_map),
            "colour": _only_colour(example["image"]),
            "palette": palette and palette(index),
            "remarks": tuple(remarks(index)) if remarks else (),
        }
    name, size = example["name"], label_map.size
    return Reading(index, name, ids, pixels[ids], size, **more)


def _only_colour(image: np.ndarray) -> tuple[int, ...] | None:
    first = image[0, 0]
    return tuple(first.tolist()) if (image == first).all() else None


def _hash(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


def survey(
    source,
    indices: Iterable[int],
    num_threads: int,
    with_hashes: bool = True,
    segments: str = "none",
) -> Iterator[Reading]:
    """Facts about some examples of a source, in order, read by threads."""
    read = functools.partial(
        read_facts, source, with_hashes=with_hashes, segments=segments
    )
    set_up_process()
    waiting = collections.deque()

    def first() -> Reading:
        reading = waiting.popleft().result()
        movement.moves()
        return reading

    with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > _AHEAD:
                    yield first()
            while waiting:
                yield first()
        finally:  # Whoever wants no more does not wait for what nobody has begun.
            pool.shutdown(wait=False, cancel_futures=True)


def to_presence(readings: Iterable[Reading]) -> Presence:
    """What examples hold; one that could not be read holds nothing."""
    return Presence.collect([(r.class_ids, r.pixels) for r in readings])
