"""Prepares a data set: many processes, taken up where it was stopped.

Examples are cut, in order, into shards of a fixed length. Each process writes whole
shards, and a shard is done when the file with its counts lies beside it; the same
command after a kill skips those. The directory gets its name when everything is there.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.files.local_copy import is_address
from input_pipeline.info import DataError
from input_pipeline.preparation import class_statistics, prepared
from input_pipeline.preparation.builders import (
    BUILDERS,
    count_message,
    find_prepared,
    make_builder,
)
from input_pipeline.preparation.prepared import RawExample, SegmentationBuilder

__all__ = ["BUILDERS", "find_prepared", "make_builder", "prepare"]

_SHARD_EXAMPLES = 128
_MAX_SHARDS = 1000
_PRINT_SECONDS = 5
_PLAN_FILE = "plan.json"


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
    shards = _plan_shards(builder, splits, work, on_bad_example)
    records = _write_shards(
        builder, shards, work, num_workers, progress or _PrintedProgress()
    )
    _finish(builder, shards, records, work)
    work.replace(final)
    for split, record in records.items():
        if record.skipped:
            print(
                f"{split}: left out {len(record.skipped)} examples; first: "
                f"{record.skipped[0]}"
            )
    if message:
        print(f"Note: {message}.")
    return final


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


@dataclasses.dataclass(frozen=True)
class _Shard:
    split: str
    index: int
    count: int  # Shards of the split.
    examples: Sequence[RawExample]
    skip_bad: bool

    def path(self, work: pathlib.Path, builder_name: str) -> pathlib.Path:
        return work / (
            f"{builder_name}-{self.split}.array_record-"
            f"{self.index:05d}-of-{self.count:05d}"
        )


def _plan_shards(
    builder: SegmentationBuilder,
    splits: Mapping[str, Sequence[RawExample]],
    work: pathlib.Path,
    on_bad_example: str,
) -> list[_Shard]:
    """Cuts the splits into shards, the same ones as before if work has begun."""
    keys = {s: "\n".join(raw.key for raw in raws) for s, raws in splits.items()}
    plan = {
        "version": str(builder.version),
        "keys": {s: hashlib.sha256(k.encode()).hexdigest() for s, k in keys.items()},
        "on_bad_example": on_bad_example,
    }
    path = work / _PLAN_FILE
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        class_statistics.write_json(path, plan)
    elif json.loads(path.read_text(encoding="utf-8")) != plan:
        raise DataError(
            f"{work} holds an unfinished preparation of other files or with another "
            "--on_bad_example; remove it, or run the command as it was."
        )
    skip_bad = on_bad_example == "skip"
    shards = []
    for split, raws in splits.items():
        length = max(_SHARD_EXAMPLES, -(-len(raws) // _MAX_SHARDS))
        parts = [raws[start : start + length] for start in range(0, len(raws), length)]
        shards += [
            _Shard(split, i, len(parts), p, skip_bad) for i, p in enumerate(parts)
        ]
    return shards


def _write_shards(
    builder: SegmentationBuilder,
    shards: Sequence[_Shard],
    work: pathlib.Path,
    num_workers: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, class_statistics.SplitRecord]:
    """Writes the shards that are not there yet; returns the counts of each split."""
    totals, done = {}, {}
    for shard in shards:
        totals[shard.split] = totals.get(shard.split, 0) + len(shard.examples)
        done.setdefault(shard.split, 0)
    todo = []
    for shard in shards:
        if _record_path(shard.path(work, builder.name)).is_file():
            done[shard.split] += len(shard.examples)
        else:
            todo.append(shard)
    for split, count in done.items():
        progress(split, count, totals[split])

    def report(shard: _Shard) -> None:
        done[shard.split] += len(shard.examples)
        progress(shard.split, done[shard.split], totals[shard.split])

    if num_workers == 0 or len(todo) < 2:
        for shard in todo:
            _write_shard(builder, shard, work)
            report(shard)
    else:
        workers = min(num_workers or os.cpu_count() or 1, len(todo))
        _write_in_processes(builder, todo, work, workers, report)
    records = {split: class_statistics.SplitRecord() for split in totals}
    for shard in shards:
        records[shard.split].extend(_load_record(shard.path(work, builder.name)))
    return records


def _write_in_processes(builder, todo, work, workers, report) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # Not fork: this process may have threads, of JAX for one.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        shard_of = {pool.submit(_write_shard, builder, s, work): s for s in todo}
        for future in concurrent.futures.as_completed(shard_of):
            future.result()
            report(shard_of[future])
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "A process that prepares data was killed, perhaps for want of memory; run "
            "the same command again with fewer --num_workers to go on."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _write_shard(
    builder: SegmentationBuilder, shard: _Shard, work: pathlib.Path
) -> None:
    """Writes one shard and then, as the sign that it is whole, its counts."""
    path = shard.path(work, builder.name)
    # Two commands at the same time write two files, and each moves a whole one.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    record = class_statistics.SplitRecord()
    serializer = tfds.core.example_serializer.ExampleSerializer(
        builder.info.features.get_serialized_info()
    )

    def serialize():
        for index, raw in enumerate(shard.examples):
            try:
                features = builder.encode(raw, record)
            except DataError as error:
                if not shard.skip_bad:
                    raise
                record.skipped.append(f"{raw.key}: {error}")
                continue
            encoded = builder.info.features.encode_example(features)
            yield index, serializer.serialize_example(encoded)

    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[
        tfds.core.file_adapters.FileFormat.ARRAY_RECORD
    ]
    adapter.write_examples(part, serialize())
    part.replace(path)
    _save_record(path, record)


def _record_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".npz")


def _save_record(path: pathlib.Path, record: class_statistics.SplitRecord) -> None:
    presence = class_statistics.Presence.collect(record.counts)
    part = path.with_name(f"{path.name}.{os.getpid()}.part.npz")
    np.savez(
        part,
        offsets=presence.offsets,
        class_ids=presence.class_ids,
        pixels=presence.pixels,
        totals=[record.num_pixels, record.ignored_pixels],
        skipped=json.dumps(record.skipped),
    )
    part.replace(_record_path(path))


def _load_record(path: pathlib.Path) -> class_statistics.SplitRecord:
    with np.load(_record_path(path)) as file:
        ends = file["offsets"]
        ids, pixels = file["class_ids"], file["pixels"]
        counts = [
            (ids[a:b], pixels[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)
        ]
        num_pixels, ignored = file["totals"].tolist()
        return class_statistics.SplitRecord(
            counts, num_pixels, ignored, json.loads(str(file["skipped"]))
        )


def _finish(
    builder: SegmentationBuilder,
    shards: Sequence[_Shard],
    records: Mapping[str, class_statistics.SplitRecord],
    work: pathlib.Path,
) -> None:
    """Writes what describes the shards, for TFDS and for `Prepared`."""
    lengths, sizes = {}, {}
    for shard in shards:
        path = shard.path(work, builder.name)
        length = len(_load_record(path).counts)
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
        _record_path(shard.path(work, builder.name)).unlink()
    (work / _PLAN_FILE).unlink()
    for part in work.glob("*.part*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
