"""Batches for training and examples for evaluation, read by threads or processes.

The order of the data is a pure function of (seed, global example index): number i of
the training stream is the same example with the same augmentation for any number of
processes, threads and workers, and after any resume. To resume at step s, start at
example ``s * batch_size``; there is no further state to save.
"""

import ctypes
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags

from input_pipeline.datasets.bad_examples import Skips
from input_pipeline.files import movement
from input_pipeline.info import DataError


def train_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    augment: Callable[[dict, np.random.Generator], dict],
    start_example: int = 0,
    rows: Sequence[int] | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch: int = 4,
    skips: Skips | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's part of each training batch, without end.

    Order and augmentation differ from epoch to epoch. Sets cv2 to one thread in this
    process, since the examples are already spread over threads.

    Args:
      source: a source as `info` describes; it is read by several threads.
      seed: any whole number from 0.
      batch_size: B over all processes.
      augment: makes an example of fixed size with the generator it is given, and
        changes neither its input nor any state of its own.
      start_example: global index of the first example.
      rows: of each batch, the rows that this process needs, in rising order; all by
        default. `sharding.own_rows` says which its devices hold.
      num_threads: threads that read, in each worker if there are any; 0 reads in the
        caller's thread.
      num_workers: processes that read, each every so many-th batch; 0 is this process.
        Threads are as fast up to about four cores; beyond, Python's lock binds them.
      prefetch: batches of this process that are made ahead (in each worker).
      skips: counts the examples that others stand in for, and the segments that were
        too many for a batch, when they are reached.

    Returns:
      Iterator of ``image`` uint8 ``[b H W 3]``, ``label_map`` int32 ``[b H W]`` (of
      clips, `datasets.clips`, with an axis T before H) and whatever else of `BATCHED`
      the augmentation makes; b is the number of rows. Close it to stop its threads.

    Raises:
      DataError: the source is empty, or an example cannot be read (when it is reached).
    """
    rows = range(batch_size) if rows is None else rows
    if len(source) == 0:
        raise DataError("The training split has no examples; add some.")
    # grain orders epoch e by seed + e: seeds 0 and 1 as given would see the same orders
    # one epoch apart.
    shuffle_seed, augment_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    examples, draw = grain.MapDataset.source(source), getattr(source, "draw", None)
    if draw is not None:  # Which frames of a video are read is random, too.
        examples = grain.MapDataset.range(len(source))
        augment = functools.partial(_drawn, draw, augment)
    # random_map stands before the choice, so that it sees the global index.
    stream = (
        examples.shuffle(seed=shuffle_seed)
        .repeat()
        .random_map(augment, seed=augment_seed)
        .map(_keep_arrays)
    )
    dataset = _OwnRows(stream, start_example, batch_size, rows).batch(
        len(rows), drop_remainder=True
    )
    batches = _iterate(dataset, num_threads, prefetch, num_workers)
    return _count_skips(batches, Skips() if skips is None else skips)


def _drawn(draw, augment, index: int, rng: np.random.Generator) -> dict:
    return augment(draw(int(index), rng), rng)


class _OwnRows(grain.MapDataset):
    """Of a stream that is taken in batches, some rows of each batch."""

    def __init__(self, stream, start: int, batch_size: int, rows: Sequence[int]):
        super().__init__(stream)
        self._start, self._batch_size, self._rows = start, batch_size, rows

    def __len__(self) -> int:
        return (len(self._parent) - self._start) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, place = divmod(index, len(self._rows))
        return self._parent[self._start + step * self._batch_size + self._rows[place]]


def names_of_batch(
    source, seed: int, batch_size: int, step: int, rows: Sequence[int]
) -> list[str]:
    """Names of the examples in some rows of the batch of a step (from 0) of
    `train_batches` with this ``seed``.
    """
    shuffle_seed, _ = np.random.SeedSequence(seed).generate_state(2).tolist()
    order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    places = [int(order[step * batch_size + row]) for row in rows]
    return [str(source[place]["name"]) for place in places]


def evaluation_examples(
    source,
    *,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 8,
    start: int = 0,
    limit: int | None = None,
    side_by_side: bool = False,
) -> Iterator[dict]:
    """Yields this process's examples of one pass, unchanged and in order.

    Args:
      source: a source as `info` describes; it is read by several threads.
      process_index: which process this is.
      process_count: number of processes.
      num_threads: threads that read; 0 reads in the caller's thread.
      prefetch: examples that are made ahead.
      start: index of the first example of the pass over all processes.
      limit: length of the pass over all processes; None goes to the end.
      side_by_side: whether a process has neighbours, as the frames of a video are.

    Returns:
      Iterator of examples ``start + process_index``, then every ``process_count``-th,
      or of the process's part of all.
      The last processes may get one example less.

    Raises:
      DataError: an example cannot be read (when it is reached).
    """
    stop = len(source) if limit is None else min(start + limit, len(source))
    indices = range(start, stop)
    if side_by_side:
        share = -(-len(indices) // process_count)
        indices = indices[process_index * share :][:share]
    else:
        indices = indices[process_index::process_count]
    if not indices:
        return iter(())
    dataset = grain.MapDataset.source(source).slice(
        slice(indices.start, indices.stop, indices.step)
    )
    return _iterate(dataset, num_threads, prefetch)


BATCHED = (
    "image", "image_size", "label_map", "presence", "given", "masks", "segment_classes",
    "features",
)  # fmt: skip
"""What a batch can hold: `image_size` int32 [B 2], rows and columns of crops that are
no padding, `features` [B h w D] of a frozen backbone (in place of `image`), `presence`
bool [B C] for classifiers of whole pictures (in place of `label_map`), `given` int32
[B K] labels that were selected beforehand, and the segments of each crop
(`augmentation.crop_segments`)."""


def _keep_arrays(example: dict) -> dict[str, np.ndarray]:
    """Drops what cannot be stacked into a batch for the device, such as the name."""
    kept = {key: example[key] for key in BATCHED if key in example}
    return kept | {
        "skipped": np.array(example.get("skipped", "")),
        "dropped_segments": np.array(example.get("dropped_segments", 0)),
    }


def _count_skips(batches: Iterator[dict], skips: Skips) -> Iterator[dict]:
    try:
        for batch in batches:
            skips.add_batch(batch.pop("skipped"))
            skips.add_segments(batch.pop("dropped_segments"))
            yield batch
    finally:
        batches.close()


def read_some(source, num_threads: int, limit: int = 256) -> None:
    """Reads up to ``limit`` examples, spread over the source, and throws them away.

    Faults of the data (unreadable files, values without a class, sizes that differ) are
    then said before anything is compiled; `doctor` reads everything.

    Raises:
      DataError: an example cannot be read.
    """
    step = max(1, -(-len(source) // limit))
    dataset = grain.MapDataset.source(source).slice(slice(0, None, step))
    for _ in _iterate(dataset, num_threads, prefetch=8):
        movement.moves()


def _iterate(
    dataset: grain.MapDataset, num_threads: int, prefetch: int, num_workers: int = 0
) -> Iterator:
    set_up_process()
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    dataset = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own, also without a command.
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_set_up_worker)
    iterator = iter(dataset)

    def generate():
        try:
            yield from iterator
        except DataError as error:
            # The user needs the sentence, not the frames of grain and its threads, nor
            # the note that grain adds about them.
            raise DataError(*error.args) from error.__cause__
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                "A process that reads data was killed, perhaps for want of memory; "
                "lower data.num_workers."
            ) from error
        finally:
            iterator.close()

    return generate()


def _set_up_worker(worker_index: int, worker_count: int) -> None:
    set_up_process()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """In a worker: a reader that is killed could not end it, and it would wait for ever
    for somebody to take its batches. Python's resource tracker then frees the shared
    memory of all of them.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


@functools.cache
def set_up_process() -> None:
    """One thread for each cv2 call, and memory that stays with the process.

    Pictures come and go a thousand times a second. By default glibc takes fresh pages
    for each of them and gives them back, and the page faults cost up to a quarter of
    the time; with these limits freed memory up to 32 MB a piece is used again.
    """
    cv2.setNumThreads(1)
    trim_threshold, mmap_threshold = -1, -3  # <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # Not glibc.
        return
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 256 << 20)
