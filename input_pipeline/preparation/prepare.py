"""Prepares a data set: many processes, taken up where it was stopped.

Examples are cut, in order, into shards of a fixed length (`shards`), and the same
command after a kill skips those that are done. The directory gets its name when
everything is there.
"""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow_datasets as tfds

from input_pipeline.files.local_copy import is_address
from input_pipeline.info import DataError
from input_pipeline.preparation import class_statistics, prepared
from input_pipeline.preparation.builders import (
    count_message,
    make_builder,
)
from input_pipeline.preparation.prepared import SegmentationBuilder
from input_pipeline.preparation.shards import (
    PLAN_FILE,
    Shard,
    load_record,
    plan_shards,
    record_path,
    write_shards,
)

_PRINT_SECONDS = 5


def prepare(
    name: str,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    num_workers: int | None = None,
    allow_incomplete: bool = False,
    on_bad_example: str = "fail",
    progress: Callable[[str, int, int], None] | None = None,
) -> pathlib.Path:
    """Prepares a data set, or finishes doing so; does nothing if it is there already.

    Args:
      name: a row of BUILDERS, perhaps with a variant, such as "coco_stuff/164k".
      manual_dir: directory of the raw files, in the layout of ``docs/datasets.md``.
      data_dir: the result goes to ``<data_dir>/<name>[/<variant>]/<version>``.
      num_workers: processes; None takes one a core, 0 works in this process.
      allow_incomplete: whether a copy with fewer or more examples than were published
        is only reported; else it is an error.
      on_bad_example: "fail", or "skip" to leave out and report examples that cannot be
        read.
      progress: called with the split, the number of its examples done and their total,
        first of all with what is done already; None prints a line every few seconds.

    Returns:
      The directory that `Prepared` opens.

    Raises:
      DataError: the raw files are missing, incomplete or wrong.
      ValueError: on_bad_example has another value.
    """
    if on_bad_example not in ("fail", "skip"):
        raise ValueError(f'on_bad_example is {on_bad_example!r}, not "fail" or "skip".')
    if is_address(data_dir):
        raise DataError(
            f"ArrayRecord is written to disks only, not to {data_dir}; prepare into a "
            "directory and copy that, and train on the address of the copy."
        )
    builder = make_builder(name, data_dir)
    final = pathlib.Path(builder.data_dir)
    if (final / class_statistics.STATISTICS_FILE).is_file():
        print(f"{final} is there already; remove it to prepare it again.")
        return final
    manual_dir = pathlib.Path(manual_dir)
    if not manual_dir.is_dir():
        raise DataError(f"There is no directory {manual_dir}; correct --manual_dir.")
    splits = {s: list(raws) for s, raws in builder.raw_splits(manual_dir).items()}
    prepared.check_keys(splits, name)
    message = count_message(builder, splits)
    if message and not allow_incomplete:
        raise DataError(f"{message}; complete it, or add --allow_incomplete.")
    work = final.with_name(final.name + ".incomplete")
    shards = plan_shards(builder, splits, work, on_bad_example)
    records = write_shards(
        builder, shards, work, num_workers, progress or _PrintedProgress()
    )
    _finish(builder, shards, records, work)
    work.replace(final)
    _print_what_lacks(records, message)
    return final


def _print_what_lacks(
    records: Mapping[str, class_statistics.SplitRecord], message: str
) -> None:
    for split, record in records.items():
        if record.skipped:
            print(
                f"{split}: left out {len(record.skipped)} examples; first: "
                f"{record.skipped[0]}"
            )
    if message:
        print(f"Note: {message}.")


class _PrintedProgress:
    """Prints a line a split every few seconds, and its last one."""

    def __init__(self):
        self._first, self._last = {}, {}

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.monotonic()
        first_done, start = self._first.setdefault(split, (done, now))
        if done < total and now - self._last.setdefault(split, now) < _PRINT_SECONDS:
            return
        self._last[split] = now
        rate = (done - first_done) / max(now - start, 1e-3)
        speed = f", {rate:.0f}/s" if rate else ""
        left = f", {(total - done) / rate / 60:.0f} min left" if rate > 0 else ""
        print(f"{split}: {done:,} of {total:,} examples{speed}{left}", flush=True)


def _finish(
    builder: SegmentationBuilder,
    shards: Sequence[Shard],
    records: Mapping[str, class_statistics.SplitRecord],
    work: pathlib.Path,
) -> None:
    """Writes what describes the shards, for TFDS and for `Prepared`."""
    lengths, sizes = {}, {}
    for shard in shards:
        path = shard.path(work, builder.name)
        length = len(load_record(path).counts)
        lengths.setdefault(shard.split, []).append(length)
        sizes[shard.split] = sizes.get(shard.split, 0) + path.stat().st_size
    splits = []
    for split, shard_lengths in lengths.items():
        if not sum(shard_lengths):
            raise DataError(
                f"No example of split {split!r} could be read; the first says: "
                f"{records[split].skipped[0]}"
            )
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=builder.name,
            split=split,
            filetype_suffix="array_record",
        )
        splits.append(
            tfds.core.splits.SplitInfo(
                name=split,
                shard_lengths=shard_lengths,
                num_bytes=sizes[split],
                filename_template=template,
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(work)
    class_statistics.write_side_files(work, builder.class_info(), records)
    for shard in shards:
        record_path(shard.path(work, builder.name)).unlink()
    (work / PLAN_FILE).unlink()
    for part in work.glob("*.part*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
